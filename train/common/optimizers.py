"""Optimizers of the experiments. As in the published code, L2 weight decay is added to the gradient.

Decay that is added to the gradient also enters Adam's moments. The option `weight_decay` of Keras is different: it is
decoupled, which means that it shrinks the weights separately from the step. The decay is part of the optimizer and not
of the loss, so that ℓ remains the cross-entropy of the paper.
"""

from typing import Any

import keras

from srel_tf import OptionError


def _with_l2(optimizer: Any) -> Any:
    @keras.saving.register_keras_serializable(
        package="train", name=f"{optimizer.__name__}L2"
    )
    class WithL2(optimizer):
        def __init__(self, *args: Any, l2: float = 0.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.l2 = l2

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            super().update_step(gradient + self.l2 * variable, variable, learning_rate)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "l2": self.l2}

    WithL2.__name__ = f"{optimizer.__name__}L2"
    return WithL2


AdamL2 = _with_l2(keras.optimizers.Adam)
SgdL2 = _with_l2(keras.optimizers.SGD)

OPTIMIZERS = {
    # ε is 1e-8 as in PyTorch; the default of Keras is 1e-7. Unlike PyTorch, Keras adds ε before the bias correction.
    # This difference matters only in the first steps, and only if gradients are tiny.
    "adam": lambda learning_rate, l2: AdamL2(learning_rate, epsilon=1e-8, l2=l2),
    "sgd": lambda learning_rate, l2: SgdL2(learning_rate, l2=l2),
    "momentum": lambda learning_rate, l2: SgdL2(learning_rate, momentum=0.9, l2=l2),
}


def make_optimizer(
    name: str, learning_rate: float, l2: float = 0.0
) -> keras.optimizers.Optimizer:
    """Make an optimizer: `adam`, `sgd`, or `momentum` (SGD with momentum 0.9).

    Raises:
        OptionError: If the name is unknown, the learning rate is not positive, or the decay `l2` is negative.
    """
    if name not in OPTIMIZERS:
        raise OptionError(
            f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}"
        )
    if not learning_rate > 0 or not l2 >= 0:
        raise OptionError(
            f"learning rate {learning_rate}, weight decay {l2}: give a rate > 0 and a decay ≥ 0"
        )
    return OPTIMIZERS[name](learning_rate, l2)
