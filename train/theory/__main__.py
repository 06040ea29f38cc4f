"""Run `python -m train.theory`."""

import sys

from train.theory.command import main

if __name__ == "__main__":
    sys.exit(main())
