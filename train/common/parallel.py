"""Seeds side by side, each in a process of its own."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import time

from srel_tf import SRelError
from train.common.interrupts import held, interruptible, take


class JobError(SRelError, RuntimeError):
    """A seed whose process failed; the others were run to their end."""


@interruptible()
def run_in_processes(work, seeds, jobs, again="the same command with --resume goes on"):
    """Call work(seed, orphaned=...) for each seed, at most `jobs` at a time, in new processes.

    work: a function that can be sent to another process; it saves and stops where orphaned() is true, that is, without
    us, or when we have been asked to stop.
    again: what the error says of how to go on.
    Raises `JobError` once all have ended if one failed; after Ctrl-C or SIGTERM, once all have saved,
    `KeyboardInterrupt`.
    """
    context = multiprocessing.get_context("spawn")
    waiting, running, ended = list(seeds), {}, {}
    stop = context.RawValue(
        "b", 0
    )  # Beside the signal, which may come while a process is loading libraries.
    multiprocessing.resource_tracker.ensure_running()  # Now: it lets waiting signals through.
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                seed = waiting.pop(0)
                with held():
                    running[seed] = context.Process(
                        target=_run, args=(work, seed, stop), name=f"seed {seed}"
                    )
                    running[seed].start()
            multiprocessing.connection.wait([p.sentinel for p in running.values()])
            for seed in [s for s, p in running.items() if not p.is_alive()]:
                process = running.pop(seed)
                process.join()
                ended[seed] = process.exitcode
    except BaseException:
        stop.value = 1
        _stop([p for p in running.values() if p.pid])
        raise
    failed = {seed: code for seed, code in ended.items() if code}
    if failed:
        raise JobError(
            "; ".join(
                f"seed {seed} ended with status {code}" for seed, code in failed.items()
            )
            + f"; what was measured is saved: {again}"
        )


def _stop(processes, patience=600):
    """Ask processes to save and end, and wait for them; at last, or where the user asks again, end them."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    if processes:
        print(
            f"{len(processes)} seeds end their step and save; asked again, they end at once",
            file=sys.stderr,
        )
    try:
        until = time.monotonic() + patience
        for process in processes:
            process.join(max(0, until - time.monotonic()))
    finally:
        for process in processes:
            process.kill()


def _run(work, seed, stop):
    os.setpgid(0, 0)  # Ctrl-C reaches us once, from the process that started us.
    try:
        take()
        work(
            seed,
            orphaned=lambda: (
                bool(stop.value) or not multiprocessing.parent_process().is_alive()
            ),
        )
    except (SRelError, OSError) as error:
        sys.exit(f"error: seed {seed}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
