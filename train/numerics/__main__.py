"""Run `python -m train.numerics`."""

import sys

from train.numerics.command import main

if __name__ == "__main__":
    sys.exit(main())
