"""Run `python -m train.replication`."""

import sys

from train.replication.command import main

if __name__ == "__main__":
    sys.exit(main())
