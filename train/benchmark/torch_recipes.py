"""S_rel of a Keras net with torch.func, for comparison. The module needs PyTorch (`pip install -e '.[torch]'`).

The recipes follow PyTorch's tutorials on per-sample gradients and neural tangent kernels. The exact recipes compute the
gradient of each source with `grad`, and take a fictitious step. The recipe for the limit forms the Jacobians by `vmap`
of `jacrev` and multiplies them with the gradients of the sources.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, jacrev, vmap

from srel_tf import ModelError

CHUNK = 10  # Number of examples whose gradients or Jacobians `vmap` forms at a time.
# {number of axes of a Keras variable: these axes in the order of torch's layout}.
AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
Weights = dict[str, torch.Tensor]


def torch_weights(model: keras.Model) -> Weights:
    """Copy the weights of a Keras model into torch's layout, {path of the variable: tensor}."""
    return {
        w.path: torch.tensor(w.numpy().transpose(AXES[len(w.shape)]))
        for w in model.weights
    }


def torch_outputs(
    model: keras.Model, weights: Weights, x: torch.Tensor
) -> torch.Tensor:
    """Run the graph of a functional Keras model in torch: x [n, H, W, channels] to outputs [n, C].

    Raises:
        ModelError: If a layer or an activation is missing in `LAYERS` or `ACTIVATIONS`.
    """
    values = {id(model.inputs[0]): x.movedim(-1, 1)}
    for layer in model.layers[1:]:
        activation = getattr(layer, "activation", None)
        if type(layer) not in LAYERS or activation not in ACTIVATIONS:
            raise ModelError(
                f"layer {layer.name!r} of type {type(layer).__name__} or its activation has no counterpart "
                "in torch here: add it to LAYERS or ACTIVATIONS"
            )
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        operands = [values[id(t)] for t in inputs]
        operands += [weights[w.path] for w in layer.weights]
        result = LAYERS[type(layer)](layer, *operands)
        values[id(layer.output)] = ACTIVATIONS[activation](result)
    return values[id(model.outputs[0])]


def _conv(
    layer: Any, x: torch.Tensor, kernel: torch.Tensor, *bias: torch.Tensor
) -> torch.Tensor:
    same = layer.padding == "same"
    if same and any(s != 1 for s in layer.strides):
        raise ModelError(
            f"layer {layer.name!r}: torch pads strided convolutions differently from padding='same' in Keras; use "
            "ZeroPadding2D and padding='valid'"
        )
    return F.conv2d(
        x, kernel, *bias, stride=layer.strides, padding="same" if same else 0
    )


def _zero_padding(layer: Any, x: torch.Tensor) -> torch.Tensor:
    (top, bottom), (left, right) = layer.padding
    return F.pad(x, (left, right, top, bottom))


# {Keras layer class: function (layer, inputs, weights) -> outputs}. In torch, channels precede height and width.
LAYERS: dict[type, Callable[..., torch.Tensor]] = {
    keras.layers.Conv2D: _conv,
    keras.layers.Dense: lambda layer, x, *weights: F.linear(x, *weights),
    keras.layers.ZeroPadding2D: _zero_padding,
    keras.layers.MaxPooling2D: lambda layer, x: F.max_pool2d(
        x, layer.pool_size, layer.strides
    ),
    keras.layers.ReLU: lambda layer, x: F.relu(x),
    # Flatten in Keras's order, with channels last.
    keras.layers.Flatten: lambda layer, x: x.movedim(1, -1).flatten(1),
    keras.layers.GlobalAveragePooling2D: lambda layer, x: x.mean((2, 3)),
    keras.layers.Add: lambda layer, *x: sum(x),
}
ACTIVATIONS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda x: x,
    keras.activations.linear: lambda x: x,
    keras.activations.relu: F.relu,
}


def recipes(
    model: keras.Model, x: np.ndarray, y: np.ndarray, learning_rate: float
) -> dict[str, Callable[[], torch.Tensor]]:
    """Make the recipes for a Keras model and a probe: x [n, H, W, channels], y [n].

    Returns:
        {name: function}. The forward pass returns f(x) [n, C]; the exact recipes return the outputs after each source's
        step [n, n, C]; the limit returns δ = −J ∇ℓ [n, n, C].
    """
    weights, probe, labels = torch_weights(model), torch.tensor(x), torch.tensor(y)

    def loss(w: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch_outputs(model, w, x[None]), y[None])

    def outputs_of_one(w: Weights, x: torch.Tensor) -> torch.Tensor:
        return torch_outputs(model, w, x[None])[0]

    def after(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        gradients = grad(loss)(weights, x, y)
        stepped = {k: w - learning_rate * gradients[k] for k, w in weights.items()}
        return torch_outputs(model, stepped, probe)

    def limit() -> torch.Tensor:
        """Compute the limit. All gradients are kept in memory, but the Jacobians of only CHUNK targets at a time."""
        gradients = vmap(grad(loss), (None, 0, 0), chunk_size=CHUNK)(
            weights, probe, labels
        )
        columns = []
        for targets in probe.split(CHUNK):
            jacobian = vmap(jacrev(outputs_of_one), (None, 0))(weights, targets)
            products = [
                torch.einsum("sp,tcp->stc", g.flatten(1), jacobian[k].flatten(2))
                for k, g in gradients.items()
            ]
            columns.append(-sum(products))
        return torch.cat(columns, dim=1)

    return {
        "torch forward pass": lambda: torch_outputs(model, weights, probe),
        "torch exact, loop": lambda: torch.stack(
            [after(*source) for source in zip(probe, labels, strict=True)]
        ),
        f"torch exact, vmap of {CHUNK}": lambda: vmap(after, chunk_size=CHUNK)(
            probe, labels
        ),
        f"torch limit, jacrev of {CHUNK}": limit,
    }
