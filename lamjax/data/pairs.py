"""Pairs of a starting structure and where it should relax to, read from files; what is wrong is named and left out."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool

from lamjax.arguments import ArgumentError, describe
from lamjax.data import matching, trajectories
from lamjax.data.atoms import fixed_mask, from_atoms
from lamjax.data.labels import ReadOptions
from lamjax.data.reading import iterate
from lamjax.frames import Frame
from lamjax.lattice import deformation, home_shift
from lamjax.system import Labels, System, cast, moved_by, to_ase

SAME_CELL = 1e-4  # Å; lattice vectors that differ by less are the same
FAR = 1.5  # Å; an atom that goes farther may be another one: the order of the atoms is looked at
FARTHEST = 5.0  # Å; atoms that were matched and are farther apart than this are not the same
STAYS = 0.01  # Å; a displacement of fixed atoms that rounding in files explains
STILL = 1e-3  # Å; an atom that moved less, where others moved more, may have been held
LARGEST_STRAIN, LARGEST_TURN = 0.5, 0.1  # of a cell between start and target, beyond which it is another one
REORDERED = "Atoms of the target, in another order than those of the start, were matched to them"
PERMUTED = "Atoms of one element appear permuted between start and target, and are left as they are"
SHOWN = 10  # reasons that a message lists

Remarks = dict[str, list[str]]  # on pairs that are kept: a headline, and a line a pair


class Pair(NamedTuple):
    """One relaxation: the same atoms in the same order, before and after. On the host."""

    start: System
    target: System  # its own cell; positions as the file gives them, in any image
    fixed: Bool[np.ndarray, "n_atoms 3"]  # True: this Cartesian component does not move
    labels: Labels  # of the target; missing ones have weight 0
    source: str  # where it was read, for messages
    info: dict[str, Any]  # relax_id or pair_id and whatever else the file says of the start


class _Rules(NamedTuple):
    """Requirements on pairs, as in `pairs_from_frames`."""

    fmax: float
    variable_cell: bool
    keep_unrelaxed: bool
    targets_alone: bool


class _Read(NamedTuple):
    """A frame, and the file that it is from."""

    frame: Frame
    file: str


class _Ends(NamedTuple):
    """A start and a target that the file says belong together, unchecked."""

    start: Frame
    target: Frame
    where: str


def pair_name(pair: Pair) -> str:
    """The name of a pair in tables: its relax_id or pair_id, else file and frame."""
    known = (pair.info[key] for key in ("relax_id", "pair_id", "trajectory") if key in pair.info)
    return str(next(known, pair.source))


def read_pairs(
    paths: str | Path | Iterable[str | Path],
    dtype: DTypeLike | None = np.float64,
    fmax: float = 0.1,
    variable_cell: bool = False,
    keep_unrelaxed: bool = False,
    options: ReadOptions | None = None,
    targets_alone: bool = False,
) -> list[Pair]:
    """The pairs of one or more files (whatever `data.read` reads, with its `options`); see `pairs_from_frames`.

    Frames and files that cannot be read are left out and named as unusable pairs are. FileNotFoundError for a file
    that is not there.
    """
    left_out: list[str] = []
    frames = _readable(paths, options or ReadOptions(), left_out)
    pairs = _pairs(frames, left_out, _Rules(fmax, variable_cell, keep_unrelaxed, targets_alone))
    return [cast_pair(pair, dtype) for pair in pairs]


def cast_pair(pair: Pair, dtype: DTypeLike | None) -> Pair:
    """The pair with its floats in `dtype`; if that is less than float64, near home (see `system.cast`).

    Both ends are moved by the same lattice vectors, so that the displacements between them stay what they are.
    """
    start, target, labels = pair.start, pair.target, pair.labels
    if np.dtype(dtype).itemsize < start.positions.dtype.itemsize:
        shift = home_shift(start.positions, start.cell, start.pbc)
        start, target = moved_by(start, shift), moved_by(target, shift)
    labels = labels._replace(**{name: getattr(labels, name).astype(dtype) for name in ("forces", "virial", "weights")})
    return pair._replace(start=cast(start, dtype), target=cast(target, dtype), labels=labels)


def pairs_from_frames(
    frames: Iterable[Frame],
    fmax: float = 0.1,
    variable_cell: bool = False,
    keep_unrelaxed: bool = False,
    targets_alone: bool = False,
) -> list[Pair]:
    """Pairs from frames that say where they relax to, in the order of the frames, in any mixture of four forms.

    `final_positions`: a per-atom array beside the positions of the start, with a variable cell perhaps `final_cell`
    in the info (rows are lattice vectors). `relax_id` and `step`: a trajectory, of which step 0 is the start and the
    last of `n_steps` the target. `pair_id` and `role`: two frames, the roles "start" and "target". A file whose frames
    say nothing, but have forces, is one relaxation: its first frame is the start and its last one the target (ASE's
    .traj, OUTCAR, vasprun.xml). With `targets_alone`, for losses that look at targets only, relaxed structures need no
    start.

    The cell may differ, and be a degree of freedom, with `variable_cell` only. A component is fixed if the start says
    so: FixAtoms and FixCartesian of ASE, `move_mask` of extxyz, or a per-atom array `fixed`. If the target has its
    atoms in another order, they are matched by their places, with a warning.

    What cannot be used is left out, and one warning names it with the reason: a partner or the first or last step is
    missing or there twice; other atoms, another cell, NaN; a target that is not relaxed, which is a force above `fmax`
    (eV/Å) on what is not fixed, or with `variable_cell` a row of the virial above `fmax` (eV) per atom.
    `keep_unrelaxed` keeps those and warns. Raises ValueError with the same reasons if no pair is left.
    """
    rules = _Rules(fmax, variable_cell, keep_unrelaxed, targets_alone)
    return _pairs((_Read(frame, _file_of(frame)) for frame in frames), [], rules)


def _file_of(frame: Frame) -> str:
    if not isinstance(frame, Frame):
        raise ArgumentError(
            f"Pairs are made of frames, got {describe(frame)}. data.read_pairs(path) reads them from a file; of an "
            "ASE structure data.from_atoms makes a frame."
        )
    return frame.source.rpartition(" frame ")[0]


def _readable(paths: Any, options: ReadOptions, left_out: list[str]) -> Iterator[_Read]:
    """The frames that can be read; what is wrong with the others is added to `left_out`."""
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            frames = iterate(path, on_error=lambda error: left_out.append(str(error)), options=options)
            yield from (_Read(frame, str(path)) for frame in frames)
        except ValueError as error:
            left_out.append(str(error))


def _pairs(frames: Iterable[_Read], left_out: list[str], rules: _Rules) -> list[Pair]:
    pairs: list[Pair] = []
    remarks: Remarks = defaultdict(list)
    for form, name, members in _groups(frames, left_out, rules):
        try:
            pairs.append(_checked(_ENDS[form](members, name, rules), rules, remarks))
        except ValueError as error:
            left_out.append(str(error))
    _report(len(pairs), left_out, remarks)
    return pairs


def _report(n_pairs: int, left_out: list[str], remarks: Remarks) -> None:
    """Warn of what was left out and of what is odd; ValueError if nothing is left."""
    if not n_pairs:
        raise ValueError(listed("No pair of start and target", left_out or ["There are no frames."]))
    for headline, lines in remarks.items():
        warnings.warn(listed(f"{headline} in {len(lines)} of {n_pairs} pairs", lines), stacklevel=4)
    if left_out:
        n = len(left_out)
        warnings.warn(listed(f"Left out {n} of {n + n_pairs} pairs or single frames", left_out), stacklevel=4)


def listed(headline: str, lines: list[str]) -> str:
    """A message: a headline, the first of many lines, and how many more there are."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n  ".join([f"{headline}:", *lines[:SHOWN], *more])


# ---- which frames belong together


def _groups(frames: Iterable[_Read], left_out: list[str], rules: _Rules) -> Iterator[tuple[str, str, list[Frame]]]:
    """(form, name, frames) of all candidates, in the order in which they begin."""
    groups: dict[tuple[str, str], list[Frame]] = {}
    for k, (frame, file) in enumerate(frames):
        info = frame.info
        if "final_positions" in info:
            groups["final_positions", str(k)] = [frame]
        elif "relax_id" in info and "step" in info:
            groups.setdefault(("relax_id", str(info["relax_id"])), []).append(frame)
        elif "pair_id" in info and "role" in info:
            groups.setdefault(("pair_id", str(info["pair_id"])), []).append(frame)
        else:
            groups.setdefault(("file", file), []).append(frame)
    for (form, name), members in groups.items():
        if form != "file":
            yield form, name, members
            continue
        try:
            ends = trajectories.ends(members, rules.fmax, rules.targets_alone)
        except ValueError as error:
            left_out.append(f"{name}: {error}")
            continue
        yield from ((form, name, [*pair]) for pair in ends)
        left_out += [] if ends else [f"{frame.source}: {trajectories.UNNAMED}" for frame in members]


def _of_file(frames: list[Frame], name: str, rules: _Rules) -> _Ends:
    start, target = frames
    if start is target:
        return _Ends(start, target, start.source)
    start = start._replace(info={**start.info, "trajectory": name})
    return _Ends(start, target, f"{name} ({start.source} to {target.source})")


def _of_final_positions(frames: list[Frame], name: str, rules: _Rules) -> _Ends:
    (start,) = frames
    atoms = to_ase(start.system)
    try:
        final = np.asarray(start.info["final_positions"], np.float64)
        if final.shape != atoms.positions.shape:
            raise ValueError(f"their shape is {final.shape}, that of the positions {atoms.positions.shape}.")
        atoms.positions = final
        if "final_cell" in start.info:
            atoms.cell = np.asarray(start.info["final_cell"], np.float64).reshape(3, 3)
        target = from_atoms(atoms, start.system.positions.dtype, start.source)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{start.source}, final_positions: {error}") from error
    return _Ends(start, target, start.source)


def _of_trajectory(frames: list[Frame], name: str, rules: _Rules) -> _Ends:
    steps = np.array([_number(frame, "step") for frame in frames])
    order = np.argsort(steps, kind="stable")
    start, target = frames[order[0]], frames[order[-1]]
    where, first, last = f"Relaxation {name} ({start.source} to {target.source})", steps.min(), steps.max()
    if len(np.unique(steps)) < len(steps):
        doubled = steps[order][1:][np.diff(steps[order]) == 0]
        raise ValueError(f"{where} has step {doubled[0]} twice. Do two relaxations bear the same relax_id?")
    n_steps = _number(target, "n_steps") if "n_steps" in target.info else last + 1
    if rules.targets_alone and last == n_steps - 1 and first != 0:
        return _Ends(target, target, target.source)
    if len(steps) < 2 or first != 0 or last != n_steps - 1:
        raise ValueError(
            f"{where} holds steps {first} to {last} of {n_steps}: the start (step 0) or its partner, "
            f"the relaxed structure (step {n_steps - 1}), is missing."
        )
    return _Ends(start, target, where)


def _of_roles(frames: list[Frame], name: str, rules: _Rules) -> _Ends:
    where = f"Pair {name} ({' and '.join(frame.source for frame in frames)})"
    roles = [str(frame.info["role"]) for frame in frames]
    if rules.targets_alone and roles == ["target"]:
        return _Ends(frames[0], frames[0], frames[0].source)
    if sorted(roles) != ["start", "target"]:
        raise ValueError(f"{where} has the roles {', '.join(roles)}; needs one start and one target.")
    return _Ends(frames[roles.index("start")], frames[roles.index("target")], where)


_ENDS = {"final_positions": _of_final_positions, "relax_id": _of_trajectory, "pair_id": _of_roles, "file": _of_file}


def _number(frame: Frame, key: str) -> int:
    try:
        return int(frame.info[key])
    except (TypeError, ValueError):
        raise ValueError(f"{frame.source}: {key} is {frame.info[key]!r}, not a number.") from None


# ---- checks of pairs


def _checked(ends: _Ends, rules: _Rules, remarks: Remarks) -> Pair:
    """The pair; ValueError that names it if it cannot be used."""
    start, target, where = ends
    _check_finite(start, target, where)
    _check_atoms(start.system, target.system, where)
    target = target._replace(system=_in_cell(start.system, target.system, rules, where))
    target = _in_order(start.system, target, where, remarks)
    fixed = _fixed(start, target, where, remarks)
    if reason := _unrelaxed(start.system, target, fixed, rules):
        if not rules.keep_unrelaxed:
            raise ValueError(f"{where}: {reason}, or keep it with keep_unrelaxed=True.")
        remarks["The target is not relaxed"].append(f"{where}: {reason}.")
    info = {k: v for k, v in start.info.items() if k not in ("final_positions", "final_cell", "fixed")}
    return Pair(start.system, target.system, fixed, target.labels, where, info)


def _check_finite(start: Frame, target: Frame, where: str) -> None:
    arrays = (*start.system[:3], *target.system[:3], *target.labels)
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError(f"{where}: positions, cell or labels hold a value that is not finite. Remove the pair.")


def _check_atoms(start: System, target: System, where: str) -> None:
    if not np.array_equal(np.sort(start.numbers), np.sort(target.numbers)):
        first, last = (to_ase(s).get_chemical_formula() for s in (start, target))
        raise ValueError(f"{where}: the start is {first}, the target {last}. Give both the same atoms.")
    if (start.pbc != target.pbc).any():
        raise ValueError(
            f"{where}: pbc is {start.pbc.tolist()} at the start, {target.pbc.tolist()} at the target. "
            "Give both the same."
        )


def _in_cell(start: System, target: System, rules: _Rules, where: str) -> System:
    """The target, exactly in the cell of the start if cells are fixed; ValueError if its cell cannot be."""
    first, last = (np.where(s.pbc[:, None], np.asarray(s.cell, np.float64), 0) for s in (start, target))
    change = f"{where}: the cell changes from {first.tolist()} to {last.tolist()}"
    if not rules.variable_cell:
        if np.abs(last - first).max() > SAME_CELL:
            raise ValueError(f"{change}. If cells relax, pass variable_cell=True.")
        return target._replace(cell=start.cell)
    strain = deformation(last, first)
    if np.linalg.norm(strain, 2) > LARGEST_STRAIN or np.linalg.norm(strain - strain.T, 2) / 2 > LARGEST_TURN:
        raise ValueError(
            f"{change}, which is too large a strain or a rotation. Are its vectors in another order or orientation, or "
            "its rows and columns exchanged?"
        )
    return target


def _in_order(start: System, target: Frame, where: str, remarks: Remarks) -> Frame:
    """The target with its atoms in the order of the start; ValueError if they cannot be told apart."""
    if not np.array_equal(start.numbers, target.system.numbers):
        match = matching.assigned(start, target.system)
        moved = int(np.sum(match.order != np.arange(start.n_atoms)))
        change = (
            f"{moved} of {start.n_atoms} atoms change place, the largest displacement is then {match.largest:.2f} Å"
        )
        if match.largest > FARTHEST:
            raise ValueError(
                f"{where}: the atoms of the target are in another order, and to match them fails: {change}, more than "
                f"{FARTHEST:g} Å. Give both the same order."
            )
        remarks[REORDERED].append(f"{where}: {change}.")
        return _permuted(target, match.order)
    as_given = matching.given(start, target.system)
    if as_given.largest > FAR:
        match = matching.assigned(start, target.system)
        if match.rms < as_given.rms / 2:
            change = f"RMS displacement {as_given.rms:.2f} Å, if they were matched {match.rms:.2f} Å"
            remarks[PERMUTED].append(f"{where}: {change}.")
    return target


def _permuted(frame: Frame, order: np.ndarray) -> Frame:
    system, labels, info = frame.system, frame.labels, dict(frame.info)
    if "fixed" in info:
        info["fixed"] = _mask(frame)[order]
    return frame._replace(
        system=system._replace(
            positions=system.positions[order],
            numbers=system.numbers[order],
            aparam=None if system.aparam is None else system.aparam[order],
        ),
        labels=labels._replace(forces=labels.forces[order]),
        info=info,
    )


def _fixed(start: Frame, target: Frame, where: str, remarks: Remarks) -> np.ndarray:
    """Fixed components (n_atoms, 3), as the start has them; ValueError if the target has others."""
    fixed = _mask(start)
    if "fixed" in target.info and (_mask(target) != fixed).any():
        raise ValueError(
            f"{where}: {fixed.sum()} components are fixed at the start, {_mask(target).sum()} at the target, not the "
            "same. Give both the same constraints, or the start alone."
        )
    if kinds := start.info.get("other_constraints"):
        remarks["Constraints other than FixAtoms and FixCartesian are ignored"].append(f"{where}: {kinds}.")
    if fixed.any() and np.array_equal(start.system.cell, target.system.cell):
        moved = np.abs(matching.displacements(start.system, target.system))[fixed].max()
        if moved > STAYS:
            remarks["What is fixed moves"].append(f"{where}: by up to {moved:.2f} Å between start and target.")
    return fixed


def _mask(frame: Frame) -> np.ndarray:
    n_atoms = frame.system.n_atoms
    try:
        return fixed_mask(frame.info.get("fixed", np.zeros(n_atoms, bool)), n_atoms)
    except ValueError as error:
        raise ValueError(f"{frame.source}: {error}") from error


def _unrelaxed(start: System, target: Frame, fixed: np.ndarray, rules: _Rules) -> str:
    """Why the target is not relaxed, and the remedy; empty if it is, or if nothing is known."""
    _, forces, virial = target.labels.weights > 0
    force = np.linalg.norm(np.where(fixed, 0, target.labels.forces), axis=1)
    if forces and force.max() > rules.fmax:
        moved = np.linalg.norm(matching.displacements(start, target.system), axis=1)
        held = moved[force > rules.fmax].max() < STILL < moved.max()
        hint = " on atoms that did not move: if they were held fixed, mark them in `move_mask`" if held else ""
        return (
            f"the target is not relaxed, its largest force is {force.max():.3g} eV/Å (fmax {rules.fmax:g}){hint}. "
            "Remove it, raise fmax"
        )
    strain = np.linalg.norm(target.labels.virial, axis=1).max() / len(fixed)
    if virial and rules.variable_cell and strain > rules.fmax:
        return (
            f"the cell of the target is not relaxed at zero pressure, the largest row of its virial is {strain:.3g} eV "
            f"per atom (fmax {rules.fmax:g}); of another pressure nothing is known here. Remove it, raise fmax"
        )
    return ""
