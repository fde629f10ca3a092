"""Contents of data sets and suspicious frames, with file and number: wrong signs and units, copies, outliers."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import ase.data
import numpy as np

from lamjax.arguments import expect
from lamjax.audit import consistency, references, verdicts
from lamjax.audit import theory_levels as levels
from lamjax.frames import LABELS, Frame
from lamjax.lattice import volume
from lamjax.neighbors.host import pairs

REACH = 6.0  # Å; an atom without a neighbour within is alone
LARGE = 20.0  # eV/Å, of a force
UNUSUAL = 2.0  # eV/Å; smaller forces are no outliers
HUGE = 0.6  # eV/Å³, about 100 GPa, as the median of a set's largest stress components
ABSURD = 20.0  # eV/atom; such energies are no physics
SHIFT = 0.5  # eV/atom between two sets' energies of the same elements
SAME = 1e-3  # eV/atom; copies whose energies differ by more have two labels
PAIRS = 20_000  # comparisons of similar frames in a set that are kept, at most
NAMED = 1000  # frames that a finding names, at most


class Finding(NamedTuple):
    """A fault or peculiarity of a data set, with where it is and what to do."""

    severity: str  # error: the labels are wrong or will spoil a training; warning: look at it; note
    set: str
    where: str  # file and frame; of several, the first
    n: int  # frames
    what: str
    remedy: str
    frames: tuple[str, ...] = ()  # all of them, up to `NAMED`


class SetAudit(NamedTuple):
    """The facts of one data set."""

    name: str
    n_frames: int
    n_atoms: tuple[int, float, int]  # smallest, median, largest structure
    elements: dict[str, int]  # frames in which each occurs
    labelled: dict[str, int]  # frames with energy, forces, virial
    keys: dict[str, int]  # "energy: REF_energy" -> frames
    references: dict[str, float]  # eV, least-squares energy of each element (of minimal norm where undetermined)
    residual: float | None  # meV/atom, RMS of what the references leave, outliers aside
    forces: str  # whether forces belong to the energies
    virial: str  # whether virials do
    others: dict[str, int]  # keys that are no labels -> frames


class Audit(NamedTuple):
    """The facts of every data set, and what is suspicious in them."""

    sets: tuple[SetAudit, ...]
    findings: tuple[Finding, ...]  # errors first


def audit(sets: Mapping[str, Iterable[Frame]]) -> Audit:
    """Looks at every frame of every set once, keeping about a thousand bytes of each, and some whole frames.

    Signs and units of forces and virials are judged from similar frames of a set and from clusters in vacuum (see
    `consistency`), and from magnitudes; where that cannot tell, the audit says "not testable".
    """
    expect(sets, Mapping, "audit takes sets of frames by name", "For example audit({'train': data.read('train.xyz')}).")
    gathered = [_Set(name) for name in sets]
    for one, frames in zip(gathered, sets.values(), strict=True):
        for frame in frames:
            one.look(frame)
    findings = [finding for one in gathered for finding in one.findings()]
    findings += _copies(gathered) + _shifts(gathered) + _other_levels(gathered)
    order = {"error": 0, "warning": 1, "note": 2}
    return Audit(tuple(one.result() for one in gathered), tuple(sorted(findings, key=lambda f: order[f.severity])))


class _Set:
    """Counts and samples of the frames of a set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sources: list[str] = []
        self.counts: list[np.ndarray] = []  # atoms of each atomic number
        self.energies: list[float] = []
        self.weights: list[np.ndarray] = []
        self.keys: Counter = Counter()
        self.others: Counter = Counter()
        self.prints: list[tuple] = []  # of the structure, to find copies
        self.similar = consistency.Similar()
        self.pairs, self.clusters = _Sample(), _Sample()
        self.free: list[bool] = []  # one atom in vacuum
        self.largest: list[float] = []  # eV/Å, force of each frame
        self.faults: dict[tuple[str, str, str], list[tuple[str, float]]] = defaultdict(list)
        self.stresses: list[float] = []
        self.levels: dict[str, str] = {}  # level of theory -> its first frame
        self.n_levels: Counter = Counter()

    def look(self, frame: Frame) -> None:
        """Add one frame to what is counted and compared."""
        numbers = np.asarray(frame.system.numbers)
        self.sources.append(frame.source)
        self.counts.append(np.bincount(numbers, minlength=119).astype(np.int32))
        self.energies.append(float(frame.labels.energy))
        self.weights.append(np.asarray(frame.labels.weights, np.float64))
        self.keys.update(f"{label}: {key}" for label, key in zip(LABELS, frame.keys, strict=True) if key)
        self.others.update(frame.info.keys())
        self.prints.append(_prints(frame))
        if any(frame.labels.weights):
            self.levels.setdefault(levels.level_of(frame), frame.source)
            self.n_levels[levels.level_of(frame)] += 1
        self._compare(frame)
        self._distances(frame, numbers)
        self._forces(frame)
        self._stress(frame)

    def _fault(self, severity: str, what: str, remedy: str, frame: Frame, value: float) -> None:
        self.faults[severity, what, remedy].append((frame.source, value))

    def _compare(self, frame: Frame) -> None:
        for comparison in self.similar.pairs(frame):
            self.pairs.add(comparison)
        if frame.system.pbc.all() and (comparison := consistency.cluster(frame)) is not None:
            self.clusters.add(comparison)

    def _distances(self, frame: Frame, numbers: np.ndarray) -> None:
        i, j, _, r = pairs(frame.system, REACH)
        self.free.append(len(numbers) == 1 and len(r) == 0)
        if self.free[-1]:
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
            self.largest.append(np.nan)
            return
        forces = np.asarray(frame.labels.forces, np.float64)
        size = np.linalg.norm(forces, axis=1)
        self.largest.append(float(size.max()))
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
        self.stresses.append(float(size / max(volume(np.asarray(frame.system.cell)), 1e-9)))
        if size == 0:
            what = "virials that are exactly zero: a placeholder, not a label"
            self._fault("warning", what, "Remove the key where nothing was calculated.", frame, 0)
        skew = float(np.abs(virial - virial.T).max())
        if skew > 1e-3 * size + 1e-4:
            what = "virials that are not symmetric (by up to {:.2g} eV)"
            self._fault("warning", what, "Check the order of the components: xx yy zz yz xz xy.", frame, skew)

    def findings(self) -> list[Finding]:
        """The findings of this set by itself, without comparison with others."""
        shown = [self._worst(key, hits) for key, hits in self.faults.items()]
        shown += self._verdicts() + self._outliers() + self._missing()
        if len(self.levels) > 1:
            what = f"labels of several levels of theory: {levels.described(self.n_levels)}"
            rarest = min(self.n_levels, key=self.n_levels.__getitem__)
            remedy = "Give each a set, and a head, of its own, unless all are of one level."
            severity = "error" if len(self.levels.keys() - {levels.UNKNOWN}) > 1 else "warning"
            where, n = self.levels[rarest], self.n_levels[rarest]
            shown.append(Finding(severity, self.name, where, n, what, remedy, (where,)))
        return shown

    def _worst(self, key: tuple[str, str, str], hits: list[tuple[str, float]]) -> Finding:
        severity, what, remedy = key
        worst = min(hits, key=lambda h: h[1]) if "closer" in what else max(hits, key=lambda h: h[1])
        return self._finding(severity, what.format(worst[1]), remedy, [source for source, _ in hits], worst[0])

    def _finding(
        self, severity: str, what: str, remedy: str, frames: Sequence[str], where: str | None = None
    ) -> Finding:
        return Finding(
            severity, self.name, frames[0] if where is None else where, len(frames), what, remedy, tuple(frames[:NAMED])
        )

    def _verdicts(self) -> list[Finding]:
        remedy = "Convert the label (lamjax.units) or rename its key, and check again."
        findings = [self._finding(v.severity, v.text, remedy, v.sources) for v in self.judged if v.severity]
        untested = self.judged[1].factor is None and not findings
        if self.stresses and untested and np.median(self.stresses) > HUGE:
            what = f"stresses of {np.median(self.stresses):.2g} eV/Å³ (median of the largest components): GPa or kbar?"
            rows = [source for source, w in zip(self.sources, self.weights, strict=True) if w[2] > 0]
            findings.append(
                self._finding("warning", what, "Compare with the output of the code: eV/Å³ is meant.", rows)
            )
        return findings

    @cached_property
    def judged(self) -> tuple[verdicts.Verdict, verdicts.Verdict]:
        """The verdicts on forces and virials."""
        return verdicts.judge(self.pairs.kept, self.clusters.kept)

    @cached_property
    def composition(self) -> np.ndarray:
        return np.array(self.counts, np.int32).reshape(-1, 119)

    def rows(self) -> np.ndarray:
        """Frames with an energy, other than free atoms, unless these are all there is."""
        rows = np.flatnonzero([w[0] > 0 for w in self.weights])
        bound = rows[~np.array(self.free, bool)[rows]]
        return bound if len(bound) else rows

    @cached_property
    def fit(self) -> references.Fit | None:
        return references.fit(self.composition, np.array(self.energies), self.rows())

    def _outliers(self) -> list[Finding]:
        return self._energies() + self._unusual_forces()

    def _energies(self) -> list[Finding]:
        findings, fitted = [], self.fit
        if fitted is None:
            return []
        left = np.abs(fitted.left)
        remedy = "Another phase, or a calculation that did not converge: look, then leave out."
        for severity, low, high in (("error", ABSURD, np.inf), ("warning", 0.0, ABSURD)):
            bad = np.flatnonzero(fitted.far & (left > low) & (left <= high))
            if len(bad):
                worst = bad[np.argmax(left[bad])]
                what = (
                    f"energies far from the fit to the composition (most: {fitted.left[worst]:+.2f} eV/atom, "
                    f"usual {fitted.width:.2g})"
                )
                frames = [self.sources[k] for k in fitted.rows[bad]]
                findings.append(self._finding(severity, what, remedy, frames, self.sources[fitted.rows[worst]]))
        return findings

    def _unusual_forces(self) -> list[Finding]:
        """Frames whose largest force is far above those of the others, though not above `LARGE`."""
        largest = np.array(self.largest)
        rows = np.flatnonzero(largest > 1e-3)
        if len(rows) < 20:
            return []
        logs = np.log(largest[rows])
        width = max(1.4826 * np.median(np.abs(logs - np.median(logs))), 0.1)
        bad = rows[(logs - np.median(logs) > 8 * width) & (largest[rows] > UNUSUAL) & (largest[rows] <= LARGE)]
        if len(bad) == 0:
            return []
        worst = bad[np.argmax(largest[bad])]
        what = f"forces far above those of the other frames (largest: {largest[worst]:.1f}, usual "
        what += f"{np.exp(np.median(logs)):.2g} eV/Å)"
        remedy = "Right for atoms that are close; else leave the frames out."
        return [self._finding("warning", what, remedy, [self.sources[k] for k in bad], self.sources[worst])]

    def _missing(self) -> list[Finding]:
        findings, n = [], len(self.sources)
        for k, label in enumerate(LABELS):
            lacking = [i for i, w in enumerate(self.weights) if w[k] == 0]
            if lacking and (label != "virial" or len(lacking) < n):
                frames = [self.sources[i] for i in lacking]
                findings.append(self._finding("note", f"no {label} label", "It weighs nothing.", frames))
        present = np.sum(self.composition > 0, axis=0)
        rare = np.flatnonzero((present > 0) & (present < 3))
        if len(rare) and n > 10:
            what = f"elements in fewer than three frames: {' '.join(ase.data.chemical_symbols[z] for z in rare)}"
            rows = np.flatnonzero(self.composition[:, rare].any(axis=1))
            findings.append(self._finding("note", what, "Too few to learn from.", [self.sources[k] for k in rows]))
        return findings

    def result(self) -> SetAudit:
        """The facts of the set."""
        counts, fitted = self.composition, self.fit
        sizes = counts.sum(axis=1) if len(counts) else np.zeros(1)
        present = {ase.data.chemical_symbols[z]: int(n) for z, n in enumerate((counts > 0).sum(axis=0)) if n and z}
        energies, residual = {}, None
        if fitted is not None:
            energies = {e: float(fitted.energies[ase.data.atomic_numbers[e]]) for e in present}
            residual = float(1e3 * np.sqrt(np.mean(fitted.left[~fitted.far] ** 2)))
        weights = np.array(self.weights).reshape(-1, 3)
        return SetAudit(
            self.name,
            len(self.sources),
            (int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
            present,
            {label: int(np.sum(weights[:, k] > 0)) for k, label in enumerate(LABELS)},
            dict(self.keys),
            energies,
            residual,
            self.judged[0].text,
            self.judged[1].text,
            dict(self.others),
        )


class _Sample:
    """Reservoir sample: some of the items that are added, each with equal probability."""

    def __init__(self) -> None:
        self.kept: list = []
        self.seen, self.random = 0, np.random.default_rng(0)

    def add(self, one: Any) -> None:
        self.seen += 1
        if len(self.kept) < PAIRS:
            self.kept.append(one)
        elif (place := int(self.random.integers(self.seen))) < PAIRS:
            self.kept[place] = one


def _prints(frame: Frame) -> tuple[int, int]:
    """One of them is equal for equal structures, up to a translation by the lattice (to about 0.001 Å)."""
    system = frame.system
    positions, cell = np.asarray(system.positions, np.float64), np.asarray(system.cell, np.float64)
    if system.pbc.all():
        positions = (positions @ np.linalg.inv(cell) + 1e-7) % 1 @ cell
    numbers, values = np.asarray(system.numbers).tobytes(), np.concatenate([positions, cell])
    grids = (np.round(values + offset, 3) + 0.0 for offset in (0.0, 0.0005))  # one may split equal values, not both
    first, second = (hash((numbers, k, grid.tobytes())) for k, grid in enumerate(grids))
    return first, second


def _copies(gathered: list[_Set]) -> list[Finding]:
    """Frames that occur twice, in one set or in two."""
    first_frames: dict[int, tuple[int, int]] = {}
    inside: dict[tuple[int, int, bool], list[tuple[int, int, float]]] = defaultdict(list)
    for s, one in enumerate(gathered):
        for k, keys in enumerate(one.prints):
            first = next((first_frames[key] for key in keys if key in first_frames), None)
            for key in keys:
                first_frames.setdefault(key, (s, k))
            if first is not None:
                both = one.weights[k][0] > 0 and gathered[first[0]].weights[first[1]][0] > 0
                gap = (
                    abs(gathered[first[0]].energies[first[1]] - one.energies[k]) / one.counts[k].sum() if both else 0.0
                )
                inside[first[0], s, gap > SAME].append((first[1], k, float(gap)))
    return [_copy(gathered[a], gathered[b], hits) for (a, b, _), hits in inside.items()]


def _copy(one: _Set, other: _Set, hits: list[tuple[int, int, float]]) -> Finding:
    first, gap = one.sources[hits[0][0]], max(gap for _, _, gap in hits)
    what = f"copies, the first of {first}"
    remedy = "Leave copies out; a test set must share no frame with the training set."
    if one is not other:
        what = f"frames that are in {one.name} too, the first: {first}"
    if gap > SAME:
        what += f"; their energies differ by up to {gap:.3g} eV/atom"
        if one is other:
            remedy = "Leave the wrong one out: two labels of one structure cannot both be learnt."
        else:
            remedy = "Fine for two levels of theory with heads of their own; else leave the wrong one out."
    return other._finding("warning", what, remedy, [other.sources[k] for _, k, _ in hits])


def _shifts(gathered: list[_Set]) -> list[Finding]:
    """Sets whose energies of the same elements lie apart: other codes, pseudopotentials or functionals."""
    findings = []
    for b, other in enumerate(gathered):
        for one in gathered[:b]:
            if one.fit is None or other.fit is None or all(one.free) != all(other.free):
                continue
            shift = references.shift(one.fit, other.composition, np.array(other.energies), other.rows())
            if shift is not None and abs(shift) > max(SHIFT, 4 * one.fit.width):
                what = f"energies lie {shift:+.2f} eV/atom from those of {one.name} (median, same elements)"
                remedy = "Another level of theory: give each set a head of its own (tasks), or shift it."
                findings.append(Finding("warning", other.name, other.sources[0], len(other.sources), what, remedy))
    return findings


def _other_levels(gathered: list[_Set]) -> list[Finding]:
    """Sets that were labelled by others than the first one; one that does not say is not compared."""
    findings = []
    named = [(one, set(one.levels) - {levels.UNKNOWN}) for one in gathered]
    first = next(((one, codes) for one, codes in named if codes), None)
    for other, codes in named:
        if first is not None and codes and codes != first[1]:
            what = f"labelled by {' and '.join(sorted(codes))}; {first[0].name} by {' and '.join(sorted(first[1]))}"
            remedy = "Another level of theory: give each set a head of its own (tasks)."
            findings.append(Finding("warning", other.name, other.sources[0], len(other.sources), what, remedy))
    return findings
