"""The exactly solvable models of Sections 3, 4 and 5, in float64 and batched over times.

| paper | here |
|---|---|
| eq. 3, Definition 4, Theorems 3.1 and 3.2 (eq. 4) | `PenalizedRegression` |
| Algorithm 1 | `modified_sgd` |
| Definition 5, Theorem 4.1, eqs. 9, 19, 20, Lemma 4.2, Theorem 4.3 | `ReLUGate` |
| Definition 6, eqs. 26, 28, 31, Theorem 5.1 | `HomogeneousPredictor`; the linearised network: `linearized_network` |
| Definition 7 (eq. 12) | `HomogeneousPredictor.flow`, `moment_flow` |
| Theorem 5.2 (eqs. 13, 14, 36) | `DiagonalQuadratic` |
| the SGD of eq. 15 | `diagonal_sgd` |
| the same models in Keras, for `srel_tf.measure` | `penalized_network`, `relu_gate_network`, `homogeneous_network` |
| Theorem 5.3 (eq. 39), Lemma C.1 | `theorem_5_3_bound`, `lemma_c1_bound` |
"""

from srel_tf.theory.bounds import lemma_c1_bound, theorem_5_3_bound
from srel_tf.theory.diagonal import DiagonalQuadratic, quadratic_srel
from srel_tf.theory.features import average_pairs, random_relu_features, sample_pairs
from srel_tf.theory.flow import moment_flow
from srel_tf.theory.homogeneous import HomogeneousPredictor
from srel_tf.theory.keras_models import (
    homogeneous_network,
    penalized_network,
    relu_gate_network,
)
from srel_tf.theory.linearized import linearized_network
from srel_tf.theory.penalized import PenalizedRegression
from srel_tf.theory.relu_gate import ReLUGate
from srel_tf.theory.relu_risk import relu_risk_srel
from srel_tf.theory.sgd import diagonal_sgd, diagonal_sgd_srel, modified_sgd, relu_sgd

__all__ = [
    "DiagonalQuadratic",
    "HomogeneousPredictor",
    "PenalizedRegression",
    "ReLUGate",
    "average_pairs",
    "diagonal_sgd",
    "diagonal_sgd_srel",
    "homogeneous_network",
    "lemma_c1_bound",
    "linearized_network",
    "modified_sgd",
    "moment_flow",
    "penalized_network",
    "quadratic_srel",
    "random_relu_features",
    "relu_gate_network",
    "relu_risk_srel",
    "relu_sgd",
    "sample_pairs",
    "theorem_5_3_bound",
]
