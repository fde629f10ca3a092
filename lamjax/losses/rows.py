"""Predictions of a batch, row by row, and two ways to differentiate their forces by the parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from lamjax import numerics, pytree
from lamjax import potential as potentials
from lamjax import system as systems
from lamjax.arguments import ArgumentError, describe
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential, Prediction
from lamjax.relaxation.surface import instantiated, is_perturbed, values
from lamjax.system import System

VARIABLES = ("positions", "cell", "fparam", "aparam")  # of a structure; derivatives by them exist


def predict_rows(potential: Potential, params: PyTree, batch: Any) -> Prediction:
    """The predictions of a batch (`data.Batch`), row by row.

    Derivatives of forces are reverse over reverse, or, of a potential whose `atomic_energies.forward_over_reverse` is
    true, forward over reverse: the same numbers, and nothing of the first derivative is kept for the second. Of those
    JAX refuses `jax.jvp` (TypeError); gradients, and `jax.jvp` of gradients, are there, and `jax.jvp` of `predict`.
    """
    if not hasattr(batch, "frame") or not hasattr(batch, "neighbors"):
        raise ArgumentError(
            f"A loss of labels takes a batch of frames, got {describe(batch)}. Batches come from data.batches(packed), "
            "and packed is data.pack(frames, data.plan(frames, potential.shells))."
        )
    if not getattr(potential.atomic_energies, "forward_over_reverse", False):
        return _predictions(potential, params, batch.system, batch.neighbors)
    variables = {name: x for name in VARIABLES if (x := getattr(batch.system, name)) is not None}
    constants = batch.system._replace(**dict.fromkeys(VARIABLES))
    variables = {"params": params} | jax.tree.map(jnp.asarray, variables)
    return _forward_over_reverse(potential, variables, constants, batch.neighbors)


def _predictions(potential: Potential, params: PyTree, system: System, neighbors: Neighbors) -> Prediction:
    return _over_rows(partial(potentials.predict, potential, params))(system, neighbors)


def _over_rows(function: Callable) -> Callable:
    """`jax.vmap`; one row is evaluated without a further axis."""

    def mapped(system: System, *arrays: PyTree) -> PyTree:
        if len(system.positions) > 1:
            return jax.vmap(function)(system, *arrays)
        return jax.tree.map(lambda x: x[None], function(*pytree.take((system, *arrays), 0)))

    return mapped


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward_over_reverse(potential: Potential, variables: dict, constants: System, neighbors: Neighbors) -> Prediction:
    """The predictions; the pullback of force cotangents f is -∇(f·∇E), the forward derivative of a reverse one."""
    return _predictions(potential, variables["params"], _with(constants, variables), neighbors)


def _with(constants: System, variables: dict) -> System:
    return constants._replace(**{name: x for name, x in variables.items() if name != "params"})


def _forward(potential: Potential, *arguments: PyTree) -> tuple[Prediction, tuple]:
    wanted = {name: () for name, x in arguments[0].items() if is_perturbed(x)}
    variables, constants, neighbors = values(arguments)
    predictions = _predictions(potential, variables["params"], _with(constants, variables), neighbors)
    return predictions, (wanted, variables, constants, neighbors)


def _backward(potential: Potential, residuals: tuple, cotangent: Prediction) -> tuple[dict, None, None]:
    wanted, variables, constants, neighbors = residuals
    cotangent = instantiated(cotangent)
    positions, cell = variables["positions"], variables["cell"]

    def gradient(moved: Any, epsilon: Any, share: Any) -> dict:
        """Gradient of Σ E at moved and strained structures, and of the cotangents' own Σ Ē E + Σ ē e times `share`."""

        def total(chosen: dict) -> Any:
            at = variables | chosen
            system = _with(constants, at)
            system = system._replace(positions=system.positions + moved)

            def energies(system: System, neighbors: Neighbors, epsilon: Any) -> tuple:
                strained = systems.strain(system, epsilon)
                atomic = potentials.atomic_energies(potential, at["params"], strained, neighbors)
                return systems.of_structures(system, atomic.astype(numerics.widest_float())), atomic

            of_structures, of_atoms = _over_rows(energies)(system, neighbors, epsilon)
            weighted = jnp.sum(cotangent.energy * of_structures) + jnp.sum(cotangent.atomic_energies * of_atoms)
            return jnp.sum(of_structures) + share * weighted

        return jax.grad(total)({name: variables[name] for name in wanted})

    share = jnp.zeros((), numerics.widest_float())
    along = (-cotangent.forces.astype(positions.dtype), -cotangent.virial.astype(cell.dtype), jnp.ones_like(share))
    _, change = jax.jvp(gradient, (jnp.zeros_like(positions), jnp.zeros_like(cell), share), along)
    return jax.tree.map(jnp.zeros_like, variables) | change, None, None


_forward_over_reverse.defvjp(_forward, _backward, symbolic_zeros=True)
