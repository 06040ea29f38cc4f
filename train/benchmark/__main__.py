"""Run `python -m train.benchmark`."""

import sys

from train.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
