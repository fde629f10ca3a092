"""Force fields of the mlip package (MACE, NequIP, ViSNet, eSEN in JAX) as potentials, and back; extra `lamjax[mlip]`.

A force field's own parameters, under its own names, are those of the potential.
"""

from dataclasses import replace
from typing import Any, ClassVar

import ase.data
import jax
import jax.numpy as jnp

from lamjax.arguments import ArgumentError, describe
from lamjax.factories import factory
from lamjax.neighbors import Neighbors, Shell
from lamjax.potential import Potential
from lamjax.system import System, of_atoms, transform

FAR = 1e3  # Å; where the atom lies that empty slots point to


class _Fixed:
    """A force field as it was given; equal to itself alone."""

    type: ClassVar[str] = "force field of mlip"

    def __init__(self, force_field: Any) -> None:
        self.force_field = force_field


def from_mlip(force_field: Any) -> tuple[Potential, Any]:
    """(potential, params) of a `mlip.models.ForceField`; `params` are the force field's own.

    Energies are eV, as mlip's data sets have them. Raises ArgumentError for anything else, and ValueError for a model
    with a Coulomb term between all atoms, which is no sum over neighbours within a cutoff.
    """
    network = getattr(getattr(force_field, "predictor", None), "mlip_network", None)
    if network is None:
        raise ArgumentError(
            f"from_mlip takes a mlip.models.ForceField, got {describe(force_field)}. One is made by "
            "mlip.models.model_io.load_model_from_zip(Mace, path) or ForceField.from_mlip_network(network)."
        )
    if getattr(network.config, "use_coulomb_term", False):
        raise ValueError(
            "This model of mlip has a Coulomb term between all atoms (use_coulomb_term), which is no sum over "
            "neighbours within a cutoff. Models without it can be opened."
        )
    return _build(_Fixed(force_field)), force_field.params


def to_mlip(potential: Potential, params: Any) -> Any:
    """The `ForceField` that the potential was made of, with these parameters."""
    if not isinstance(potential.config, _Fixed):
        raise ArgumentError(f"to_mlip takes a potential that from_mlip made, got {describe(potential)}.")
    return replace(potential.config.force_field, params=params)


@factory
def _build(config: _Fixed) -> Potential:
    from mlip.models import ForceField

    force_field = config.force_field
    network = force_field.predictor.mlip_network
    info = network.dataset_info
    elements = tuple(ase.data.chemical_symbols[z] for z in info.allowed_atomic_numbers)
    first = int(info.allowed_atomic_numbers[0])

    def init(key: Any = None, dtype: Any = None) -> Any:
        seed = 0 if key is None else int(jax.random.randint(key, (), 0, 2**31 - 1))
        params = ForceField.init(force_field.predictor, seed=seed).params
        floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda x: jnp.asarray(x, dtype if dtype and floating(x) else x.dtype), params)

    def atomic_energies(params: Any, system: System, neighbors: Neighbors) -> jax.Array:
        leaf = next(x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating))
        graph = force_field._apply_inference_context(_graph(system, neighbors, first, leaf.dtype))
        known = {"params": params["params"]["mlip_network"]}
        energies = network.apply(known, graph).nodes.features["energy"][:-1]
        return jnp.where(system.numbers > 0, energies, 0)

    atomic_energies.finite_alone = True  # every atom has an edge to the one that is far away
    return Potential(config, (Shell(float(info.graph_cutoff_angstrom)),), init, atomic_energies, elements)


def _graph(system: System, neighbors: Neighbors, first: int, dtype: Any) -> Any:
    """One graph of all atoms, however many structures: the shift of every edge is a vector of its own.

    An edge leads from an atom to its neighbour, atom by atom, and every pair is there in both directions, as mlip wants
    it. Behind the atoms comes one that is no atom, far away, in a graph of its own: empty slots lead to it.
    """
    from mlip.graph import EdgeOrdering, Graph, GraphEdges, GraphGlobals, GraphNodes

    n, width = neighbors.indices.shape
    cell = jnp.asarray(system.cell)
    shifts = transform(neighbors.images.astype(cell.dtype), of_atoms(system, cell))
    positions = jnp.asarray(system.positions)
    away = jax.lax.stop_gradient(positions[:1]) + FAR
    numbers = jnp.concatenate([jnp.where(system.numbers > 0, system.numbers, first), jnp.full(1, first)])
    return Graph(
        nodes=GraphNodes(positions=jnp.concatenate([positions, away]).astype(dtype), atomic_numbers=numbers),
        edges=GraphEdges(shifts=jnp.where(neighbors.mask[..., None], shifts, 0).reshape(-1, 3).astype(dtype)),
        globals=GraphGlobals(cell=jnp.broadcast_to(jnp.eye(3, dtype=dtype), (2, 3, 3)), weight=jnp.ones(2, dtype)),
        n_node=jnp.asarray([n, 1]),
        n_edge=jnp.asarray([n * width, 0]),
        senders=jnp.repeat(jnp.arange(n), width),
        receivers=jnp.where(neighbors.mask, neighbors.indices, n).reshape(-1),
        ordering=EdgeOrdering.SENDER,
    )
