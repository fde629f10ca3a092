"""Files that do not say what relaxes to what: all steps of one relaxation, or relaxed structures alone."""

from collections.abc import Sequence

import numpy as np

from lamjax.frames import Frame
from lamjax.system import to_ase

AGAIN = 5.0  # times the limit of a relaxed structure: so large a force after a relaxed frame begins another relaxation
RISES = 1e-3  # eV per atom; a relaxation at fixed cell ends no higher than it begins
UNNAMED = (
    "nothing says where the structure relaxes to. Give all steps of the relaxation in one file (ASE's .traj, OUTCAR, "
    "vasprun.xml), or the start an array `final_positions`, or frames `relax_id` and `step`, or `pair_id` and `role`, "
    "in the info."
)


def ends(frames: Sequence[Frame], fmax: float, targets_alone: bool) -> list[tuple[Frame, Frame]]:
    """(start, target) of the frames of one file: the first and the last step of a relaxation, as its forces tell.

    With `targets_alone`, for objectives that need no start, relaxed structures are each its own start. `fmax` (eV/Å)
    tells them from steps on the way. Nothing for a single frame, without forces, and for frames that are all relaxed;
    ValueError for frames that are not the steps of a relaxation.
    """
    largest = [largest_force(frame) for frame in frames]
    alike = all(_same_atoms(frames[0], frame) for frame in frames)
    on_the_way = [_is_unrelaxed(frame, fmax) for frame in frames]
    if targets_alone and (len(frames) == 1 or not alike or not any(on_the_way)):
        return [(frame, frame) for frame in frames]
    if len(frames) == 1 or largest[-1] is None or not any(on_the_way):
        return []
    if not alike:
        k = next(k for k, frame in enumerate(frames) if not _same_atoms(frames[0], frame))
        first, other = (to_ase(frames[i].system).get_chemical_formula() for i in (0, k))
        raise ValueError(f"{first} in the first frame, {other} in frame {k}: not one relaxation, and {UNNAMED}")
    _check_single(largest, fmax)
    _check_falls(frames)
    return [(frames[0], frames[-1])]


def largest_force(frame: Frame) -> float | None:
    """The largest force (eV/Å) on an atom that is not fixed; None without forces."""
    if not frame.labels.weights[1] > 0:
        return None
    fixed = np.asarray(frame.info.get("fixed", False))
    free = np.where(fixed.reshape(fixed.shape[:1] + (-1,)) if fixed.ndim else fixed, 0, frame.labels.forces)
    return float(np.linalg.norm(free, axis=1).max())


def _is_unrelaxed(frame: Frame, fmax: float) -> bool:
    """True if a force, or a row of the virial (eV per atom), is larger than that."""
    virial = np.linalg.norm(frame.labels.virial, axis=1).max() / frame.system.n_atoms
    return (largest_force(frame) or 0) > fmax or (frame.labels.weights[2] > 0 and virial > fmax)


def _same_atoms(a: Frame, b: Frame) -> bool:
    return np.array_equal(a.system.numbers, b.system.numbers) and np.array_equal(a.system.pbc, b.system.pbc)


def _check_single(largest: list[float | None], fmax: float) -> None:
    """ValueError where a relaxation has ended and another one seems to begin."""
    ended = next((k for k, force in enumerate(largest) if force is not None and force <= fmax), len(largest))
    for k in range(ended + 1, len(largest)):
        if largest[k] is not None and largest[k] > AGAIN * fmax:
            raise ValueError(
                f"frame {ended} is relaxed (largest force {largest[ended]:.2g} eV/Å) and frame {k} is not "
                f"({largest[k]:.2g} eV/Å): several relaxations, it seems. Give each a file, or `relax_id` and `step`."
            )


def _check_falls(frames: Sequence[Frame]) -> None:
    """ValueError for an energy that rises at fixed cell."""
    first, last = frames[0], frames[-1]
    known = first.labels.weights[0] > 0 and last.labels.weights[0] > 0
    rise = float(last.labels.energy - first.labels.energy)
    if known and np.array_equal(first.system.cell, last.system.cell) and rise > RISES * first.system.n_atoms:
        raise ValueError(
            f"the energy rises by {rise:.4g} eV from the first to the last of {len(frames)} frames: these are not the "
            "steps of a relaxation. Give frames that belong together `relax_id` and `step`, or `pair_id` and `role`."
        )
