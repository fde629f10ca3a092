"""The loss on energies, forces and virials, with DeePMD-kit's forms and prefactors that follow the learning rate."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lamjax import numerics
from lamjax import system as systems
from lamjax.potential import Potential, Prediction, predict

TERMS = ("energy", "forces", "virial")
# (params, batch, lr_ratio=1.0) -> (scalar, metrics): sums over the batch that may be added up over batches
Loss = Callable[..., tuple[Array, dict[str, Array]]]


@dataclass(frozen=True)
class LabelLossConfig:
    """Keys, defaults and meanings are those of DeePMD-kit's `loss` of type "ener".

    p = limit + (start - limit) lr/lr_start. A term whose prefactors are both 0 is left out.
    """

    type: Literal["ener"] = "ener"
    start_pref_e: float = 0.02
    limit_pref_e: float = 1.0
    start_pref_f: float = 1000.0
    limit_pref_f: float = 1.0
    start_pref_v: float = 0.0
    limit_pref_v: float = 0.0
    loss_func: Literal["mse", "mae"] = "mse"
    use_huber: bool = False
    huber_delta: float | tuple[float, float, float] = 0.01  # of energy/N (eV), forces (eV/Å), virial/N (eV)
    relative_f: float | None = None  # eV/Å; force errors are divided by |F_label| + relative_f
    f_use_norm: bool = False  # the error of a force is the length of its difference (mae and huber only)
    intensive_ener_virial: bool = False  # mse: energy and virial terms with 1/N² instead of 1/N
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.f_use_norm and self.loss_func == "mse" and not self.use_huber:
            raise ValueError('f_use_norm needs loss_func "mae" or use_huber.')
        if self.loss_func == "mae" and self.use_huber:
            raise ValueError('use_huber is a form of the "mse" loss: set loss_func to "mse" or use_huber to false.')

    @property
    def prefactors(self) -> tuple[tuple[float, float], ...]:
        """(start, limit) of energy, forces and virial."""
        return (
            (self.start_pref_e, self.limit_pref_e),
            (self.start_pref_f, self.limit_pref_f),
            (self.start_pref_v, self.limit_pref_v),
        )


class Differences(NamedTuple):
    """Prediction minus label of one structure; padding is zero."""

    energy: Float[Array, ""]  # eV
    forces: Float[Array, "n_atoms 3"]  # eV/Å
    virial: Float[Array, "3 3"]  # eV


def label_loss(potential: Potential, config: LabelLossConfig = LabelLossConfig()) -> Loss:
    """Σ_k p_k mean over the frames with label k of the frame's term k; 0 where no frame has it.

    The loss takes (params, batch, lr_ratio): `lr_ratio` = lr/lr_start sets the prefactors. Its metrics are sums of
    absolute and squared errors and their numbers (energy and virial per atom), made readable by `errors`.
    """

    def loss(params, batch, lr_ratio=1.0):
        predictions = jax.vmap(lambda system, neighbors: predict(potential, params, system, neighbors))(
            batch.system, batch.neighbors
        )
        return compare(config, predictions, batch, lr_ratio)

    return loss


def compare(
    config: LabelLossConfig, predictions: Prediction, batch, lr_ratio=1.0, prefactors=None
) -> tuple[Array, dict[str, Array]]:
    """The loss and metrics of predictions that are already there, for a batch with a leading axis.

    `prefactors` (3, 2), (start, limit) of energy, forces and virial, stands in for those of the config.
    """
    real = systems.real(batch.system)
    differences = Differences(
        predictions.energy - batch.labels.energy,
        jnp.where(real[..., None], predictions.forces - batch.labels.forces, 0),
        predictions.virial - batch.labels.virial,
    )
    n_atoms = jnp.maximum(jnp.sum(real, axis=-1), 1).astype(differences.energy.dtype)
    terms = jax.vmap(functools.partial(_terms, config))(differences, batch.labels.forces, real, n_atoms)
    weights = batch.labels.weights
    means = jnp.stack([_mean(term, w) for term, w in zip(terms, weights.T, strict=True)])
    start, limit = (np.array(config.prefactors) if prefactors is None else prefactors).T
    total = jnp.sum((limit + (start - limit) * lr_ratio) * means)
    return total, _sums(differences, weights, jnp.sum(real, axis=-1), systems.volume(batch.system))


def errors(sums: Mapping[str, Any]) -> dict[str, float]:
    """RMSE and MAE of metrics: rmse_e (eV/atom), rmse_f (eV/Å), rmse_v (eV/atom), rmse_s (stress, eV/Å³), mae_...

    What has no label is absent.
    """
    found = {}
    for name in (*TERMS, "stress"):
        n = float(sums[f"{name}_n"])
        if n > 0:
            found[f"rmse_{name[0]}"] = float((sums[f"{name}_sq"] / n) ** 0.5)
            found[f"mae_{name[0]}"] = float(sums[f"{name}_abs"] / n)
    return found


def _terms(config: LabelLossConfig, d: Differences, label_forces, real, n):
    """The frame's energy, force and virial terms, before prefactors and label weights."""
    forces = d.forces
    if config.relative_f is not None:
        forces = forces / (numerics.safe_norm(label_forces, keepdims=True) + config.relative_f)
    if config.f_use_norm:
        forces = numerics.safe_norm(forces, keepdims=True)

    def force_mean(x):
        return jnp.sum(jnp.where(real[:, None], x, 0)) / (n * x.shape[-1])

    if config.use_huber:
        deltas = config.huber_delta if isinstance(config.huber_delta, tuple) else (config.huber_delta,) * 3
        e, f, v = (_huber(x, delta) for x, delta in zip((d.energy / n, forces, d.virial / n), deltas, strict=True))
        return e, force_mean(f), jnp.mean(v)
    if config.loss_func == "mae":
        return jnp.abs(d.energy) / n, force_mean(jnp.abs(forces)), jnp.mean(jnp.abs(d.virial)) / n
    scale = n * n if config.intensive_ener_virial else n
    return d.energy**2 / scale, force_mean(forces**2), jnp.mean(d.virial**2) / scale


def _huber(x, delta: float):
    """x²/2 up to delta, linear beyond."""
    size = jnp.abs(x)
    return jnp.where(size <= delta, 0.5 * x * x, delta * (size - 0.5 * delta))


def _mean(terms: Float[Array, " batch"], weights: Float[Array, " batch"]):
    """Weighted mean over the frames that carry the label; 0 if none does."""
    labelled = weights > 0
    total = jnp.sum(jnp.where(labelled, weights * jnp.where(labelled, terms, 0), 0))
    return total / jnp.maximum(jnp.sum(labelled), 1)


def _sums(differences: Differences, weights, n_atoms, volumes) -> dict[str, Array]:
    """Sums of absolute and squared errors over labelled frames, and how many numbers they hold."""
    n = jnp.maximum(n_atoms, 1).astype(differences.energy.dtype)
    per_atom = (
        (differences.energy / n)[:, None],
        differences.forces.reshape(len(n), -1),
        (differences.virial / n[:, None, None]).reshape(len(n), -1),
        (differences.virial / jnp.where(volumes > 0, volumes, 1)[:, None, None]).reshape(len(n), -1),
    )
    nine = jnp.full_like(n_atoms, 9)
    widths = (jnp.ones_like(n_atoms), 3 * n_atoms, nine, nine)
    weights = (*weights.T, jnp.where(volumes > 0, weights[:, 2], 0))
    sums = {}
    for name, x, width, w in zip((*TERMS, "stress"), jax.lax.stop_gradient(per_atom), widths, weights, strict=True):
        x = jnp.where((w > 0)[:, None], x, 0).astype(numerics.widest_float())
        sums[f"{name}_abs"] = jnp.sum(jnp.abs(x))
        sums[f"{name}_sq"] = jnp.sum(x * x)
        sums[f"{name}_n"] = jnp.sum(jnp.where(w > 0, width, 0))
    return sums
