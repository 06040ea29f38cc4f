"""Training of several seeds at the same time, each in a separate process.

`concurrent.futures.ProcessPoolExecutor` is unsuitable: one process that dies breaks the pool for all seeds, and idle
processes of a pool outlive a killed command.
"""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from srel_tf import SRelError
from train.common.cli import SIGNALS


class JobError(SRelError, RuntimeError):
    """The process of a seed failed. The processes of the other seeds ran to their end."""


def run_in_processes(
    work: Callable[..., None],
    seeds: Iterable[int],
    jobs: int,
    again: str = "the same command with --resume continues",
) -> None:
    """Call work(seed, orphaned=...) for each seed in a new process, with at most `jobs` processes at a time.

    Args:
        work: A function that can be pickled. The new process does not receive Ctrl-C or SIGTERM. If the command is
            killed or interrupted, orphaned() returns True. Then `work` must save and stop.
        seeds: The seeds.
        jobs: Largest number of processes at a time.
        again: Advice on how to continue, for the error message.

    Raises:
        JobError: If the process of a seed failed. The error is raised after all processes have ended.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after all seeds have saved.
    """
    context = multiprocessing.get_context("spawn")  # TensorFlow fails after a fork.
    stop = context.RawValue("b", 0)
    # Start the tracker now. Otherwise it would start within `signals_blocked` below, and its start unblocks signals.
    multiprocessing.resource_tracker.ensure_running()
    waiting, failed = list(seeds), {}
    running: dict[int, Any] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                seed = waiting.pop(0)
                with signals_blocked():  # The new process inherits the blocked signals.
                    running[seed] = context.Process(
                        target=_run, args=(work, seed, stop), name=f"seed {seed}"
                    )
                    running[seed].start()
            multiprocessing.connection.wait([p.sentinel for p in running.values()])
            for seed in [s for s, p in running.items() if not p.is_alive()]:
                process = running.pop(seed)
                if process.exitcode:
                    failed[seed] = process.exitcode
    except BaseException:
        stop.value = 1
        _wait_for([p for p in running.values() if p.pid])
        raise
    if failed:
        ends = [f"seed {s} ended with status {code}" for s, code in failed.items()]
        raise JobError(f"{'; '.join(ends)}; the measurements are saved: {again}")


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for(processes: list[Any]) -> None:
    """Wait until the processes have saved. A second interrupt kills them."""
    if processes:
        print(
            f"{len(processes)} seeds finish their current step and then save; interrupt again to end them at once",
            file=sys.stderr,
        )
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()


def _run(work: Callable[..., None], seed: int, stop: ctypes.c_byte) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    try:
        work(seed, orphaned=lambda: bool(stop.value) or not parent.is_alive())
    except (SRelError, OSError) as error:
        sys.exit(f"error: seed {seed}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
