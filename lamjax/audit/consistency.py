"""Do energies, forces and virials of one set belong together? Comparisons that a wrong sign or unit would change.

Between two similar frames a and b of the same atoms the trapezoidal rule gives, exactly to second order,

    E_b - E_a = -(F_a + F_b)/2 · Δx - (Ξ_a + Ξ_b)/2 : ε,

where Δx is the displacement at fixed cell and ε the strain. For a cluster that does not touch its images
Ξ = Σ_i r_i F_i exactly; for a slab that is so along its normal. `verdicts` interprets the numbers.
"""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from lamjax.frames import Frame
from lamjax.lattice import empty_intervals, face_distances, volume
from lamjax.system import System

NEAR = 0.4  # Å; frames whose atoms moved farther are not compared
SMALL = 0.06  # largest component of the strain between compared frames
VACUUM = 7.0  # Å between a cluster and its images
DEPTH = 400  # frames of the same atoms among which the most similar are looked for
HELD = 400_000  # atoms that are kept for it, of all compositions together
WIDTH = 16  # numbers by which structures are compared before their atoms are


class FramePair(NamedTuple):
    """Two similar frames: the energy difference and what forces and virials say of it (eV)."""

    change: float
    by_forces: float
    by_virial: float  # 0 at fixed cell
    bend: tuple[float, float]  # error of the rule's two terms for a cubic energy as curved as forces, virials say
    n_atoms: int
    volume: float  # Å³
    as_virial: bool  # the file says "virial", not "stress"
    source: str


class Cluster(NamedTuple):
    """A structure in vacuum: the virial of the label and that of the forces, as scalars (eV²)."""

    label: float  # label : exact
    exact: float  # exact : exact
    n_atoms: int
    volume: float
    as_virial: bool
    source: str


class Similar:
    """The frames seen last, by atoms and cell type, to find partners for a new one."""

    def __init__(self) -> None:
        self.groups: OrderedDict[bytes, list[tuple[np.ndarray, Frame]]] = OrderedDict()
        self.atoms = 0

    def pairs(self, frame: Frame) -> list[FramePair]:
        """Comparisons with the frame before it and the two most similar ones, of the same atoms in the same order."""
        if frame.labels.weights[0] == 0:
            return []
        group = self.groups.setdefault(_kind(frame), [])
        self.groups.move_to_end(_kind(frame))
        feature, partners = _feature(frame.system), {len(group) - 1} if group else set()
        if len(group) > 1:
            distance = np.linalg.norm(np.array([f for f, _ in group]) - feature, axis=1)
            partners |= set(np.argsort(distance)[:2].tolist())
        compared = [pair(group[k][1], frame) for k in sorted(partners)]
        group.append((feature, frame._replace(info={})))
        self.atoms += frame.system.n_atoms
        self._forget(group)
        return [one for one in compared if one is not None]

    def _forget(self, group: list) -> None:
        if len(group) > DEPTH:
            self.atoms -= group.pop(0)[1].system.n_atoms
        while self.atoms > HELD and len(self.groups) > 1:
            _, oldest = self.groups.popitem(last=False)
            self.atoms -= sum(f.system.n_atoms for _, f in oldest)


def _kind(frame: Frame) -> bytes:
    system = frame.system
    return np.asarray(system.numbers).tobytes() + bytes(system.pbc.tolist()) + "|".join(frame.keys).encode()


def _feature(system: System) -> np.ndarray:
    """Numbers whose distances are about those of the structures (Å), and continuous where atoms cross a boundary."""
    positions, cell = np.asarray(system.positions, np.float64), np.asarray(system.cell, np.float64)
    if system.pbc.all():
        angle, reach = 2 * np.pi * positions @ np.linalg.inv(cell), np.linalg.norm(cell, axis=1) / (2 * np.pi)
        numbers = np.concatenate([(reach * np.cos(angle)).ravel(), (reach * np.sin(angle)).ravel(), cell.ravel()])
    else:
        numbers = (positions - positions.mean(axis=0)).ravel()
    directions = np.random.default_rng(len(numbers)).standard_normal((len(numbers), WIDTH), np.float32)
    return numbers @ directions / WIDTH**0.5


def pair(a: Frame, b: Frame) -> FramePair | None:
    """The comparison of two frames of the same atoms in the same order; None if too far apart or unlabelled."""
    cells = [np.asarray(f.system.cell, np.float64) for f in (a, b)]
    if (path := _path(a.system, b.system, cells)) is None:
        return None
    dx, strain = path
    moved, strained = np.abs(dx).max(initial=0), np.abs(strain).max()
    with_forces, with_virial = (min(a.labels.weights[k], b.labels.weights[k]) > 0 for k in (1, 2))
    strain = strain * (strained > 1e-6)
    if moved > NEAR or strained > SMALL or (strain.any() and not with_virial) or (moved > 1e-4 and not with_forces):
        return None
    work, stretch = (
        [float(np.sum(np.asarray(x, np.float64) * y)) for x in both]
        for both, y in (((a.labels.forces, b.labels.forces), dx), ((a.labels.virial, b.labels.virial), strain))
    )
    return FramePair(
        float(b.labels.energy) - float(a.labels.energy),
        -sum(work) / 2,
        -sum(stretch) / 2,
        (abs(work[0] - work[1]) / 24, abs(stretch[0] - stretch[1]) / 24),
        a.system.n_atoms,
        float(volume(cells[0])),
        "virial" in b.keys[2],
        b.source,
    )


def _path(a: System, b: System, cells: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Displacement at the middle cell (n_atoms, 3) and symmetric strain (3, 3) that lead from one to the other."""
    if np.abs(cells[1] - cells[0]).max() > 0.2 * np.linalg.norm(cells[0]):
        return None  # another choice of lattice vectors
    positions = [np.asarray(s.positions, np.float64) for s in (a, b)]
    if not a.pbc.all():
        dx = positions[1] - positions[0]
        return (dx - dx.mean(axis=0), np.zeros((3, 3))) if np.allclose(cells[0], cells[1]) else None
    middle = (cells[0] + cells[1]) / 2
    ds = positions[1] @ np.linalg.inv(cells[1]) - positions[0] @ np.linalg.inv(cells[0])
    strain = np.linalg.inv(middle) @ (cells[1] - cells[0])
    return (ds - np.round(ds)) @ middle, (strain + strain.T) / 2


def cluster(frame: Frame) -> Cluster | None:
    """The virial that follows from the forces, along directions in which a structure has vacuum; None without any."""
    system, labels = frame.system, frame.labels
    if min(labels.weights[1], labels.weights[2]) == 0 or system.n_atoms < 2:
        return None
    cell, forces = np.asarray(system.cell, np.float64), np.asarray(labels.forces, np.float64)
    forces = forces - forces.mean(axis=0)
    fractional = np.asarray(system.positions, np.float64) @ np.linalg.inv(cell)
    widths = face_distances(cell, system.pbc)
    gaps, begins = empty_intervals(fractional)
    free = np.flatnonzero(gaps * widths >= VACUUM)
    if not len(free):
        return None
    fractional[:, free] = (fractional[:, free] - begins[free] + 1e-9) % 1
    virial = np.asarray(labels.virial, np.float64)
    if len(free) == 3:
        exact = (fractional @ cell).T @ forces
        exact, label = (exact + exact.T) / 2, virial
    else:  # along the normal of the faces that look into the vacuum
        normals = (np.linalg.inv(cell) * widths).T[free]
        exact = np.array([(fractional[:, k] * widths[k]) @ forces @ n for k, n in zip(free, normals, strict=True)])
        label = np.array([n @ virial @ n for n in normals])
    return Cluster(
        float(np.sum(label * exact)),
        float(np.sum(exact * exact)),
        system.n_atoms,
        float(volume(cell)),
        "virial" in frame.keys[2],
        frame.source,
    )
