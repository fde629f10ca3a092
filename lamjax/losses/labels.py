"""The loss on energies, forces and virials, with DeePMD-kit's forms and prefactors that follow the learning rate."""

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from pydantic import Field

from lamjax import numerics
from lamjax import system as systems
from lamjax.arguments import expect
from lamjax.config import configuration
from lamjax.factories import factory
from lamjax.losses.rows import predict_rows
from lamjax.potential import Potential, Prediction, check_potential
from lamjax.system import Labels, System

TERMS = ("energy", "forces", "virial")
# (params, batch, lr_ratio=1.0) -> (scalar, metrics): sums over the batch that may be added up over batches
Loss = Callable[..., tuple[Array, dict[str, Array]]]


@configuration
class LabelLossConfig:
    """Keys, defaults and meanings are those of DeePMD-kit's `loss` of type "ener".

    p = limit + (start - limit) lr/lr_start. A term whose prefactors are both 0 is left out.
    """

    type: Literal["ener"] = "ener"
    start_pref_e: Annotated[float, Field(ge=0)] = 0.02
    limit_pref_e: Annotated[float, Field(ge=0)] = 1.0
    start_pref_f: Annotated[float, Field(ge=0)] = 1000.0
    limit_pref_f: Annotated[float, Field(ge=0)] = 1.0
    start_pref_v: Annotated[float, Field(ge=0)] = 0.0
    limit_pref_v: Annotated[float, Field(ge=0)] = 0.0
    loss_func: Literal["mse", "mae"] = "mse"
    use_huber: bool = False
    huber_delta: Annotated[
        float | tuple[float, float, float], Field(description="of energy/N (eV), forces (eV/Å), virial/N (eV)")
    ] = 0.01
    relative_f: Annotated[
        float | None, Field(description="eV/Å; force errors are divided by |F_label| + relative_f")
    ] = None
    f_use_norm: Annotated[
        bool, Field(description="the error of a force is the length of its difference (mae and huber only)")
    ] = False
    intensive_ener_virial: Annotated[
        bool, Field(description="mse: energy and virial terms with 1/N² instead of 1/N")
    ] = False

    def __post_init__(self) -> None:
        if not np.all(np.asarray(self.huber_delta) > 0):
            raise ValueError(f"huber_delta must be above 0, got {self.huber_delta}.")
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
    """Prediction minus label of the structures of one list of atoms; padding is zero."""

    energy: Float[Array, " structures"]  # eV
    forces: Float[Array, "n_atoms 3"]  # eV/Å
    virial: Float[Array, "structures 3 3"]  # eV


@factory
def label_loss(potential: Potential, config: LabelLossConfig = LabelLossConfig()) -> Loss:
    """Σ_k p_k mean over the frames with label k of the frame's term k; 0 where no frame has it.

    The loss takes (params, batch, lr_ratio): `lr_ratio` = lr/lr_start sets the prefactors. Its metrics are sums of
    absolute and squared errors and their numbers (energy and virial per atom), made readable by `errors`.
    """
    check_potential(potential, "label_loss")
    expect(config, LabelLossConfig, "label_loss takes a LabelLossConfig second", "Leave it out for the defaults.")

    def loss(params: PyTree, batch: Any, lr_ratio: float | Array = 1.0) -> tuple[Array, dict[str, Array]]:
        return compare(config, predict_rows(potential, params, batch), batch, lr_ratio)

    return loss


def compare(
    config: LabelLossConfig,
    predictions: Prediction,
    batch: Any,
    lr_ratio: float | Array = 1.0,
    prefactors: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The loss and metrics of predictions that are already there, for a batch with a leading axis of rows.

    `prefactors` (3, 2), (start, limit) of energy, forces and virial, stands in for those of the config.
    """
    terms, sums = jax.vmap(functools.partial(_row, config))(predictions, batch.system, batch.labels)
    weights = batch.labels.weights.reshape(-1, len(TERMS))
    means = jnp.stack([_mean(term.ravel(), w) for term, w in zip(terms, weights.T, strict=True)])
    start, limit = (np.array(config.prefactors) if prefactors is None else prefactors).T
    total = jnp.sum((limit + (start - limit) * lr_ratio) * means)
    return total, {key: jnp.sum(x) for key, x in sums.items()}


def errors(sums: Mapping[str, Any]) -> dict[str, float]:
    """RMSE and MAE of metrics: rmse_e (eV/atom), rmse_f (eV/Å), rmse_v (eV/atom), rmse_s (stress, eV/Å³), mae_...

    What has no label is absent. Raises ValueError for metrics that are no such sums.
    """
    if missing := [name for name in (*TERMS, "stress") if f"{name}_n" not in sums]:
        raise ValueError(
            f"RMSE and MAE are made of the sums that a loss of labels returns; {missing[0]}_n is not among "
            f"{', '.join(sorted(sums)) or 'nothing'}. Take losses.label_loss(potential); the metrics of other losses "
            "are errors already: training.summary averages them, losses.structure_error measures relaxations."
        )
    by_name = {}
    for name in (*TERMS, "stress"):
        n = float(sums[f"{name}_n"])
        if n > 0:
            by_name[f"rmse_{name[0]}"] = float((sums[f"{name}_sq"] / n) ** 0.5)
            by_name[f"mae_{name[0]}"] = float(sums[f"{name}_abs"] / n)
    return by_name


def _row(
    config: LabelLossConfig, predicted: Prediction, system: System, labels: Labels
) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
    """Terms of the structures of one row, before prefactors and weights, and its sums of errors."""
    real = systems.real(system)
    differences = Differences(
        predicted.energy - labels.energy,
        jnp.where(real[:, None], predicted.forces - labels.forces, 0),
        predicted.virial - labels.virial,
    )
    n_atoms = systems.of_structures(system, real.astype(jnp.int32))
    return _terms(config, differences, labels.forces, system, n_atoms), _sums(differences, labels, system, n_atoms)


def _terms(
    config: LabelLossConfig, d: Differences, label_forces: Array, system: System, n_atoms: Array
) -> tuple[Array, Array, Array]:
    """Energy, force and virial terms of each structure, before prefactors and label weights."""
    n = jnp.maximum(n_atoms, 1).astype(d.energy.dtype)
    forces = d.forces
    if config.relative_f is not None:
        forces = forces / (numerics.safe_norm(label_forces, keepdims=True) + config.relative_f)
    if config.f_use_norm:
        forces = numerics.safe_norm(forces, keepdims=True)

    def force_mean(x: Array) -> Array:
        total = systems.of_structures(system, jnp.sum(jnp.where(systems.real(system)[:, None], x, 0), axis=-1))
        return total / (n * x.shape[-1])

    def mean(x: Array) -> Array:
        return jnp.mean(x, axis=(-2, -1))

    if config.use_huber:
        deltas = config.huber_delta if isinstance(config.huber_delta, tuple) else (config.huber_delta,) * 3
        per_atom = (d.energy / n, forces, d.virial / n[..., None, None])
        e, f, v = (_huber(x, delta) for x, delta in zip(per_atom, deltas, strict=True))
        return e, force_mean(f), mean(v)
    if config.loss_func == "mae":
        return jnp.abs(d.energy) / n, force_mean(jnp.abs(forces)), mean(jnp.abs(d.virial)) / n
    scale = n * n if config.intensive_ener_virial else n
    return d.energy**2 / scale, force_mean(forces**2), mean(d.virial**2) / scale


def _huber(x: Array, delta: float) -> Array:
    """x²/2 up to delta, linear beyond."""
    size = jnp.abs(x)
    return jnp.where(size <= delta, 0.5 * x * x, delta * (size - 0.5 * delta))


def _mean(terms: Float[Array, " batch"], weights: Float[Array, " batch"]) -> Array:
    """Weighted mean over the frames that carry the label; 0 if none does."""
    labelled = weights > 0
    total = jnp.sum(jnp.where(labelled, weights * jnp.where(labelled, terms, 0), 0))
    return total / jnp.maximum(jnp.sum(labelled), 1)


def _sums(d: Differences, labels: Labels, system: System, n_atoms: Array) -> dict[str, Array]:
    """Sums of absolute and squared errors over labelled structures, and how many numbers they hold."""
    n = jnp.maximum(n_atoms, 1).astype(d.energy.dtype)
    volumes = systems.volume(system)
    nine = (*n.shape, 9)
    errors = {
        "energy": (d.energy / n)[..., None],
        "forces": d.forces,
        "virial": d.virial.reshape(nine) / n[..., None],
        "stress": d.virial.reshape(nine) / jnp.where(volumes > 0, volumes, 1)[..., None],
    }
    weights = jnp.moveaxis(labels.weights, -1, 0)
    labelled = dict(zip((*TERMS, "stress"), (*weights, jnp.where(volumes > 0, weights[2], 0)), strict=True))
    sums = {}
    for name, x in errors.items():
        use, width = labelled[name] > 0, 3 * n_atoms if name == "forces" else x.shape[-1]
        sums[f"{name}_n"] = jnp.sum(jnp.where(use, width, 0))
        rows = systems.of_atoms(system, use) if name == "forces" else use
        x = jnp.where(rows[..., None], jax.lax.stop_gradient(x), 0).astype(numerics.widest_float())
        sums[f"{name}_abs"], sums[f"{name}_sq"] = jnp.sum(jnp.abs(x)), jnp.sum(x * x)
    return sums
