"""Verdicts from the comparisons of `consistency`: forces and virials are right, or have a wrong sign or unit."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lamjax import units
from lamjax.audit.consistency import Cluster, FramePair

FEW = 3  # a verdict rests on at least so many comparisons
SOME = 8  # and on so many where each of them is less certain
CLEAR, ROUGH = 1.25, 1.5  # factors within which a ratio is a known one
HARTREE, RYDBERG, BOHR = 27.211386, 13.605693, 0.529177
KCAL, KJ = 0.0433641, 0.0103643  # eV, of one per mole
LEAST = 2e-4  # eV; smaller energy changes are rounded


class Ratio(NamedTuple):
    """One comparison: true value over label, by a factor that is known to be right to a quarter or so."""

    value: float
    n_atoms: int
    volume: float  # Å³
    as_virial: bool
    source: str


class Verdict(NamedTuple):
    """The meaning of a label as the comparisons within a set determine it."""

    severity: str  # error, warning, or "" without a fault
    text: str
    sources: tuple[str, ...]  # the frames that it rests on, if something is wrong
    factor: Callable | None  # Ratio or FramePair -> true value over label; None if not tested


FACTOR = Callable[[Any], float]
RIGHT: FACTOR = lambda r: 1.0  # noqa: E731
ENERGIES: dict[str, FACTOR] = {
    "the energies are in hartree": lambda r: 1 / HARTREE,
    "the energies are in rydberg": lambda r: 1 / RYDBERG,
    "the energies are in kcal/mol": lambda r: 1 / KCAL,
    "the energies are in kJ/mol": lambda r: 1 / KJ,
    "the energies are per atom": lambda r: 1 / r.n_atoms,
}
FORCES: dict[str, FACTOR] = {
    "the forces are right": RIGHT,
    "the forces have the wrong sign (they are gradients)": lambda r: -1.0,
    "the forces are in hartree/bohr": lambda r: HARTREE / BOHR,
    "the forces are in rydberg/bohr": lambda r: RYDBERG / BOHR,
    "the forces are in kcal/mol/Å": lambda r: KCAL,
    "the forces are in kJ/mol/Å": lambda r: KJ,
    "the forces are in kJ/mol/nm": lambda r: KJ / 10,
    "energies and forces are in hartree and hartree/bohr, or in rydberg and rydberg/bohr": lambda r: 1 / BOHR,
    **{f"{text}, not the forces": factor for text, factor in ENERGIES.items()},
}


def _stored(stress: FACTOR, virial: FACTOR) -> FACTOR:
    return lambda r: virial(r) if r.as_virial else stress(r)


def _never(r: Ratio) -> float:
    return np.nan


VIRIALS: dict[str, FACTOR] = {
    "stress and virial are right": RIGHT,
    "stress or virial has the wrong sign": lambda r: -1.0,
    "the stress is in GPa": _stored(lambda r: units.GPA, _never),
    "the stress is in GPa and of the wrong sign": _stored(lambda r: -units.GPA, _never),
    "the stress is in kbar": _stored(lambda r: units.KBAR, _never),
    "the stress is in kbar and of VASP's sign": _stored(lambda r: -units.KBAR, _never),
    "a virial is stored as stress": _stored(lambda r: -1 / r.volume, _never),
    "a virial of the wrong sign is stored as stress": _stored(lambda r: 1 / r.volume, _never),
    "a stress is stored as virial": _stored(_never, lambda r: -r.volume),
    "a stress of the wrong sign is stored as virial": _stored(_never, lambda r: r.volume),
    "a stress in GPa is stored as virial": _stored(_never, lambda r: -r.volume * units.GPA),
    "a stress in kbar is stored as virial": _stored(_never, lambda r: -r.volume * units.KBAR),
    "a stress in kbar and of VASP's sign is stored as virial": _stored(_never, lambda r: r.volume * units.KBAR),
}


def judge(pairs: Sequence[FramePair], clusters: Iterable[Cluster]) -> tuple[Verdict, Verdict]:
    """The verdicts (on the forces, on the virials) of one set."""
    forces = _forces(pairs)
    ratios, sharp = _by_tolerance(lambda t: _virial_ratios(pairs, forces.factor or RIGHT, t))
    if len(ratios) < FEW:
        ratios, sharp = _cluster_ratios(clusters), True
        known, basis = VIRIALS, "the forces over what the virials say"
    else:
        known, basis = VIRIALS, "energy changes over what the virials say of them"
        if forces.factor is None:  # a wrong unit of the energies shows here alone
            known = VIRIALS | ENERGIES
        elif forces.severity:
            known = VIRIALS | {"stress and virial agree with the forces, not with the energies": forces.factor}
    virial = _verdict(ratios, known, basis, "virials", sharp)
    if virial.severity == "error" and "agree with the forces" in virial.text:
        virial = virial._replace(severity="", sources=())
    return forces, virial


def _forces(pairs: Sequence[FramePair]) -> Verdict:
    """The verdict from pairs of one cell, else from all, with the factors of forces and virials that fit best."""
    fixed = [p for p in pairs if p.by_virial == 0]
    ratios, sharp = _by_tolerance(lambda t: _force_ratios(fixed, RIGHT, t))
    if len(ratios) < FEW and (best := _best(pairs)) is not None:
        ratios, sharp = _by_tolerance(lambda t: _force_ratios(pairs, best, t))
    return _verdict(ratios, FORCES, "energy changes over what the forces say of them", "forces", sharp)


def _best(pairs: Sequence[FramePair]) -> FACTOR | None:
    """The meaning of the virials that, with some meaning of the forces, explains the energy changes best."""
    use = [p for p in pairs if abs(p.change) > LEAST and p.by_virial and p.by_forces]
    if len(use) < FEW:
        return None
    change, work, stretch = (np.array([p[k] for p in use]) for k in range(3))
    forces, virials = (
        [np.array([f(p) for p in use]) for f in known.values()] for known in (FORCES, VIRIALS | ENERGIES)
    )
    left = np.full((len(forces), len(virials)), np.inf)
    for i, a in enumerate(forces):
        for k, b in enumerate(virials):
            use_rows = np.isfinite(b)
            if use_rows.any():
                parts = np.stack([change, a * work, b * stretch])[:, use_rows]
                left[i, k] = np.median(np.abs(parts[0] - parts[1] - parts[2]) / np.abs(parts).sum(axis=0))
    return list((VIRIALS | ENERGIES).values())[np.unravel_index(np.argmin(left), left.shape)[1]]


def _by_tolerance(ratios: Callable[[float], list[Ratio]]) -> tuple[list[Ratio], bool]:
    """Ratios from pairs for which the rule is good; where there are none, from less good ones, which takes more."""
    for tolerance, least in ((4.0, FEW), (1.0, SOME), (0.25, SOME)):
        passed = ratios(tolerance)
        if len(passed) >= least:
            return passed, tolerance == 4.0
    return [], False


def _force_ratios(pairs: Sequence[FramePair], virial: FACTOR, tolerance: float) -> list[Ratio]:
    """Energy change (less what the virial says) over the work of the forces, where the forces matter most."""
    ratios = []
    for p in pairs:
        stretch, bend = (virial(p) * p.by_virial, abs(virial(p)) * p.bend[1]) if p.by_virial else (0.0, 0.0)
        rest = p.change - stretch
        if abs(p.by_forces) > max(tolerance * p.bend[0], 1e-12) and abs(rest) > max(LEAST, abs(stretch), 4 * bend):
            ratios.append(Ratio(rest / p.by_forces, p.n_atoms, p.volume, p.as_virial, p.source))
    return ratios


def _virial_ratios(pairs: Sequence[FramePair], forces: FACTOR, tolerance: float) -> list[Ratio]:
    """Energy change (less the work of the forces) over what the virials say of it, where that matters most."""
    ratios = []
    for p in pairs:
        work, bend = forces(p) * p.by_forces, abs(forces(p)) * p.bend[0]
        rest = p.change - work
        if abs(p.by_virial) > max(tolerance * p.bend[1], 1e-12) and abs(rest) > max(LEAST, 2 * abs(work), 4 * bend):
            ratios.append(Ratio(rest / p.by_virial, p.n_atoms, p.volume, p.as_virial, p.source))
    return ratios


def _cluster_ratios(clusters: Iterable[Cluster]) -> list[Ratio]:
    """Ratios of the exact virial of a cluster to its label."""
    use = [c for c in clusters if c.exact > 1e-2 and c.label != 0]
    return [Ratio(c.exact / c.label, c.n_atoms, c.volume, c.as_virial, c.source) for c in use]


def _verdict(ratios: list[Ratio], known: dict[str, FACTOR], basis: str, name: str, sharp: bool) -> Verdict:
    """The meaning that brings the ratios nearest to 1; wrong only if the numbers leave no doubt."""
    if len(ratios) < FEW:
        return Verdict("", f"not testable ({len(ratios)} comparisons)", (), None)
    values = np.array([r.value for r in ratios])
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    spread = f"{basis}: {middle:.4g} (quartiles {low:.3g}, {high:.3g}), {len(ratios)} comparisons"
    sources = tuple(dict.fromkeys(r.source for r in ratios))
    relative = {text: values / np.array([factor(r) for r in ratios]) for text, factor in known.items()}
    right, *others = known
    off = {text: _off(x) for text, x in relative.items()}
    likely = sorted((text for text in others if _is(off[text], len(ratios))), key=lambda text: off[text][0])
    fine = off[right][0] < np.log(ROUGH) and off[right][1] < 0.75
    if likely and not fine:
        also = [t for t in likely[1:] if off[t][0] < np.log(CLEAR)]
        text = likely[0] + "".join(f", or {t}" for t in also[:2])
        return Verdict("error", f"{text}: {spread}", sources, known[likely[0]])
    if sharp and (part := _part(relative, right, ratios)) is not None:
        text, rows = part
        hit = tuple(dict.fromkeys(ratios[k].source for k in rows))
        number = f"{float(np.median(values[rows])):.4g} in {len(rows)} of {len(ratios)} comparisons"
        return Verdict("error", f"in a part of the frames {text}: {basis}: {number}", hit, RIGHT if fine else None)
    if fine:
        return Verdict("", f"{right} ({spread})", (), RIGHT)
    if off[right][1] < 0.25:
        return Verdict("warning", f"{name} do not belong to the energies: {spread}", sources, lambda r: float(middle))
    return Verdict("", f"not testable ({spread}: too wide a spread)", (), None)


def _off(relative: np.ndarray) -> tuple[float, float]:
    """(how far the median is from 1, half the distance of the quartiles) of logarithms; inf where signs disagree."""
    positive = float(np.mean(relative > 0))
    if not np.isfinite(relative).all() or 0.25 < positive < 0.75:
        return np.inf, np.inf
    size = np.log(np.abs(relative[(relative > 0) == (positive > 0.5)]))
    low, middle, high = np.quantile(size, (0.25, 0.5, 0.75))
    return (abs(float(middle)) if positive > 0.5 else np.inf), float(high - low) / 2


def _is(off: tuple[float, float], n: int) -> bool:
    """Whether a meaning fits; ratios that scatter must be more."""
    return (off[0] < np.log(CLEAR) and off[1] < 0.25) or (n >= SOME and off[0] < np.log(ROUGH) and off[1] < 0.5)


def _part(relative: dict[str, np.ndarray], right: str, ratios: list[Ratio]) -> tuple[str, np.ndarray] | None:
    """A meaning other than right that fits a part of the comparisons, and which: at least 5, and one in 20."""

    def near(x: np.ndarray, factor: float) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (x > 0) & (np.abs(np.log(np.abs(x))) < np.log(factor))

    wrong = {t: np.flatnonzero(near(x, CLEAR) & ~near(relative[right], 2.0)) for t, x in relative.items() if t != right}
    text = max(wrong, key=lambda t: len(wrong[t]))
    return (text, wrong[text]) if len(wrong[text]) >= max(5, len(ratios) / 20) else None
