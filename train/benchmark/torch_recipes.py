"""The torch.func recipes for the same numbers on the same net; needs PyTorch (`pip install -e '.[torch]'`).

`AsTorch` holds the weights and the graph of a functional Keras model. The recipes follow PyTorch's tutorials on
per-sample gradients and neural tangent kernels: `grad` and `functional_call` for a fictitious step of each source,
`vmap` of `jacrev` for the Jacobians of which the limit is a contraction.
"""

import keras
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, jacrev, vmap

from srel_tf import ModelError
from train.benchmark.procedures import seconds

CHUNK = 10  # Examples whose gradients or Jacobians `vmap` forms at a time.


def _conv(layer, x, kernel, bias=None):
    same = layer.padding == "same"
    if same and any(s != 1 for s in layer.strides):
        raise ModelError(
            f"layer {layer.name!r}: torch pads strided convolutions otherwise; use ZeroPadding2D"
        )
    return F.conv2d(x, kernel, bias, layer.strides, "same" if same else 0)


def _dense(layer, x, kernel, bias=None):
    return F.linear(x, kernel, bias)


def _zero_padding(layer, x):
    (top, bottom), (left, right) = layer.padding
    return F.pad(x, (left, right, top, bottom))


def _max_pooling(layer, x):
    return F.max_pool2d(x, layer.pool_size, layer.strides)


def _flatten(layer, x):
    """Values in Keras's order, channels last."""
    return (x.movedim(1, -1) if x.ndim > 2 else x).flatten(1)


# Keras's layer -> function of it, its input (channels before height and width) and its weights as torch has them.
OPERATIONS = {
    keras.layers.Conv2D: _conv,
    keras.layers.Dense: _dense,
    keras.layers.ZeroPadding2D: _zero_padding,
    keras.layers.MaxPooling2D: _max_pooling,
    keras.layers.ReLU: lambda layer, x: F.relu(x),
    keras.layers.Flatten: _flatten,
    keras.layers.GlobalAveragePooling2D: lambda layer, x: x.mean((2, 3)),
    keras.layers.Add: lambda layer, x: sum(x),
}

ACTIVATIONS = {
    None: lambda t: t,
    keras.activations.linear: lambda t: t,
    keras.activations.relu: F.relu,
}


class AsTorch(torch.nn.Module):
    """A functional Keras model as a torch module with a copy of its weights.

    Takes and returns what the Keras model does: images [n, H, W, channels] to outputs [n, C]. Raises
    `srel_tf.ModelError` for layers that are not in `OPERATIONS`, or activations not in `ACTIVATIONS`.
    """

    def __init__(self, model):
        super().__init__()
        for layer in model.layers[1:]:
            if (
                type(layer) not in OPERATIONS
                or getattr(layer, "activation", None) not in ACTIVATIONS
            ):
                raise ModelError(
                    f"layer {layer.name!r} of type {type(layer).__name__} has no counterpart in torch here"
                )
        self._model = model
        self.kernels = torch.nn.ParameterDict()
        for layer in model.layers:
            for k, w in enumerate(layer.get_weights()):
                axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[w.ndim]
                self.kernels[_key(layer, k)] = torch.nn.Parameter(
                    torch.tensor(w.transpose(axes))
                )

    def forward(self, x):
        values = {id(self._model.inputs[0]): x.movedim(-1, 1).contiguous()}
        for layer in self._model.layers[1:]:
            inputs = (
                [values[id(t)] for t in layer.input]
                if isinstance(layer.input, list)
                else values[id(layer.input)]
            )
            weights = [self.kernels[_key(layer, k)] for k in range(len(layer.weights))]
            outputs = OPERATIONS[type(layer)](layer, inputs, *weights)
            values[id(layer.output)] = ACTIVATIONS[getattr(layer, "activation", None)](
                outputs
            )
        return values[id(self._model.outputs[0])]


def _key(layer, k):
    return f"{layer.name}-{k}"


class Recipes:
    """The two recipes on a Keras model and its probe; η is the learning rate of the step."""

    def __init__(self, model, x, y, learning_rate):
        self._module = AsTorch(model)
        self._weights = {
            name: p.detach() for name, p in self._module.named_parameters()
        }
        self._x, self._y, self._eta = torch.tensor(x), torch.tensor(y), learning_rate

    def use_faster_threads(self):
        """Give torch one thread or as many as it had, whichever makes a source's step faster: their number.

        Where cores are shared with other work, threads that wait for each other cost more than they bring.
        """
        times = {}
        for threads in {1, torch.get_num_threads()}:
            torch.set_num_threads(threads)
            times[threads] = min(
                seconds(lambda: self._after(self._x[0], self._y[0])) for _ in range(3)
            )
        best = min(times, key=times.get)
        torch.set_num_threads(best)
        return best

    def forward(self):
        """f(x), [n, C]."""
        with torch.no_grad():
            return self._outputs(self._weights, self._x)

    def exact_loop(self):
        """Outputs after each source's step [n, n, C]: a Python loop over sources."""
        rows = [self._after(x, y) for x, y in zip(self._x, self._y, strict=True)]
        return torch.stack(rows).numpy()

    def exact_vmap(self):
        """The same, `vmap` over the sources, CHUNK of them at a time."""
        return vmap(self._after, chunk_size=CHUNK)(self._x, self._y).numpy()

    def limit(self):
        """δ [n_s, n_t, C] = −J ∇ℓ: per-example gradients, and Jacobians of CHUNK examples at a time, contracted.

        The gradients of all sources are held (n weights' worth), the Jacobians never all at once: they are used up
        as they come. That saves memory against the tutorial's kernel, and a factor C of its products.
        """
        gradients = vmap(grad(self._loss), (None, 0, 0), chunk_size=CHUNK)(
            self._weights, self._x, self._y
        )
        jacobian = vmap(jacrev(self._one_output), (None, 0))
        columns = []
        for x in self._x.split(CHUNK):
            j = jacobian(self._weights, x)
            by_weight = [
                torch.einsum("sp,tcp->stc", gradients[k].flatten(1), j[k].flatten(2))
                for k in self._weights
            ]
            columns.append(-sum(by_weight))
        return torch.cat(columns, dim=1).numpy()

    def _outputs(self, weights, x):
        return functional_call(self._module, weights, (x,))

    def _one_output(self, weights, x):
        return self._outputs(weights, x[None])[0]

    def _loss(self, weights, x, y):
        return F.cross_entropy(self._outputs(weights, x[None]), y[None])

    def _after(self, x, y):
        gradients = grad(self._loss)(self._weights, x, y)
        return self._outputs(
            {k: w - self._eta * gradients[k] for k, w in self._weights.items()}, self._x
        )
