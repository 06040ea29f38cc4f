"""Run `python -m train.classification`."""

import sys

from train.classification.command import main

if __name__ == "__main__":
    sys.exit(main())
