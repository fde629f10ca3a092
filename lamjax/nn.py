"""Small networks as init/apply pairs on dicts of arrays. Matrices are (n_in, n_out) and used as `x @ w + b`.

Formulas and initialisation as in DeePMD-kit (dense layers with optional time step and residual).
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree


def normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> Array:
    """N(0, 1), the numbers of jax.random.normal; a few programs serve all shapes, each of which would need its own."""
    return _drawn(jax.random.normal, key, shape, dtype)


def uniform(
    key: Array, shape: tuple[int, ...], dtype: DTypeLike | None = None, low: float = 0.0, high: float = 1.0
) -> Array:
    """Between `low` and `high`, as `normal`."""
    return low + (high - low) * _drawn(jax.random.uniform, key, shape, dtype)


def split(key: Array, n: int = 2) -> tuple:
    """n keys, those of jax.random.split; one program serves all of them."""
    return tuple(_child(key, -(-n // 32) * 32, k) for k in range(n))


def _drawn(sampler: Callable, key: Array, shape: tuple[int, ...], dtype: DTypeLike | None) -> Array:
    """The first of 4096, 65536, ... numbers (they are the same); numpy arrays, except where JAX is tracing."""
    n = math.prod(shape)
    drawn = _draw(
        sampler, 16 ** max(3, -(-max(n - 1, 0).bit_length() // 4)), jax.dtypes.canonicalize_dtype(dtype or float), key
    )
    return (drawn if isinstance(drawn, Tracer) else np.asarray(drawn))[:n].reshape(shape)


@partial(jax.jit, static_argnums=1)
def _child(key: Array, n: int, k: int | Array) -> Array:
    return jax.random.split(key, n)[k]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(sampler: Callable, n: int, dtype: DTypeLike | None, key: Array) -> Array:
    return sampler(key, (n,), dtype)


def linear_init(
    key: Array, n_in: int, n_out: int, bias: bool = True, timestep: bool = False, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """w ~ N(0, 1/sqrt(n_in + n_out)), b ~ N(0, 1), idt ~ N(0.1, 0.001)."""
    keys = split(key, 3)
    params = {"w": normal(keys[0], (n_in, n_out), dtype) / (n_in + n_out) ** 0.5}
    if bias:
        params["b"] = normal(keys[1], (n_out,), dtype)
    if timestep:
        params["idt"] = 0.1 + 0.001 * normal(keys[2], (n_out,), dtype)
    return params


def glorot_init(key: Array, n_in: int, n_out: int, dtype: DTypeLike | None = None) -> dict[str, np.ndarray]:
    """A matrix without bias, uniform in ±sqrt(6/(n_in + n_out))."""
    bound = (6 / (n_in + n_out)) ** 0.5
    return {"w": uniform(key, (n_in, n_out), dtype, -bound, bound)}


def linear(params: PyTree, x: Array) -> Array:
    """x W + b."""
    w = params["w"]
    # as a product of matrices: the gradient with respect to W of anything else is computed from transposed copies
    y = (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1]) if x.ndim > 2 else x @ w
    return y + params["b"] if "b" in params else y


def dense(params: PyTree, x: Array, activation: Callable, resnet: bool = True) -> Array:
    """activation(x W + b) * idt, plus x (or [x, x]) if `resnet` and the width is kept (or doubled)."""
    return finish_dense(params, linear(params, x), x, activation, resnet)


def finish_dense(params: PyTree, preactivation: Array, x: Array, activation: Callable, resnet: bool = True) -> Array:
    """Activation, time step and residual of `dense`, after its matrix product; `x` is None without a residual."""
    y = activation(preactivation)
    if "idt" in params:
        y = y * params["idt"]
    if not resnet or x is None:
        return y
    if y.shape[-1] == x.shape[-1]:
        return x + y
    if y.shape[-1] == 2 * x.shape[-1]:
        return (x[..., None, :] + y.reshape(*y.shape[:-1], 2, x.shape[-1])).reshape(y.shape)
    return y


def mlp_init(
    key: Array, n_in: int, neuron: tuple[int, ...], timestep: bool = False, dtype: DTypeLike | None = None
) -> list[dict[str, Any]]:
    """A chain of dense layers; a time step exists only where the width is kept or doubled."""
    widths = (n_in, *neuron)
    keys = split(key, len(neuron))
    return [
        linear_init(k, a, b, timestep=timestep and b in (a, 2 * a), dtype=dtype)
        for k, a, b in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def mlp(layers: Sequence[PyTree], x: Array, activation: Callable) -> Array:
    """Chain of `dense` with residuals."""
    for layer in layers:
        x = dense(layer, x, activation)
    return x


def layer_norm_init(n: int, dtype: DTypeLike | None = None) -> dict[str, Array]:
    return {"w": jnp.ones(n, dtype), "b": jnp.zeros(n, dtype)}


def layer_norm(params: PyTree, x: Array, eps: float) -> Array:
    """(x - mean)/sqrt(var + eps) * w + b over the last axis, biased variance."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps) * params["w"] + params["b"]


def activation(name: str) -> Callable:
    """The function of an activation name of DeePMD-kit (case-insensitive; "silut:T" takes a threshold)."""
    name = name.lower()
    if match := _SILUT.fullmatch(name):
        return _silut(float(match[1] or 3))
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"activation_function is {name!r}, which is not known; known: {', '.join(sorted(_ACTIVATIONS))}, silut:T."
        )
    return _ACTIVATIONS[name]


def kinks(name: str) -> str | None:
    """The places where the first or second derivative of an activation function jumps; None if it is smooth."""
    name = name.lower()
    if match := _SILUT.fullmatch(name):
        return f"the second derivative jumps at {float(match[1] or 3):g}"
    return {"relu": "the first derivative jumps at 0", "relu6": "the first derivative jumps at 0 and 6"}.get(name)


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _identity(x: Array) -> Array:
    return x


def _silut(threshold: float) -> Callable:
    """silu below the threshold, above it a tanh that continues value and slope; one exponential serves both."""
    sigma = 1 / (1 + math.exp(-threshold))
    slope = sigma * (1 + threshold * (1 - sigma))
    value = threshold * sigma

    def silut(x: Array) -> Array:
        above = x >= threshold
        s = jax.nn.sigmoid(jnp.where(above, 2 * slope * (x - threshold), x))
        return jnp.where(above, 2 * s - 1 + value, x * s)  # tanh(y) = 2 sigmoid(2 y) - 1

    return silut


_SILUT = re.compile(r"(?:silut|custom_silu)(?::([-+.\de]+))?")
_ACTIVATIONS = {
    "tanh": jnp.tanh,
    "gelu": _gelu,
    "gelu_tf": _gelu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "linear": _identity,
    "none": _identity,
}
