"""What is in data sets and what is suspicious in them, with file and frame: wrong signs and units, copies, outliers."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ase.data
import numpy as np

from lamjax.data import consistency
from lamjax.data.frames import LABELS, Frame
from lamjax.neighbors.host import pairs

REACH = 6.0  # Å; an atom without a neighbour within is alone
LARGE = 20.0  # eV/Å, of a force
HUGE = 0.6  # eV/Å³, about 100 GPa, as the median of a set's largest stress components
FAR = 12.0  # robust standard deviations from the fit of energies to compositions
LEAST = 0.5  # eV/atom; smaller deviations are no outliers
SHIFT = 0.5  # eV/atom between two sets' energies of the same elements
PAIRS = 2000  # comparisons of similar frames in a set, at most


class Finding(NamedTuple):
    """Something that should be looked at."""

    severity: str  # error: the labels are wrong or will spoil a training; warning: look at it; note
    set: str
    where: str  # file and frame; of several, the first
    n: int  # frames
    what: str
    remedy: str


class SetAudit(NamedTuple):
    """One set of frames."""

    name: str
    n_frames: int
    n_atoms: tuple[int, float, int]  # smallest, median, largest structure
    elements: dict[str, int]  # frames in which each occurs
    labelled: dict[str, int]  # frames with energy, forces, virial
    keys: dict[str, int]  # "energy: REF_energy" -> frames
    references: dict[str, float]  # eV, least-squares energy of each element (of minimal norm where undetermined)
    residual: float | None  # meV/atom, RMS of what the references leave
    forces: str  # whether forces belong to the energies
    virial: str  # whether virials do


class Audit(NamedTuple):
    """What an audit found."""

    sets: tuple[SetAudit, ...]
    findings: tuple[Finding, ...]  # errors first


def audit(sets: Mapping[str, Iterable[Frame]]) -> Audit:
    """Looks at every frame of every set once, keeping a few hundred bytes of each.

    Signs and units of forces and virials are judged from similar frames of a set and from clusters in vacuum (see
    `consistency`), and from magnitudes; where that cannot tell, the audit says "not testable".
    """
    looked = [_Set(name) for name in sets]
    for one, frames in zip(looked, sets.values(), strict=True):
        for frame in frames:
            one.look(frame)
    findings = [found for one in looked for found in one.findings()]
    findings += _copies(looked) + _shifts(looked)
    order = {"error": 0, "warning": 1, "note": 2}
    return Audit(tuple(one.result() for one in looked), tuple(sorted(findings, key=lambda f: order[f.severity])))


class _Set:
    """What is kept of the frames of a set."""

    def __init__(self, name: str):
        self.name = name
        self.sources: list[str] = []
        self.counts: list[np.ndarray] = []  # atoms of each atomic number
        self.energies: list[float] = []
        self.weights: list[np.ndarray] = []
        self.keys: Counter = Counter()
        self.prints: list[tuple] = []  # of the structure, to find copies
        self.pairs: list[consistency.Pair] = []
        self.clusters: list[tuple] = []
        self.last: dict[bytes, Frame] = {}
        self.faults: dict[tuple[str, str, str], list[tuple[str, float]]] = defaultdict(list)
        self.stresses: list[float] = []

    def look(self, frame: Frame) -> None:
        """One more frame."""
        numbers = np.asarray(frame.system.numbers)
        self.sources.append(frame.source)
        self.counts.append(np.bincount(numbers, minlength=119).astype(np.int32))
        self.energies.append(float(frame.labels.energy))
        self.weights.append(np.asarray(frame.labels.weights, np.float64))
        self.keys.update(f"{label}: {key}" for label, key in zip(LABELS, frame.keys, strict=True) if key)
        self.prints.append(_print(frame))
        self._compare(frame, numbers)
        self._distances(frame, numbers)
        self._forces(frame)
        self._stress(frame)

    def _fault(self, severity: str, what: str, remedy: str, frame: Frame, value: float) -> None:
        self.faults[severity, what, remedy].append((frame.source, value))

    def _compare(self, frame: Frame, numbers: np.ndarray) -> None:
        key = numbers.tobytes() + bytes(frame.system.pbc.tolist())
        before = self.last.get(key)
        self.last[key] = frame
        if before is not None and len(self.pairs) < PAIRS and (found := consistency.pair(before, frame)) is not None:
            self.pairs.append(found)
        if len(self.clusters) < PAIRS and frame.system.pbc.all() and (found := consistency.cluster(frame)) is not None:
            self.clusters.append((found, frame.source))

    def _distances(self, frame: Frame, numbers: np.ndarray) -> None:
        i, j, _, r = pairs(frame.system, REACH)
        if len(numbers) == 1 and len(r) == 0:
            self._fault("note", "single atoms", "Fine as energy references; they teach no forces.", frame, 1)
            return
        alone = len(numbers) - len(np.unique(i))
        if alone:
            what = f"atoms without a neighbour within {REACH:g} Å (most in a frame: {{:g}})"
            self._fault("warning", what, "Was the cell or an atom lost? Else leave the frames out.", frame, alone)
        if len(r):
            radii = ase.data.covalent_radii[numbers]
            ratio = float(np.min(r / (radii[i] + radii[j])))
            if ratio < 0.55:
                severity, what = (
                    ("error" if ratio < 0.35 else "warning"),
                    "atoms closer than {:.2f} of their covalent radii",
                )
                self._fault(severity, what, "Check units (bohr?) and cell; leave broken frames out.", frame, ratio)

    def _forces(self, frame: Frame) -> None:
        if frame.labels.weights[1] == 0:
            return
        forces = np.asarray(frame.labels.forces, np.float64)
        size = np.linalg.norm(forces, axis=1)
        if size.max() > LARGE:
            what = f"forces above {LARGE:g} eV/Å (largest: {{:.1f}})"
            self._fault(
                "warning", what, "Right for atoms that are close; else leave the frames out.", frame, size.max()
            )
        zero, net = np.all(forces == 0, axis=1), float(np.linalg.norm(forces.sum(axis=0)))
        if zero.any() and not zero.all() and net > max(0.05, 0.02 * size.sum()):
            what = "forces that are exactly zero on some atoms while the others add up to {:.2f} eV/Å: constraints"
            self._fault("error", what, "Write forces without constraints (ASE: apply_constraint=False).", frame, net)

    def _stress(self, frame: Frame) -> None:
        if frame.labels.weights[2] == 0:
            return
        virial = np.asarray(frame.labels.virial, np.float64)
        size = np.abs(virial).max()
        self.stresses.append(float(size / max(abs(np.linalg.det(frame.system.cell)), 1e-9)))
        skew = float(np.abs(virial - virial.T).max())
        if skew > 1e-3 * size + 1e-4:
            what = "virials that are not symmetric (by up to {:.2g} eV)"
            self._fault("warning", what, "Check the order of the components: xx yy zz yz xz xy.", frame, skew)

    def findings(self) -> list[Finding]:
        """What this set alone shows."""
        found = [self._of(key, hits) for key, hits in self.faults.items()]
        found += self._verdicts() + self._outliers() + self._missing()
        return found

    def _of(self, key: tuple[str, str, str], hits: list[tuple[str, float]]) -> Finding:
        severity, what, remedy = key
        worst = min(hits, key=lambda h: h[1]) if "closer" in what else max(hits, key=lambda h: h[1])
        return Finding(severity, self.name, worst[0], len(hits), what.format(worst[1]), remedy)

    def _verdicts(self) -> list[Finding]:
        found, remedy = [], "Convert the label (lamjax.units) or its key, and check again."
        for ratio, verdict in self._ratios():
            wrong, text = verdict(ratio)
            if wrong:
                found.append(Finding("error", self.name, ratio.source, ratio.n, text, remedy))
        if self.stresses and np.median(self.stresses) > HUGE and not found:
            what = f"stresses of {np.median(self.stresses):.2g} eV/Å³ (median of the largest components): GPa or kbar?"
            found.append(Finding("warning", self.name, self.sources[0], len(self.stresses), what, remedy))
        return found

    def _ratios(self):
        best = consistency.virial_ratio(self.pairs)
        if best.value is None:
            best = consistency.cluster_ratio(self.clusters)
        return (consistency.force_ratio(self.pairs), consistency.verdict_forces), (best, consistency.verdict_virial)

    def fit(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """(energies per element (119,), rows with an energy, what is left per atom (eV)) by least squares."""
        rows = np.flatnonzero([w[0] > 0 for w in self.weights])
        if len(rows) == 0:
            return None
        counts = np.array([self.counts[k] for k in rows], np.float64)
        target = np.array([self.energies[k] for k in rows])
        n = counts.sum(axis=1)
        energies = np.linalg.lstsq(counts / n[:, None], target / n, rcond=None)[0]
        return energies, rows, (target - counts @ energies) / n

    def _outliers(self) -> list[Finding]:
        if (fitted := self.fit()) is None or len(fitted[1]) < 10:
            return []
        _, rows, left = fitted
        left = left - np.median(left)
        width = 1.4826 * np.median(np.abs(left))
        bad = np.flatnonzero((np.abs(left) > FAR * width) & (np.abs(left) > LEAST))
        if len(bad) == 0:
            return []
        worst = int(bad[np.argmax(np.abs(left[bad]))])
        what = f"energies far from the fit to the composition (most: {left[worst]:+.2f} eV/atom, usual {width:.2g})"
        remedy = "Another phase, or a calculation that did not converge: look, then leave out."
        return [Finding("warning", self.name, self.sources[rows[worst]], len(bad), what, remedy)]

    def _missing(self) -> list[Finding]:
        found, n = [], len(self.sources)
        for k, label in enumerate(LABELS):
            lacking = [i for i, w in enumerate(self.weights) if w[k] == 0]
            if lacking and (label != "virial" or len(lacking) < n):
                text = f"no {label} label"
                found.append(
                    Finding("note", self.name, self.sources[lacking[0]], len(lacking), text, "It weighs nothing.")
                )
        present = np.sum([c > 0 for c in self.counts], axis=0) if n else np.zeros(119)
        rare = [ase.data.chemical_symbols[z] for z in np.flatnonzero((present > 0) & (present < 3))]
        if rare and n > 10:
            what = f"elements in fewer than three frames: {' '.join(rare)}"
            found.append(Finding("note", self.name, self.sources[0], len(rare), what, "Too few to learn from."))
        return found

    def result(self) -> SetAudit:
        """The facts of the set."""
        counts, fitted = np.array(self.counts).reshape(-1, 119), self.fit()
        sizes = counts.sum(axis=1) if len(counts) else np.zeros(1)
        present = {ase.data.chemical_symbols[z]: int(n) for z, n in enumerate((counts > 0).sum(axis=0)) if n and z}
        references, residual = {}, None
        if fitted is not None:
            references = {e: float(fitted[0][ase.data.atomic_numbers[e]]) for e in present}
            residual = float(1e3 * np.sqrt(np.mean(fitted[2] ** 2)))
        weights = np.array(self.weights).reshape(-1, 3)
        (forces, of_forces), (virial, of_virial) = self._ratios()
        return SetAudit(
            self.name,
            len(self.sources),
            (int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
            present,
            {label: int(np.sum(weights[:, k] > 0)) for k, label in enumerate(LABELS)},
            dict(self.keys),
            references,
            residual,
            of_forces(forces)[1],
            of_virial(virial)[1],
        )


def _print(frame: Frame) -> tuple:
    """Equal for equal structures, up to a translation by the lattice (to 0.001 Å)."""
    system = frame.system
    positions, cell = np.asarray(system.positions, np.float64), np.asarray(system.cell, np.float64)
    if system.pbc.all():
        positions = (positions @ np.linalg.inv(cell) + 1e-7) % 1 @ cell
    exact = np.round(np.concatenate([positions, cell]), 3) + 0.0
    return hash(np.asarray(system.numbers).tobytes()), hash(exact.tobytes())


def _copies(looked: list[_Set]) -> list[Finding]:
    """Frames that occur twice, in one set or in two."""
    seen: dict[tuple, tuple[int, int]] = {}
    inside: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for s, one in enumerate(looked):
        for k, key in enumerate(one.prints):
            if key in seen:
                inside[seen[key][0], s].append((seen[key][1], k, s))
            else:
                seen[key] = (s, k)
    found = []
    for (a, b), hits in inside.items():
        first, copy, _ = hits[0]
        n = [float(looked[b].counts[k].sum()) for _, k, _ in hits]
        gaps = [abs(looked[a].energies[i] - looked[b].energies[k]) / m for (i, k, _), m in zip(hits, n, strict=True)]
        what = f"copies, the first of {looked[a].sources[first]}"
        if a != b:
            what = f"frames that are in {looked[a].name} too, the first: {looked[a].sources[first]}"
        if max(gaps) > 1e-3:
            what += f"; their energies differ by up to {max(gaps):.3g} eV/atom"
        remedy = "Leave copies out; a test set must share no frame with the training set."
        found.append(Finding("warning", looked[b].name, looked[b].sources[copy], len(hits), what, remedy))
    return found


def _shifts(looked: list[_Set]) -> list[Finding]:
    """Sets whose energies of the same elements lie apart: other codes, pseudopotentials or functionals."""
    found = []
    for b, other in enumerate(looked):
        for one in looked[:b]:
            shift = _shift(one, other)
            if shift is not None and abs(shift) > SHIFT:
                what = f"energies lie {shift:+.2f} eV/atom from those of {one.name} (median, same elements)"
                remedy = "Another level of theory: give each set a head of its own (tasks), or shift it."
                found.append(Finding("warning", other.name, other.sources[0], len(other.sources), what, remedy))
    return found


def _shift(one: _Set, other: _Set) -> float | None:
    """The median of energy minus what the references of `one` say, over frames whose composition these determine."""
    fitted, rows = one.fit(), [k for k, w in enumerate(other.weights) if w[0] > 0]
    if fitted is None or not rows:
        return None
    known = np.array([one.counts[k] for k in fitted[1]], np.float64)
    _, size, directions = np.linalg.svd(known / known.sum(axis=1, keepdims=True), full_matrices=False)
    directions = directions[size > 1e-6 * size[0]]
    counts = np.array([other.counts[k] for k in rows], np.float64)
    counts, energies = counts / counts.sum(axis=1, keepdims=True), np.array([other.energies[k] for k in rows])
    outside = np.abs(counts - counts @ directions.T @ directions).max(axis=1) > 1e-6
    if outside.all():
        return None
    n = np.array([other.counts[k].sum() for k in rows])
    return float(np.median((energies / n - counts @ fitted[0])[~outside]))
