"""Run `python -m train.regression`."""

import sys

from train.regression.command import main

if __name__ == "__main__":
    sys.exit(main())
