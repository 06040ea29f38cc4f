"""Tests of the clock of a training."""

import pytest

from train.common.callbacks import Clock


def test_the_seconds_of_several_processes_add_up(monkeypatch):
    now = 100.0
    monkeypatch.setattr("train.common.callbacks.time.perf_counter", lambda: now)
    first = Clock()
    now = 103.5
    assert first.state == 3.5
    now = 7.0  # Another process has another time origin.
    second = Clock()
    second.state = first_state = 3.5
    now = 9.0
    assert second.state == pytest.approx(first_state + 2)
