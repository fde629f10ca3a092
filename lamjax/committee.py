"""Several members of one form, their parameters stacked: how much they disagree is what none of them knows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lamjax import numerics, pytree
from lamjax import system as systems
from lamjax.arguments import ArgumentError, describe
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential, Prediction, predict
from lamjax.system import System


class Deviation(NamedTuple):
    """Deviations of the members of a committee from their mean, for one structure or several."""

    largest: Float[Array, "*structures"]  # eV/Å, force deviation of the atom where it is largest
    mean: Float[Array, "*structures"]  # eV/Å, mean force deviation of an atom
    energy: Float[Array, "*structures"]  # eV/atom, standard deviation of the energy per atom


def stack_members(members: Sequence) -> Any:
    """The parameters of several models of one config as one tree with a leading axis of members.

    Raises ValueError where there are none, and where they are of different configs.
    """
    if not isinstance(members, list | tuple) or hasattr(members, "_fields") or not members:
        raise ArgumentError(
            f"stack_members takes a list of the parameters of each member, got {describe(members)}. For example "
            "stack_members([params, params_of_another]); list(...) takes an iterator."
        )
    shapes = [jax.tree.map(jnp.shape, member) for member in members]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("The members of a committee must be models of one config: their parameters differ in shape.")
    return pytree.stack(list(members))


def members_predict(potential: Potential, stacked_params: PyTree, system: System, neighbors: Neighbors) -> Prediction:
    """The predictions of all members, with a leading axis of members: one program, whatever their number."""
    return jax.vmap(lambda params: predict(potential, params, system, neighbors))(stacked_params)


def committee_deviation(
    potential: Potential,
    stacked_params: PyTree,
    system: System,
    neighbors: Neighbors,
    predicted: Prediction | None = None,
) -> Deviation:
    """Maximum and mean over the atoms of sqrt(<|F_i - <F_i>|²>), the averages over the members (eV/Å).

    `stacked_params` as from `stack_members`. `predicted` stands in for `members_predict`, where it is there already.
    The definition is that of DP-GEN: Zhang et al., Comput. Phys. Commun. 253, 107206 (2020), eq. 2.
    """
    predictions = members_predict(potential, stacked_params, system, neighbors) if predicted is None else predicted
    spread = numerics.safe_sqrt(jnp.sum(jnp.var(predictions.forces, axis=0), axis=-1))
    spread = jnp.where(
        jnp.any(jnp.isnan(predictions.forces), axis=(0, 2)), jnp.nan, spread
    )  # safe_sqrt takes NaN for 0
    spread = jnp.where(systems.real(system), spread, 0)
    n_atoms = jnp.maximum(systems.of_structures(system, systems.real(system).astype(spread.dtype)), 1)
    return Deviation(
        largest=_largest(system, spread),
        mean=systems.of_structures(system, spread) / n_atoms,
        energy=jnp.std(predictions.energy, axis=0) / n_atoms,
    )


def _largest(system: System, values: Float[Array, " n_atoms"]) -> Float[Array, "*structures"]:
    """The largest value of an atom of each structure; 0 where there is none."""
    if system.structure is None:
        return jnp.max(values, initial=0)
    largest = jax.ops.segment_max(values, system.structure, len(system.cell), indices_are_sorted=True)
    return jnp.maximum(largest, 0)
