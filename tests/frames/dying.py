"""A process that dies at a chosen file operation: a flush, a rename, a removal, or a new directory.

python -m tests.frames.dying finish 4 --model mlp … --out DIR     killed at its 4th operation in finish_seed
python -m tests.frames.dying commit 2 --model mlp … --out DIR     killed at its 2nd operation in the first commit
"""

import contextlib
import os
import signal
import sys

ACTS = ("fsync", "replace", "unlink", "rmdir", "mkdir")


class Died(BaseException):
    """Simulated death of the process. No `except Exception` catches it, and later operations raise it again."""


@contextlib.contextmanager
def dying(at, really=False):
    """Within this block, raise `Died` at file operation number `at`, counted from 1, and at each later one.

    With `really`, the process kills itself with SIGKILL instead.
    """
    acts, real = 0, {name: getattr(os, name) for name in ACTS}

    def act_of(name):
        def act(*arguments, **options):
            nonlocal acts
            acts += 1
            if acts < at:
                return real[name](*arguments, **options)
            if really:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Died

        return act

    for name in ACTS:
        setattr(os, name, act_of(name))
    try:
        yield
    finally:
        for name in ACTS:
            setattr(os, name, real[name])


def main(where, at, arguments):
    from srel_tf import FrameStore
    from train.classification import command as classification
    from train.common.run_directory import RunDirectory

    owner, method = {
        "finish": (RunDirectory, "finish_seed"),
        "commit": (FrameStore, "commit"),
    }[where]
    real = getattr(owner, method)

    def deadly(*args, **kwargs):
        with dying(at, really=True):
            return real(*args, **kwargs)

    setattr(owner, method, deadly)
    return classification.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
