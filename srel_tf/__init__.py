"""srel_tf: exact measurement of the local elasticity S_rel(x', x) of neural nets, inside or outside of training.

S_rel(x', x) is the change of the prediction at the target x', divided by the change at the source x. Both changes are
caused by one fictitious update on x ("Dynamics of Local Elasticity During Training of Neural Nets", Definitions 1–3).
"""

from srel_tf.errors import (
    AssumptionError,
    BackendError,
    ChunkError,
    FrameError,
    ModelError,
    OptionError,
    ProbeError,
    ShapeError,
    SRelError,
    StorageError,
)
from srel_tf.fit.checkpoint import Checkpoint
from srel_tf.fit.mixin import SRelMixin, SRelModel, SRelSequential
from srel_tf.frames.lazy import StoredFrame
from srel_tf.frames.schema import read_frame, rule_names, write_frame
from srel_tf.frames.stats import auc, separation, smooth
from srel_tf.frames.store import FrameStore, scan_frame
from srel_tf.gradients.factored import (
    EmbeddingGradient,
    ExplicitGradient,
    OuterProductGradient,
)
from srel_tf.gradients.layer_rules import register_layer_rule
from srel_tf.measurement import Instrument, measure
from srel_tf.measures.registry import register_measure
from srel_tf.ntk import empirical_kernel, empirical_ntk
from srel_tf.probe import ProbeSet
from srel_tf.result import SRelResult
from srel_tf.settings import Settings

__version__ = "0.1.0"  # pyproject.toml reads the version from here.

__all__ = [
    "AssumptionError",
    "BackendError",
    "Checkpoint",
    "ChunkError",
    "EmbeddingGradient",
    "ExplicitGradient",
    "FrameError",
    "FrameStore",
    "Instrument",
    "ModelError",
    "OptionError",
    "OuterProductGradient",
    "ProbeError",
    "ProbeSet",
    "SRelError",
    "SRelMixin",
    "SRelModel",
    "SRelResult",
    "SRelSequential",
    "Settings",
    "ShapeError",
    "StorageError",
    "StoredFrame",
    "auc",
    "empirical_kernel",
    "empirical_ntk",
    "measure",
    "read_frame",
    "register_layer_rule",
    "register_measure",
    "rule_names",
    "scan_frame",
    "separation",
    "smooth",
    "write_frame",
]
