"""The experiments of the paper, run from a checkout as `python -m train.NAME`."""

import os

# Before TensorFlow is loaded: its notes on the processor would bury what the commands print.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
