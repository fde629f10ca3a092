"""Descriptor and heads become a potential: energy, and from it forces, virial and stress."""

import warnings
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args

import ase
import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree
from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter

from lamjax import neighbors as neighbor_lists
from lamjax import nn, numerics, pytree, summaries, units
from lamjax import system as systems
from lamjax.arguments import ArgumentError, describe, expect
from lamjax.config import configuration
from lamjax.descriptors import (
    DescriptorInput,
    DPA1Config,
    DPA2Config,
    DPA3Config,
    NequIPConfig,
    allowed_pairs,
    dpa1,
    dpa2,
    dpa3,
    mask_excluded,
    nequip,
)
from lamjax.factories import factory
from lamjax.heads import EnergyHeadConfig, energy_head
from lamjax.neighbors import Neighbors, Shell, solitary
from lamjax.system import System

DEFAULT_HEAD = "Default"


class CheckpointError(ValueError):
    """A file is not a model that lamjax can open, or does not fit its config; the message says what was found."""


class Params(NamedTuple):
    """The numbers of a model: one descriptor shared by any number of heads."""

    descriptor: Any
    heads: dict[str, Any]

    def __repr__(self) -> str:
        return summaries.of_params(self)


class Prediction(NamedTuple):
    """The prediction of a potential for one structure or several, with a leading axis for a batch."""

    energy: Float[Array, "*batch_and_structures"]  # eV
    forces: Float[Array, "*batch n_atoms 3"]  # eV/Å
    virial: Float[Array, "*batch_and_structures 3 3"]  # eV, -dE/dstrain = -stress * volume
    atomic_energies: Float[Array, "*batch n_atoms"]  # eV


def _kind(descriptor: Any) -> str | None:
    """The type of a descriptor config; dpa2 where a file leaves it out."""
    return descriptor.get("type", "dpa2") if isinstance(descriptor, dict) else getattr(descriptor, "type", None)


def _checked_descriptor(value: Any) -> Any:
    """The value; ArgumentError for what is neither a descriptor's config nor plain data."""
    if not isinstance(value, (dict, *_configs())):
        raise ArgumentError(f"expected keys and values, got {describe(value)}; supported: {_names(_configs())}.")
    return value


def _checked_heads(value: Any) -> Any:
    """The value; ArgumentError for what are no pairs of names and heads."""
    for pair in value if isinstance(value, tuple) else ():
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], (dict, EnergyHeadConfig)):
            raise ArgumentError(
                f"got {describe(pair)}; write names and heads: (('{DEFAULT_HEAD}', EnergyHeadConfig()),)"
            )
    return value


DescriptorConfig = Annotated[
    Annotated[DPA2Config, Tag("dpa2")]
    | Annotated[DPA1Config, Tag("dpa1")]
    | Annotated[DPA3Config, Tag("dpa3")]
    | Annotated[NequIPConfig, Tag("nequip")],
    Discriminator(_kind),
    BeforeValidator(_checked_descriptor),
]


@configuration
class PotentialConfig:
    """A potential's config: elements in the order of the type map, a descriptor, and heads by name."""

    elements: Annotated[tuple[str, ...], Field(description="chemical symbols, in the order of the types")]
    descriptor: DescriptorConfig
    heads: Annotated[
        tuple[tuple[str, EnergyHeadConfig], ...], BeforeValidator(_checked_heads), Field(description="names and heads")
    ] = ((DEFAULT_HEAD, EnergyHeadConfig()),)
    pair_exclude_types: Annotated[
        tuple[tuple[int, int], ...], Field(description="types of pairs that are no neighbours of each other")
    ] = ()

    def __post_init__(self) -> None:
        if not self.elements:
            raise ValueError("elements is empty: list the chemical symbols that the model is to know, such as [O, H].")
        if unknown := [e for e in self.elements if e not in ase.data.atomic_numbers or e == "X"]:
            raise ValueError(
                f"elements must be distinct chemical symbols, {', '.join(map(repr, unknown))} is none. Write a list of "
                "them, such as [O, H]."
            )
        if twice := sorted({e for e in self.elements if self.elements.count(e) > 1}):
            raise ValueError(
                f"elements must be distinct chemical symbols, {', '.join(twice)} is there more than once. Remove it."
            )
        self._check_heads()
        self._check_excluded()

    def _check_heads(self) -> None:
        names = [pair[0] for pair in self.heads]
        if not names:
            raise ValueError(f"heads is empty: a model needs one, for example [[{DEFAULT_HEAD}, {{}}]].")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"heads must have different names, {', '.join(twice)} is there more than once.")

    def _check_excluded(self) -> None:
        """ValueError for excluded types that are numbers of no element."""
        excluded = {"pair_exclude_types": [t for pair in self.pair_exclude_types for t in pair]}
        by_descriptor = getattr(self.descriptor, "exclude_types", ())
        excluded["descriptor.exclude_types"] = [t for pair in by_descriptor for t in pair]
        excluded |= {f"exclude_types of head {name}": [*head.exclude_types] for name, head in self.heads}
        for name, types in excluded.items():
            if wrong := [t for t in types if not 0 <= t < len(self.elements)]:
                raise ValueError(
                    f"{name} names type {wrong[0]}, but the {len(self.elements)} elements are counted from 0 to "
                    f"{len(self.elements) - 1} ({', '.join(self.elements)})."
                )

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.heads)


class Potential(NamedTuple):
    """Behaviour of a potential. Anything with these functions can be relaxed, simulated and trained.

    A potential of your own needs `atomic_energies` and `shells`; see `classical.lennard_jones`. It need not care for
    atoms without neighbours: padding is shown to it with a neighbour (`neighbors.solitary`), unless its function has
    an attribute `finite_alone` that says it needs none. Where it has an attribute `forward_over_reverse` that is true,
    losses of labels differentiate forces so, which takes less memory: worth a trial for large nets. To be divided over
    devices (`domains`) it must state its `receptive_field`: the cutoff where an atom sees its own neighbours alone.
    """

    config: Any
    shells: tuple[Shell, ...]  # the cutoffs it looks at, widest first
    init: Callable  # (key, dtype=None) -> params
    atomic_energies: Callable  # (params, system, neighbors) -> (n_atoms,) eV, 0 for padding
    elements: tuple[str, ...] | None = None  # that it knows; None: all
    head: str | None = None  # the head that `energy` uses
    receptive_field: float | None = None  # Å; no atom farther from another changes its energy. None: not known

    def __repr__(self) -> str:
        return summaries.of_potential(self)

    def energy(self, params: PyTree, system: System, neighbors: Neighbors) -> Float[Array, "*structures"]:
        """Potential energy of one structure, or of each of several (eV), summed in float64 where x64 is on."""
        system = systems.as_system(system)
        atomic = atomic_energies(self, params, system, neighbors)
        return systems.of_structures(system, atomic.astype(numerics.widest_float()))

    @property
    def cutoff(self) -> float:
        """The widest cutoff (Å)."""
        return self.shells[0].cutoff

    @property
    def capacity(self) -> int | None:
        """The most neighbours that the model looks at within `cutoff`; None: as many as there are."""
        return self.shells[0].sel


def build(config: PotentialConfig, head: str | None = None) -> Potential:
    """The potential of a config. With several heads, name the one whose energy is meant (or use `select`).

    Equal configs give the same object, so that jit does not compile twice.
    """
    remedy = "Make one: PotentialConfig(('O', 'H'), DPA2Config()); a model file is opened by lamjax.load."
    expect(config, PotentialConfig, "build takes a PotentialConfig", remedy)
    names = config.head_names
    if head is None and len(names) == 1:
        head = names[0]
    if head is not None:
        _require_head(head, names)
    return _build(config, head)


@factory
def _build(config: PotentialConfig, head: str | None) -> Potential:
    n_types = len(config.elements)
    descriptor = _descriptor(config.descriptor, config.elements)
    heads = {name: energy_head(c, descriptor.width, n_types) for name, c in config.heads}
    table = type_table(config.elements)
    allowed = allowed_pairs(config.pair_exclude_types, n_types)

    def init(key: Array, dtype: DTypeLike | None = None) -> Params:
        keys = nn.split(key, 1 + len(heads))
        per_head = {name: h.init(k, dtype) for (name, h), k in zip(heads.items(), keys[1:], strict=True)}
        for number, head in enumerate(per_head.values()):  # told apart where they share a net: one-hot vectors
            if (vector := head["statistics"].get("case_embd")) is not None and number < len(vector):
                head["statistics"]["case_embd"] = vector.at[number].set(1)
        return jax.device_put(Params(descriptor.init(keys[0], dtype), per_head))

    def atomic_energies(params: Params, system: System, neighbors: Neighbors) -> Array:
        _require_head(head, config.head_names)
        types = jnp.asarray(table)[system.numbers]
        if allowed is not None:
            neighbors = _without_pairs(neighbors, types, allowed)
        dtype = network_dtype(params)
        d = neighbor_lists.displacements(system, neighbors).astype(dtype)
        charge_spin, fparam = (
            None if value is None else systems.of_atoms(system, value) for value in (system.charge_spin, system.fparam)
        )
        atom_inputs = DescriptorInput(types, neighbors, d, systems.first_atoms(system), charge_spin)
        features = descriptor.apply(params.descriptor, atom_inputs)
        energies = heads[head].apply(params.heads[head], features, types, fparam, system.aparam)
        return jnp.where(types < 0, jnp.nan, energies)  # an element that the model does not know

    atomic_energies.finite_alone = True
    atomic_energies.forward_over_reverse = descriptor.forward_over_reverse
    if descriptor.kept is not None:
        atomic_energies.kept = lambda params, *sizes: descriptor.kept(params.descriptor, *sizes)
    field = descriptor.receptive_field
    return Potential(config, descriptor.shells, init, atomic_energies, config.elements, head, field)


def check_potential(potential: Any, function: str) -> None:
    """ArgumentError that says how to get a potential, for anything else."""
    if not hasattr(potential, "atomic_energies") or not hasattr(potential, "shells"):
        raise ArgumentError(
            f"{function} takes a potential first, got {describe(potential)}. potential, params = lamjax.load(path) "
            "gives both of a model; of a config it is lamjax.build(config)."
        )


def select(potential: Potential, head: str) -> Potential:
    """The same model with the energy of another head."""
    check_potential(potential, "select")
    if not isinstance(potential.config, PotentialConfig):  # of one's own, with one energy
        _require_head(head, (potential.head or DEFAULT_HEAD,))
        return potential
    return build(potential.config, head)


def predict(potential: Potential, params: PyTree, system: System | ase.Atoms, neighbors: Neighbors) -> Prediction:
    """Energy, forces -dE/dx, virial -dE/dε (ε symmetric strain) and atomic energies of one structure, or of several."""

    system = systems.as_system(system)
    check_memory(potential, params, system.n_atoms, neighbors.capacities)
    return derivatives(lambda strained: (atomic_energies(potential, params, strained, neighbors), None), system)[0]


def derivatives(atomic: Callable[[System], tuple[Array, Any]], system: System) -> tuple[Prediction, Any]:
    """The prediction of a function of a structure to its atomic energies and something more, and that."""

    def energy(positions: Array, epsilon: Array) -> tuple[Array, tuple[Array, Array, Any]]:
        strained = systems.strain(system._replace(positions=positions), epsilon)
        of_atoms, more = atomic(strained)
        energies = systems.of_structures(system, of_atoms.astype(numerics.widest_float()))
        return jnp.sum(energies), (energies, of_atoms, more)

    positions = jnp.asarray(system.positions)
    zero = jnp.zeros(jnp.shape(system.cell), positions.dtype)
    value_and_slope = jax.value_and_grad(energy, argnums=(0, 1), has_aux=True)
    (_, (energies, of_atoms, more)), (dx, de) = value_and_slope(positions, zero)
    return Prediction(energies, -dx, -de, of_atoms), more


def check_memory(potential: Potential, params: PyTree, n_atoms: int, capacities: tuple[int, ...]) -> None:
    """ValueError if the forces would keep more numbers than memory holds, which the system ends without a word."""
    count, limit = getattr(potential.atomic_energies, "kept", None), numerics.memory()
    if count is None or limit is None:
        return
    needed = count(params, n_atoms, capacities)
    if needed > limit:
        within = [f"{n} within {s.cutoff:g} Å" for n, s in zip(capacities, potential.shells, strict=True)]
        raise ValueError(
            f"The forces of {n_atoms} atoms with up to {' and '.join(within)} neighbours each need more than "
            f"{needed / 1e9:.3g} GB of memory (pairs of neighbours of an atom most of it); there are {limit / 1e9:.3g} "
            "GB. Evaluate fewer atoms at once (a smaller structure, smaller batches), or in float32. Are there so many "
            "neighbours because positions or cell are in another unit than Å, or atoms lie on one another?"
        )


def atomic_energies(
    potential: Potential, params: PyTree, system: System, neighbors: Neighbors
) -> Float[Array, " n_atoms"]:
    """Atomic energies (eV), 0 for padding; their derivatives are finite for atoms without neighbours.

    What `energy` and `predict` sum; `Potential.atomic_energies` is the formula alone. Raises ValueError for a list of
    other shells or of another number of atoms.
    """
    neighbor_lists.check_shells(neighbors, potential.shells)
    if neighbors.indices.shape[-2] != system.n_atoms:
        raise ValueError(
            f"The neighbour list is that of {neighbors.indices.shape[-2]} atoms, the structure has {system.n_atoms}. "
            "Make a list for this structure."
        )
    formula, known = potential.atomic_energies, potential.elements
    if getattr(formula, "finite_alone", False) or not neighbors.capacities[0]:
        return formula(params, system, neighbors)
    kind = ase.data.atomic_numbers[known[0]] if known else 1
    distance = min(shell.cutoff for shell in potential.shells) / 2
    return solitary.atomic_energies(formula, params, system, neighbors, kind, distance)


def stress(prediction: Prediction, system: System) -> Float[Array, "*batch 6"]:
    """σ = (1/V) dE/dε in eV/Å³, Voigt xx yy zz yz xz xy, positive in tension (ASE). Meaningful for a 3-D cell."""
    return units.to_voigt(units.virial_to_stress(prediction.virial, systems.volume(system)[..., None, None]))


def allocate(potential: Potential, system: System | ase.Atoms, capacity: int | None = None) -> Neighbors:
    """The neighbours of one structure in arrays just wide enough for it. On the host; not for use inside jit.

    Raises ValueError for an element that the potential does not know, for two atoms on one place, and, where
    `capacity` (slots within the widest cutoff) is given, if it is too small. Warns if the model's own `sel` drops
    neighbours, as DeePMD-kit does silently, and of atoms so far from the home cell that float32 loses their digits.
    """
    system = systems.as_system(system)
    check_elements(potential, system)
    if lost := systems.lost_digits(system):
        warnings.warn(lost, stacklevel=2)
    if capacity is None:
        return neighbor_lists.allocate(system, potential.shells)
    widths = neighbor_lists.plan_capacities(neighbor_lists.count(system, potential.shells), potential.shells)
    widths = (capacity, *(min(w, capacity) for w in widths[1:]))
    return neighbor_lists.allocate(system, potential.shells, widths)


def check_elements(potential: Potential, system: System) -> None:
    """Raise ValueError that lists what the potential knows if the structure holds another element."""
    if potential.elements is None:
        return
    present = {ase.data.chemical_symbols[z] for z in np.unique(np.asarray(system.numbers)) if z > 0}
    if unknown := sorted(present - set(potential.elements)):
        raise ValueError(
            f"Element {', '.join(unknown)} is not in the model's type map [{', '.join(potential.elements)}]. "
            "Use a model that knows it, or extend this one (lamjax.edit.extend_elements)."
        )


def to_json(config: PotentialConfig) -> str:
    """The config as JSON text."""
    return TypeAdapter(PotentialConfig).dump_json(config, indent=1).decode()


def from_json(text: str | bytes) -> PotentialConfig:
    """The config of JSON text; pydantic's ValidationError names every key that is unknown or of a wrong type."""
    return TypeAdapter(PotentialConfig).validate_json(text)


def cast_params(params: Params, dtype: DTypeLike | None = None) -> Params:
    """Parameters as jax arrays of `dtype` (default: jax's default float); output biases stay in the widest float."""
    dtype = jnp.zeros((), float).dtype if dtype is None else dtype

    def cast(path: Any, leaf: Any) -> Array:
        if not jnp.issubdtype(np.asarray(leaf).dtype, jnp.floating):
            return jnp.asarray(leaf)
        wide = pytree.path_name(path).endswith(("out_bias", "out_std"))
        return jnp.asarray(leaf, numerics.widest_float() if wide else dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def network_dtype(params: Params) -> Any:
    """The precision of the network, which positions are cast to; output biases have their own."""
    leaves = jax.tree.leaves(params.descriptor)
    return next((x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)), jnp.zeros((), float).dtype)


def check_structure(config: PotentialConfig, params: Params) -> None:
    """Raise CheckpointError naming every missing, unused or misshapen parameter for this config."""
    check_form(jax.eval_shape(build(config).init, jax.random.key(0)), params)


def check_form(template: PyTree, params: PyTree) -> None:
    """Raise CheckpointError naming every parameter that is missing, unused, or of another shape than in a template."""
    expected, got = _shapes(template), _shapes(params)
    faults = [f"missing {name} {expected[name]}" for name in expected.keys() - got.keys()]
    faults += [f"unused {name} {got[name]}" for name in got.keys() - expected.keys()]
    faults += [
        f"{name} has shape {got[name]}, expected {expected[name]}"
        for name in expected.keys() & got.keys()
        if got[name] != expected[name]
    ]
    if faults:
        raise CheckpointError("parameters do not fit the model's config: " + "; ".join(sorted(faults)) + ".")


def _shapes(tree: PyTree) -> dict[str, tuple]:
    return {pytree.path_name(path): np.shape(x) for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def type_table(elements: tuple[str, ...]) -> np.ndarray:
    """Index into `elements` for every atomic number; len(elements) for padding (0), -1 for what is not there."""
    table = np.full(119, -1, np.int32)
    table[0] = len(elements)
    for index, symbol in enumerate(elements):
        table[ase.data.atomic_numbers[symbol]] = index
    return table


def _descriptor(config: Any, elements: tuple[str, ...]) -> Any:
    match config:
        case DPA2Config():
            return dpa2(config, elements)
        case DPA1Config():
            return dpa1(config, elements)
        case DPA3Config():
            return dpa3(config, elements)
        case NequIPConfig():
            return nequip(config, elements)
    raise ArgumentError(f"There is no descriptor for {describe(config)}; supported: {_names(_configs())}.")


def _configs() -> tuple[type, ...]:
    """The descriptor configs that there are."""
    return tuple(get_args(option)[0] for option in get_args(get_args(DescriptorConfig)[0]))


def _names(kinds: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)


def _require_head(head: str | None, names: tuple[str, ...]) -> None:
    if head not in names:
        problem = "The model has several heads and none was chosen" if head is None else f"Head {head!r} is unknown"
        raise ValueError(f"{problem}; available: {', '.join(names)}.")


def _without_pairs(neighbors: Neighbors, types: Array, allowed: Array) -> Neighbors:
    """The list without the excluded pairs of types; their slots become empty."""
    mask, *inner = (mask_excluded(m, types, neighbors.indices, allowed) for m in neighbors.masks)
    return neighbors._replace(mask=mask, inner=tuple(inner))
