"""Tests of what all commands share: error lines, the exit status, interruptions, options with whole numbers."""

import argparse
import os
import signal

import pytest

import srel_tf
from train.common import cli


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "status", "plain", "saved"),
    [
        (srel_tf.OptionError("bad"), 1, "error: bad", "error: bad"),
        (
            OSError("full"),
            1,
            "error: full",
            "error: full; earlier measurements are saved",
        ),
        (
            KeyboardInterrupt(),
            130,
            "interrupted",
            "interrupted: the measurements so far are saved; do it again",
        ),
    ],
)
def test_errors_become_a_line_and_a_status(capsys, error, status, plain, saved):
    for goes_on, message in (("", plain), ("do it again", saved)):
        assert cli.command(goes_on)(lambda arguments: fail(error))() == status
        assert capsys.readouterr().err == f"{message}\n"


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli.command()(lambda arguments: 1 // 0)()


@pytest.mark.parametrize("number", cli.SIGNALS)
def test_signals_interrupt_a_command_even_where_a_shell_ignores_them(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        stop = cli.command()(lambda arguments: os.kill(os.getpid(), number))
        assert stop() == 130
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_the_status_of_a_command_is_what_it_returns():
    assert cli.command()(lambda arguments: None)() == 0
    assert cli.command()(lambda arguments: len(arguments))(["a", "b"]) == 2


def test_whole_numbers(capsys):
    p = argparse.ArgumentParser()
    p.add_argument("--n", type=cli.at_least(2, 9), nargs="+", action=cli.Distinct)
    assert p.parse_args(["--n", "2", "8"]).n == [2, 8]
    for values, message in (
        ("1", "1: give at least 2 and less than 9"),
        ("9", "9: give at least 2 and less than 9"),
        ("x", "invalid whole_number value: 'x'"),
        ("3 4 3", "[3, 4, 3]: give each value only once"),
    ):
        with pytest.raises(SystemExit):
            p.parse_args(["--n", *values.split()])
        assert f"argument --n: {message}" in capsys.readouterr().err
