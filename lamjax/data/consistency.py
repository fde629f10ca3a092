"""Do energies, forces and virials of one set belong together? Numbers that a wrong sign or unit would change.

Between two similar frames a and b of the same atoms the trapezoidal rule gives, exactly to second order,

    E_b - E_a = -(F_a + F_b)/2 · Δx - (Ξ_a + Ξ_b)/2 : ε,

where Δx is the displacement at fixed cell and ε the strain. For a cluster that does not touch its images
Ξ = Σ_i r_i F_i exactly.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lamjax import units
from lamjax.data.frames import Frame
from lamjax.system import face_distances

NEAR = 0.4  # Å; frames whose atoms moved farther are not compared
SMALL = 0.06  # largest component of the strain between compared frames
VACUUM = 7.0  # Å between a cluster and its images
FEW = 3  # a verdict rests on at least so many pairs or clusters
HARTREE, BOHR, KCAL = 27.211386, 0.529177, 0.0433641


class Pair(NamedTuple):
    """Two similar frames: the energy difference and what forces and virials say of it (eV)."""

    change: float
    by_forces: float
    by_virial: float
    error: float  # how far the rule may be off, from the change of forces and virial between the two
    volume: float  # Å³
    source: str


class Ratio(NamedTuple):
    """True value over label, as a robust mean over `n` pairs or clusters; None where there was too little to tell."""

    value: float | None
    spread: float  # half the distance between the quartiles, relative
    n: int
    volume: float  # Å³, mean
    source: str  # of one of them


def pair(a: Frame, b: Frame) -> Pair | None:
    """The comparison of two frames of the same atoms in the same order; None if too far apart or unlabelled."""
    if min(a.labels.weights[0], b.labels.weights[0], a.labels.weights[1], b.labels.weights[1]) == 0:
        return None
    periodic = bool(a.system.pbc.all())
    cells = [np.asarray(f.system.cell, np.float64) for f in (a, b)]
    dx = np.asarray(b.system.positions, np.float64) - np.asarray(a.system.positions, np.float64)
    strain = np.zeros((3, 3))
    if np.abs(cells[1] - cells[0]).max() > 0.2 * np.linalg.norm(cells[0]):
        return None  # another choice of lattice vectors
    if periodic:
        middle = (cells[0] + cells[1]) / 2
        fractional = [
            np.asarray(f.system.positions, np.float64) @ np.linalg.inv(c) for f, c in zip((a, b), cells, strict=True)
        ]
        ds = fractional[1] - fractional[0]
        dx, strain = (ds - np.round(ds)) @ middle, np.linalg.inv(middle) @ (cells[1] - cells[0])
    elif not np.allclose(*cells):
        return None
    strain = (strain + strain.T) / 2
    if np.abs(dx).max(initial=0) > NEAR or np.abs(strain).max() > SMALL:
        return None
    virials = [np.asarray(f.labels.virial, np.float64) * (f.labels.weights[2] > 0) for f in (a, b)]
    if np.abs(strain).max() > 1e-6 and min(a.labels.weights[2], b.labels.weights[2]) == 0:
        return None
    forces = [np.asarray(f.labels.forces, np.float64) for f in (a, b)]
    work, stretch = ([float(np.sum(x * y)) for x in both] for both, y in ((forces, dx), (virials, strain)))
    # exact for a quadratic energy; a cubic term is rarely more than a quarter of the change of the derivatives
    error = (abs(work[0] - work[1]) + abs(stretch[0] - stretch[1])) / 24
    volume = abs(np.linalg.det(cells[0]))
    change = float(b.labels.energy) - float(a.labels.energy)
    return Pair(change, -sum(work) / 2, -sum(stretch) / 2, error, volume, b.source)


def cluster(frame: Frame) -> tuple[float, float, float] | None:
    """(label : exact, exact : exact, volume) of the virial of a cluster in vacuum; None for anything else."""
    system = frame.system
    if frame.labels.weights[2] == 0 or frame.labels.weights[1] == 0 or system.n_atoms < 2:
        return None
    cell, positions = np.asarray(system.cell, np.float64), np.asarray(system.positions, np.float64)
    fractional = positions @ np.linalg.inv(cell)
    for axis, width in enumerate(face_distances(cell, system.pbc)):
        s = np.sort(fractional[:, axis] % 1)
        gaps = np.diff(np.concatenate([s, [s[0] + 1]]))
        k = int(np.argmax(gaps))
        if gaps[k] * width < VACUUM:
            return None
        begin = s[(k + 1) % len(s)]
        fractional[:, axis] = (fractional[:, axis] - begin + 1e-9) % 1
    exact = (fractional @ cell).T @ np.asarray(frame.labels.forces, np.float64)
    exact = (exact + exact.T) / 2
    label = np.asarray(frame.labels.virial, np.float64)
    return float(np.sum(label * exact)), float(np.sum(exact * exact)), abs(np.linalg.det(cell))


def force_ratio(pairs: Iterable[Pair]) -> Ratio:
    """Energy change over what the forces say of it, where the forces matter most."""
    use = [p for p in pairs if abs(p.by_virial) < 0.1 * abs(p.by_forces)]
    return _ratio([(p.change - p.by_virial, p.by_forces, p.error, p.volume, p.source) for p in use])


def virial_ratio(pairs: Iterable[Pair]) -> Ratio:
    """Energy change (less the work of the forces) over what the virials say of it."""
    use = [p for p in pairs if abs(p.by_virial) > 0]
    use = [p for p in use if abs(p.by_forces) < 0.5 * abs(p.change - p.by_forces)]
    return _ratio([(p.change - p.by_forces, p.by_virial, p.error, p.volume, p.source) for p in use])


def cluster_ratio(found: Iterable[tuple[tuple[float, float, float], str]]) -> Ratio:
    """Exact over labelled virial of clusters."""
    use = [(exact, label, 0.0, volume, source) for (label, exact, volume), source in found if exact > 1e-4]
    return _ratio(use)


def verdict_forces(ratio: Ratio) -> tuple[bool, str]:
    """(is it wrong, what it means) of the ratio of true to labelled forces."""
    known = {
        "the forces are right": 1.0,
        "the forces have the wrong sign (they are gradients)": -1.0,
        "the forces are in hartree/bohr": HARTREE / BOHR,
        "the energies are in hartree, the forces in eV/Å": 1 / HARTREE,
        "the energies are in hartree, the forces in hartree/bohr": 1 / BOHR,
        "the forces are in kcal/mol/Å": KCAL,
        "the energies are in kcal/mol, the forces in eV/Å": 1 / KCAL,
    }
    return _verdict(ratio, known, "forces")


def verdict_virial(ratio: Ratio) -> tuple[bool, str]:
    """(is it wrong, what it means) of the ratio of true to labelled virials."""
    known = {
        "stress and virial are right": 1.0,
        "stress or virial has the wrong sign": -1.0,
        "the stress is in GPa": units.GPA,
        "the stress is in GPa and of the wrong sign": -units.GPA,
        "the stress is in kbar": units.KBAR,
        "the stress is in kbar and of VASP's sign": -units.KBAR,
        "a stress is stored as virial": -ratio.volume,
        "a stress of the wrong sign is stored as virial": ratio.volume,
        "a virial is stored as stress": -1 / max(ratio.volume, 1e-9),
        "a virial of the wrong sign is stored as stress": 1 / max(ratio.volume, 1e-9),
    }
    return _verdict(ratio, known, "virial")


def _verdict(ratio: Ratio, known: dict[str, float], name: str) -> tuple[bool, str]:
    """The nearest meaning on a logarithmic scale; wrong only if the numbers leave no doubt."""
    if ratio.value is None:
        return False, f"not testable ({ratio.n} comparisons)"
    said = f"energy changes over what the {name} say of them: {ratio.value:.4g} ± {abs(ratio.value) * ratio.spread:.1g}"
    alike = {text: abs(np.log(abs(ratio.value / x))) for text, x in known.items() if x * ratio.value > 0}
    text = min(alike, key=alike.get) if alike else ""
    if text and known[text] == 1.0 and alike[text] < np.log(1.5):
        return False, f"{text} ({said}, {ratio.n} comparisons)"
    if ratio.spread > 0.25:
        return False, f"not testable ({said}: too wide a spread)"
    if not text or alike[text] > np.log(1.25):
        return True, f"{name} do not belong to the energies: {said}"
    return True, f"{text}: {said}"


def _ratio(found: list[tuple[float, float, float, float, str]]) -> Ratio:
    """The median of true over labelled, over those pairs that tell it to better than a quarter."""
    # the rule's own error scales with the label: it is compared with the label's side, whatever its unit
    use = [f for f in found if abs(f[1]) > 4 * f[2] and abs(f[0]) > 2e-4]
    if len(use) < FEW:
        return Ratio(None, 0.0, len(use), 0.0, use[0][4] if use else "")
    values = np.array([true / label for true, label, *_ in use])
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    spread = float((high - low) / 2 / max(abs(middle), 1e-300))
    return Ratio(float(middle), spread, len(use), float(np.mean([f[3] for f in use])), use[0][4])
