"""The loss of a student: energies, forces and virials of its teacher, and changes of the forces."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from pydantic import Field

from lamjax import numerics
from lamjax import system as systems
from lamjax.arguments import expect
from lamjax.config import configuration
from lamjax.factories import factory
from lamjax.losses.labels import LabelLossConfig, Loss, compare
from lamjax.losses.rows import predict_rows
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential, check_potential, predict
from lamjax.system import Labels, System


@configuration
class DistillationLossConfig:
    """The loss on the teacher's answers, and the prefactor (start, limit) of its Hessian-vector products."""

    labels: LabelLossConfig = LabelLossConfig()
    start_pref_h: Annotated[float, Field(description="prefactor of the Hessian-vector products at first")] = 0.0
    limit_pref_h: Annotated[float, Field(description="the same as the learning rate falls to zero")] = 0.0


class Probed(NamedTuple):
    """A batch (`data.Batch`) whose labels are the teacher's answers, and how its forces change along directions."""

    batch: Any
    directions: Float[Array, "rows n_atoms 3"]  # v, no unit
    products: Float[Array, "rows n_atoms 3"]  # the teacher's dF/dx v = -H v, eV/Å²

    @property
    def frame(self) -> Array:
        """The numbers of the frames in the batch."""
        return self.batch.frame


@factory
def distillation_loss(potential: Potential, config: DistillationLossConfig = DistillationLossConfig()) -> Loss:
    """Label loss of the teacher's answers + p_h · mean over the probed structures of |(H - H_teacher) v|²/3N.

    The teacher's energies, forces and virials are labels as any others: that part is `label_loss`, its forms, weights
    and metrics. Of a `Probed` batch also the change of the forces along v counts (eV²/Å⁴); for directions as
    `probe_directions` draws them the mean over v of |ΔH v|² is the squared Frobenius norm of ΔH. p_h follows the
    learning rate as the other prefactors do. Further metrics: product_sq, product_abs, product_n (sums).
    """
    check_potential(potential, "distillation_loss")
    remedy = "A LabelLossConfig goes into it: DistillationLossConfig(labels=LabelLossConfig(...))."
    expect(config, DistillationLossConfig, "distillation_loss takes a DistillationLossConfig second", remedy)

    def loss(params: PyTree, batch: Any, lr_ratio: float | Array = 1.0) -> tuple[Array, dict[str, Array]]:
        labelled = batch.batch if isinstance(batch, Probed) else batch
        total, metrics = compare(config.labels, predict_rows(potential, params, labelled), labelled, lr_ratio)
        if not isinstance(batch, Probed):
            return total, metrics
        value, more = _products(potential, params, batch)
        factor = config.limit_pref_h + (config.start_pref_h - config.limit_pref_h) * lr_ratio
        return total + factor * value, {**metrics, **more}

    return loss


def force_change(
    potential: Potential, params: PyTree, system: System, neighbors: Neighbors, directions: Float[Array, "n_atoms 3"]
) -> Float[Array, "n_atoms 3"]:
    """dF/dx v = -H v (eV/Å² for v without unit): forward derivative of the forces along v; costs two evaluations."""

    def forces(positions: Array) -> Array:
        return predict(potential, params, system._replace(positions=positions), neighbors).forces

    positions = jnp.asarray(system.positions)
    return jax.jvp(forces, (positions,), (jnp.asarray(directions, positions.dtype),))[1]


def probe_directions(key: Array, system: System) -> Float[Array, "*rows n_atoms 3"]:
    """v ~ N(0, 1) for every component of every atom, 0 for padding."""
    positions = jnp.asarray(system.positions)
    drawn = jax.random.normal(key, positions.shape, positions.dtype)
    return jnp.where(systems.real(system)[..., None], drawn, 0)


def probe(potential: Potential, params: PyTree, batch: Any, key: Array) -> Probed:
    """The batch with the answers of a teacher (its `potential` and `params`) for labels, probed along random v.

    The neighbours of the batch must be those of the teacher and of the student: one cutoff for both.
    """
    directions = probe_directions(key, batch.system)
    predicted = predict_rows(potential, params, batch)
    products = _rows(potential, params, batch, directions)
    is_frame = jnp.broadcast_to(jnp.asarray(batch.frame)[..., None] >= 0, batch.labels.weights.shape)
    weights = is_frame.astype(predicted.forces.dtype)
    labels = Labels(predicted.energy, predicted.forces, predicted.virial, weights)
    return Probed(batch._replace(labels=labels), directions, products)


def _rows(potential: Potential, params: PyTree, batch: Any, directions: Array) -> Array:
    """dF/dx v of the rows of a batch."""
    return jax.vmap(lambda system, neighbors, v: force_change(potential, params, system, neighbors, v))(
        batch.system, batch.neighbors, directions
    )


def _products(potential: Potential, params: PyTree, probed: Probed) -> tuple[Array, dict[str, Array]]:
    """Mean over the structures of the squared difference of a component, and sums for the metrics."""
    batch = probed.batch
    different = _rows(potential, params, batch, probed.directions) - probed.products
    different = jnp.where(systems.real(batch.system)[..., None], different, 0)
    square = jax.vmap(systems.of_structures)(batch.system, jnp.sum(different**2, axis=-1))
    n_atoms = jax.vmap(systems.of_structures)(batch.system, systems.real(batch.system).astype(square.dtype))
    length = jax.vmap(systems.of_structures)(batch.system, jnp.sum(probed.directions**2, axis=-1))
    n_atoms = jnp.where(length > 0, n_atoms, 0)  # a structure without a direction is not probed
    per_component = square / (3 * jnp.maximum(n_atoms, 1))
    wide = jax.lax.stop_gradient(different).astype(numerics.widest_float())
    return jnp.sum(per_component) / jnp.maximum(jnp.sum(n_atoms > 0), 1), {
        "product_sq": jnp.sum(wide**2),
        "product_abs": jnp.sum(jnp.abs(wide)),
        "product_n": 3 * jnp.sum(n_atoms),
    }
