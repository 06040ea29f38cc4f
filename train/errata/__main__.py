"""Run `python -m train.errata`."""

import sys

from train.errata.command import main

if __name__ == "__main__":
    sys.exit(main())
