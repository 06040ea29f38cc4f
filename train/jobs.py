"""Seeds side by side, each in a process of its own."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time

from srel_tf import SRelError


class JobError(SRelError, RuntimeError):
    """A seed whose process failed; the others were run to their end."""


def run_in_processes(work, seeds, jobs, again="the same command with --resume goes on"):
    """Call work(seed, orphaned=...) for each seed, at most `jobs` at a time, in new processes.

    work: a function that can be sent to another process; it stops where orphaned() is true, that is, without us.
    again: what the error says of how to go on.
    Raises `JobError` once all have ended if one failed, `KeyboardInterrupt` after Ctrl-C, which is passed on to all.
    """
    context = multiprocessing.get_context("spawn")
    waiting, running, ended = list(seeds), {}, {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                seed = waiting.pop(0)
                running[seed] = context.Process(target=_run, args=(work, seed), name=f"seed {seed}")
                running[seed].start()
            multiprocessing.connection.wait([p.sentinel for p in running.values()])
            for seed in [s for s, p in running.items() if not p.is_alive()]:
                process = running.pop(seed)
                process.join()
                ended[seed] = process.exitcode
    except BaseException:
        _stop(running.values())
        raise
    failed = {seed: code for seed, code in ended.items() if code}
    if failed:
        raise JobError(
            "; ".join(f"seed {seed} ended with status {code}" for seed, code in failed.items())
            + f"; what was measured is saved: {again}"
        )


def _stop(processes, patience=600):
    """Ask processes to save and end, and wait for them; at last, or where the user asks again, end them."""
    for process in processes:
        if process.pid and process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    try:
        until = time.monotonic() + patience
        for process in processes:
            process.join(max(0, until - time.monotonic()))
    finally:
        for process in processes:
            process.kill()


def _run(work, seed):
    os.setpgid(0, 0)  # Ctrl-C reaches us once, from the process that started us.
    try:
        work(seed, orphaned=_orphaned)
    except (SRelError, OSError) as error:
        sys.exit(f"error: seed {seed}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _orphaned():
    return not multiprocessing.parent_process().is_alive()
