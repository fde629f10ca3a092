"""Crystals of a fine-tuning on properties: targets with units in files, what is held out, and the batches of a step."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.data
import jax
import numpy as np

from lamjax import properties, pytree
from lamjax.data import Frame, digests, facts, iterate
from lamjax.data.pairs import listed
from lamjax.losses import ForceConstantBatch, PropertyBatch, PropertyLossConfig, TargetConfig, property_batch
from lamjax.losses.force_constants import sampled_columns
from lamjax.losses.property_targets import ELASTIC, UNITS, VIBRATIONAL, target_value
from lamjax.neighbors import count, host_neighbors, plan_capacities
from lamjax.potential import Potential
from lamjax.properties import phonopy_files
from lamjax.properties.supercells import home
from lamjax.shapes import cheapest, histogram, merge
from lamjax.system import System, pad
from lamjax.training.config import read_options
from lamjax.training.properties_config import PropertyTuneConfig, loss_of, units
from lamjax.training.structures_data import hold_out
from lamjax.training.tasks import labelled
from lamjax.training.tuning import check_apart

SUFFIXES = {"GPa": "GPa", "kbar": "kbar", "eV/Å³": "eV_A3", "Å³": "A3", "Å": "A", "g/cm³": "g_cm3", "kg/m³": "kg_m3"}
SUFFIXES |= {"J/(mol K)": "J_molK", "eV/K": "eV_K"}  # of keys, by unit
OTHERS = {"bulk_modulus": "bulk_modulus_vrh", "shear_modulus": "shear_modulus_vrh"}  # keys of databases, GPa
CONSTANTS, SUPERCELL = "force_constants", "supercell"  # keys: a file of phonopy, and the repeats of its supercell
USUAL = {name: (3.0, 400.0) for name in ELASTIC}  # GPa: medians outside look like another unit
SCALE = 0.1  # of the median target: an error that counts 1


class TargetCrystal(NamedTuple):
    """A crystal and what is known of it."""

    system: System
    targets: dict[str, np.ndarray]  # in the first unit of each property
    constants: "Constants | None"
    frame: Frame
    source: str
    info: dict[str, Any]


class Constants(NamedTuple):
    """Force constants of a supercell, which is as it was when they were computed."""

    system: System
    rows: np.ndarray  # atoms of the supercell whose constants are known
    values: np.ndarray  # (n_rows, n_super, 3, 3) eV/Å²


class CrystalSets(NamedTuple):
    """Crystals to train on and to hold out, the loss on them, and replayed frames."""

    train: list[TargetCrystal]
    validation: list[TargetCrystal]
    loss: PropertyLossConfig | None  # None: force constants alone
    replay: Sequence[Frame]  # empty without


class PackedCrystals(NamedTuple):
    """Crystals of one shape as arrays on the host, and which of those that were packed they are."""

    members: tuple[int, ...]
    rows: PropertyBatch


class Columns(NamedTuple):
    """Supercells with force constants in arrays of one shape."""

    rows: tuple[Any, ...]  # stacked system and neighbours
    constants: tuple[Constants, ...]


def read_sets(config: PropertyTuneConfig, potential: Potential, replayed: Potential) -> CrystalSets:
    """All crystals and frames of a config; what cannot be used is left out and named in warnings.

    Raises ValueError if nothing is left, and for crystals that are both trained on and held out.
    """
    crystals = read_crystals(config, config.crystals, potential)
    if config.validation:
        train, validation = crystals, read_crystals(config, config.validation, potential)
        check_apart(train, validation, "crystals", _name)
    else:
        train, validation = hold_out(crystals, config.hold_out, config.group_by, config.seed)
    replay = labelled(config.replay.files, replayed, read_options(config)) if config.replay else []
    return CrystalSets(train, validation, loss_on(config, train), replay)


def read_crystals(config: PropertyTuneConfig, files: Sequence[str], potential: Potential) -> list[TargetCrystal]:
    """The crystals of the files with their targets; those that cannot be used are named in a warning."""
    crystals: list[TargetCrystal] = []
    left_out: list[str] = []
    unknown: set[str] = set()
    for path in files:
        frames = iterate(
            path,
            elements=potential.elements,
            on_error=lambda error: left_out.append(str(error)),
            options=read_options(config),
            on_remark=lambda remark: None,
        )
        for frame in frames:
            unknown |= strange_keys(frame.info)
            try:
                crystals.append(_crystal(frame, Path(path).parent, config))
            except (ValueError, OSError) as error:
                left_out.append(f"{frame.source}: {error}")
    if not crystals:
        raise ValueError(listed("No crystal with targets was found", left_out or ["The files have no structure."]))
    if left_out:
        warnings.warn(listed(f"Left out {len(left_out)} structures", left_out), stacklevel=3)
    if unknown:
        fault = f"Not read: {', '.join(sorted(unknown))}. Keys that are targets, with their units: {units()}"
        warnings.warn(f"{fault}; a unit is in the key (bulk_modulus_GPa, volume_A3) or in `targets`.", stacklevel=3)
    _check_magnitudes(crystals)
    return crystals


def _crystal(frame: Frame, folder: Path, config: PropertyTuneConfig) -> TargetCrystal:
    """The crystal of a frame; ValueError for what has no properties, or no usable targets."""
    properties.check_crystal(frame.system, "A property of a relaxed cell")
    chosen = {target.name: target for target in config.targets}
    targets = {}
    for name in chosen or UNITS:
        value, unit = given(frame.info, name, chosen[name].unit if name in chosen else None)
        if value is not None:
            targets[name] = target_value(TargetConfig(name, unit=unit), value, frame.system, frame.source)
    constants = _constants(frame, folder) if CONSTANTS in frame.info else None
    if not targets and constants is None:
        raise ValueError(f"no target in its info, which has {', '.join(sorted(frame.info)) or 'nothing'}.")
    symbols = sorted({ase.data.chemical_symbols[z] for z in np.asarray(frame.system.numbers)})
    info = {"elements": "-".join(symbols), **frame.info}
    return TargetCrystal(frame.system, targets, constants, frame, frame.source, info)


def given(info: Mapping[str, Any], name: str, unit: str | None) -> tuple[np.ndarray | None, str | None]:
    """A target and its unit: that of its key, else `unit`; ValueError where keys or units contradict each other."""
    first = next(iter(UNITS[name]))
    keys = {f"{mark}{name}": None for mark in ("", "REF_")}
    keys |= {f"{mark}{name}_{SUFFIXES[one]}": one for mark in ("", "REF_") for one in UNITS[name]}
    keys |= {OTHERS[name]: first} if name in OTHERS else {}
    present = [key for key in keys if key in info]
    if not present:
        return None, None
    if len(present) > 1:
        raise ValueError(f"{name} is given more than once: {', '.join(present)}. Keep one of them.")
    own = keys[present[0]]
    if own is not None and unit is not None and own != unit:
        raise ValueError(f"{present[0]} is in {own} by its name, and in {unit} by `targets`. Remove one of them.")
    try:
        value = np.asarray(info[present[0]], np.float64)
    except (TypeError, ValueError):
        shown = f"{present[0]}={info[present[0]]!r} is no number"
        raise ValueError(f"{shown}. The unit belongs into the key: {name}_{SUFFIXES[own or unit or first]}.") from None
    return (value.reshape(6, 6) if value.shape == (36,) else value), own or unit


def strange_keys(info: Mapping[str, Any]) -> set[str]:
    """Keys that begin as a target does, and name a unit or kind that is not known."""
    known = {f"{name}_{SUFFIXES[unit]}" for name, some in UNITS.items() for unit in some} | {*UNITS, *OTHERS.values()}
    bare = {key: key.removeprefix("REF_") for key in info}
    return {key for key, x in bare.items() if x not in known and any(x.startswith(f"{name}_") for name in UNITS)}


def _constants(frame: Frame, folder: Path) -> Constants:
    """The force constants of a frame; ValueError where file, supercell and structure do not belong together."""
    repeats = np.asarray(frame.info.get(SUPERCELL, ()))
    if repeats.shape != (3,) or np.any(repeats != np.round(repeats)) or np.any(repeats < 1):
        raise ValueError(
            f'{CONSTANTS} needs {SUPERCELL}="2 2 2" beside it, three whole numbers; got {repeats.tolist()}.'
        )
    plain = jax.tree.map(np.asarray, frame.system)
    cells = properties.tiled(plain, repeats.astype(int))
    rows, values = phonopy_files.read_force_constants(folder / str(frame.info[CONSTANTS]))
    large = properties.repeated(plain, cells)
    if values.shape[1] != large.n_atoms or not set(home(cells)) <= set(rows.tolist()):
        raise ValueError(
            f"{frame.info[CONSTANTS]} has force constants of {values.shape[1]} atoms, the supercell "
            f"{repeats.tolist()} of this structure {large.n_atoms}. Is it of another cell or supercell?"
        )
    values = values[[rows.tolist().index(k) for k in home(cells)]]
    left = np.abs(values.sum(axis=1)).max()
    if not np.all(np.isfinite(values)) or left > 0.2 * np.abs(values).max():
        raise ValueError(f"{frame.info[CONSTANTS]}: the constants of an atom add up to {left:.3g} eV/Å², not to 0.")
    return Constants(large, home(cells), values)


def _check_magnitudes(crystals: Sequence[TargetCrystal]) -> None:
    """A warning for moduli that are, as a whole, those of another unit."""
    for name, (low, high) in USUAL.items():
        values = [np.abs(crystal.targets[name]).max() for crystal in crystals if name in crystal.targets]
        if len(values) and not low <= (middle := float(np.median(values))) <= high:
            meant = "eV_A3" if middle < low else "kbar"
            warnings.warn(
                f"{name}: half of the {len(values)} targets are {'below' if middle < low else 'above'} {middle:.3g} "
                f"GPa, which few crystals are. Are they in another unit? Say it in the key, as in {name}_{meant}.",
                stacklevel=4,
            )


def loss_on(config: PropertyTuneConfig, train: Sequence[TargetCrystal]) -> PropertyLossConfig | None:
    """The loss on the targets of the config, or on all that the crystals have, in the first unit of each."""
    middle = {}
    for name in UNITS:
        values = [np.mean(np.abs(crystal.targets[name])) for crystal in train if name in crystal.targets]
        if values:
            middle[name] = float(np.median(values))
    if missing := [target.name for target in config.targets if target.name not in middle]:
        raise ValueError(f"targets: no crystal to train on has {', '.join(missing)} in its info.")
    targets = config.targets or [TargetConfig(name, scale=None) for name in middle]
    chosen = [TargetConfig(t.name, t.weight, _scale(t, middle[t.name])) for t in targets]
    return loss_of(config, tuple(chosen)) if chosen else None


def _scale(target: TargetConfig, middle: float) -> float:
    """The size of an error that counts 1, in the first unit; where it is given, it is in the unit of the targets."""
    if target.scale is None:
        return max(SCALE * middle, 1e-6)
    known = UNITS[target.name]
    return target.scale * known[target.unit or next(iter(known))]


def _name(crystal: TargetCrystal) -> tuple[bytes, bytes]:
    """Elements, positions and cell of a crystal, to 1e-6 Å."""
    system = jax.tree.map(np.asarray, crystal.system)
    return system.numbers.tobytes(), np.round(system.positions, 6).tobytes() + np.round(system.cell, 6).tobytes()


def pack(
    config: PropertyTuneConfig, potential: Potential, loss: PropertyLossConfig, sets: Sequence[Sequence[TargetCrystal]]
) -> list[list[PackedCrystals]]:
    """The crystals with targets of several sets, each in the shapes that all share."""
    places = [(k, n) for k, some in enumerate(sets) for n, c in enumerate(some) if loss.names & c.targets.keys()]
    crystals = [sets[k][n] for k, n in places]
    packed: list[list[PackedCrystals]] = [[] for _ in sets]
    for members in _shapes(config, potential, loss, crystals):
        n_atoms = max(crystals[m].system.n_atoms for m in members)
        systems = [pad(jax.tree.map(np.asarray, crystals[m].system), n_atoms) for m in members]
        rows = property_batch(potential, systems, [crystals[m].targets for m in members], loss)
        rows = jax.tree.map(np.asarray, rows)
        for k in range(len(sets)):
            own = [i for i, m in enumerate(members) if places[m][0] == k]
            if own:
                packed[k].append(
                    PackedCrystals(tuple(places[members[i]][1] for i in own), pytree.take(rows, np.array(own)))
                )
    return packed


def _shapes(
    config: PropertyTuneConfig, potential: Potential, loss: PropertyLossConfig, crystals: Sequence[TargetCrystal]
) -> list[list[int]]:
    """Which crystals share arrays: few shapes with little padding; one number of atoms each with heat capacities."""
    sizes = np.array([crystal.system.n_atoms for crystal in crystals])
    if loss.names & VIBRATIONAL:
        places = sizes
    else:
        needed = np.array([(c.system.n_atoms, *count(c.system, potential.shells)) for c in crystals])
        boxes, _ = merge(*histogram(needed), config.max_programs)
        places = cheapest(needed, boxes)
    return [np.flatnonzero(places == place).tolist() for place in np.unique(places)]


def crystal_batches(
    packed: Sequence[PackedCrystals], size: int, seed: int | None, start: int = 0
) -> Iterator[PropertyBatch]:
    """Batches of one shape each; every epoch shows every crystal once, in an order of seed and epoch alone.

    Without a seed: one epoch, in order. The last batch of a shape is filled by rows without atoms.
    """
    epoch, skipped = divmod(start, n_batches(packed, size))
    while True:
        rng = None if seed is None else np.random.default_rng([seed, epoch])
        parts = []
        for number, part in enumerate(packed):
            order = np.arange(len(part.members)) if rng is None else rng.permutation(len(part.members))
            parts += [(number, order[k : k + size]) for k in range(0, len(order), size)]
        order = np.arange(len(parts)) if rng is None else rng.permutation(len(parts))
        for k in order[skipped:]:
            number, chosen = parts[k]
            yield _filled(packed[number].rows, chosen, size)
        if rng is None:
            return
        epoch, skipped = epoch + 1, 0


def n_batches(packed: Sequence[PackedCrystals], size: int) -> int:
    """The number of batches of an epoch."""
    return sum(-(-len(part.members) // size) for part in packed)


def _filled(rows: PropertyBatch, chosen: np.ndarray, size: int) -> PropertyBatch:
    """Some rows, and behind them the first one without its atoms and targets."""
    is_real = np.arange(size) < len(chosen)
    batch = pytree.take(rows, np.where(is_real, np.resize(chosen, size), chosen[0]))
    numbers = np.where(is_real[:, None], batch.start.numbers, 0)
    weights = {name: np.where(is_real, weight, 0) for name, weight in batch.weights.items()}
    return batch._replace(start=batch.start._replace(numbers=numbers), weights=weights)


def columns(crystals: Sequence[TargetCrystal], potential: Potential) -> Columns | None:
    """The supercells of the crystals that have force constants, in one shape; None if there are none."""
    known = tuple(crystal.constants for crystal in crystals if crystal.constants is not None)
    if not known:
        return None
    most = max(one.system.n_atoms for one in known)
    n_neighbors = [count(one.system, potential.shells) for one in known]
    widths = plan_capacities(tuple(max(x) for x in zip(*n_neighbors, strict=True)), potential.shells)
    systems = [pad(one.system, most) for one in known]
    lists = [host_neighbors(s, potential.shells, widths)._replace(offsets=np.zeros((0, 3), np.int32)) for s in systems]
    return Columns((pytree.stack(systems), pytree.stack(lists)), known)


def column_batch(
    known: Columns, n: int, chosen: Sequence[int] | np.ndarray, rng: np.random.Generator
) -> ForceConstantBatch:
    """`n` columns at random of each of the chosen supercells."""
    system, lists = pytree.take(known.rows, np.asarray(chosen))
    width = system.positions.shape[1]
    parts = [sampled_columns(known.constants[k].values, known.constants[k].rows, n, rng) for k in chosen]
    wide = [[np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0))) for x in part] for part in parts]
    return ForceConstantBatch(system, lists, *(np.stack(x) for x in zip(*wide, strict=True)))


def column_batches(known: Columns, n: int, size: int, seed: int, start: int = 0) -> Iterator[ForceConstantBatch]:
    """Without end: crystals and columns at random, a function of seed and step alone."""
    while True:
        rng = np.random.default_rng([seed, start, 2])
        total = len(known.constants)
        yield column_batch(known, n, rng.choice(total, size, replace=size > total), rng)
        start += 1


def fingerprint(sets: CrystalSets) -> dict[str, dict[str, Any]]:
    """Digests of the data, by which changed data are recognised when a run continues."""

    def of_crystals(crystals: Sequence[TargetCrystal]) -> dict[str, Any]:
        total = sum(float(np.sum(x)) for crystal in crystals for x in crystal.targets.values())
        total += sum(float(np.sum(np.abs(c.constants.values))) for c in crystals if c.constants is not None)
        structures = digests([crystal.frame for crystal in crystals])
        return {"crystals": len(crystals), "sum of targets": total, "digests": structures}

    facts_of_sets = {"train": of_crystals(sets.train), "validation": of_crystals(sets.validation)}
    if len(sets.replay):
        facts_of_sets["replay"] = {"frames": len(sets.replay), "energy_sum": float(np.sum(facts(sets.replay).energy))}
        facts_of_sets["replay"] |= {"digests": digests(sets.replay)}
    return facts_of_sets
