"""New compositions: elements of a structure replaced by their neighbours in the periodic table, the size adapted."""

from collections.abc import Iterable, Sequence

import ase.data
import numpy as np

from lamjax.data import Frame
from lamjax.neighbors.host import pairs
from lamjax.system import Labels, System, scaled

# Isovalent elements one below the other, and elements of one kind (transition metals, lanthanides, actinides) side by
# side. Hydrogen has no neighbour: none of the elements beside or below it bonds as it does.
GROUPS = (
    "Li Na K Rb Cs Fr", "Be Mg Ca Sr Ba Ra", "B Al Ga In Tl", "C Si Ge Sn Pb", "N P As Sb Bi", "O S Se Te Po",
    "F Cl Br I At", "He Ne Ar Kr Xe Rn", "Sc Y Lu", "Ti Zr Hf", "V Nb Ta", "Cr Mo W", "Mn Tc Re", "Fe Ru Os",
    "Co Rh Ir", "Ni Pd Pt", "Cu Ag Au", "Zn Cd Hg", "La Ac", "Ce Th", "Pr Pa", "Nd U", "Pm Np", "Sm Pu",
)  # fmt: skip
ROWS = (
    "Sc Ti V Cr Mn Fe Co Ni Cu Zn", "Y Zr Nb Mo Tc Ru Rh Pd Ag Cd", "Lu Hf Ta W Re Os Ir Pt Au Hg",
    "La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu", "Ac Th Pa U Np Pu",
)  # fmt: skip
LINES = tuple(tuple(line.split()) for line in (*GROUPS, *ROWS))
SCARCE = {"Po", "At", "Rn", "Fr", "Ra"}  # hardly any reference data
USUAL = tuple(symbol for symbol in ase.data.chemical_symbols[1:95] if symbol not in SCARCE)
REACH = 6.0  # Å, in which an atom's nearest neighbour is looked for
TRIES = 20  # for each substitution that is to differ from the others


def similar(symbol: str, elements: Iterable[str] = USUAL, places: int = 1) -> tuple[str, ...]:
    """The elements at most so many places away in the symbol's group or, for d and f elements, in its row."""
    allowed, neighbors = set(elements), set()
    for line in LINES:
        if symbol in line:
            k = line.index(symbol)
            neighbors |= set(line[max(k - places, 0) : k + places + 1])
    return tuple(sorted((neighbors - {symbol}) & allowed, key=ase.data.atomic_numbers.__getitem__))


def stretch(system: System, numbers: np.ndarray) -> float:
    """The factor on all lengths when `numbers` take the places of a structure's elements.

    The sum of the covalent radii of each atom and its nearest neighbour, after over before (radii: ASE's, of Cordero
    et al., 10.1039/b801115j); 1 where no atom has a neighbour.
    """
    i, j, _, _ = pairs(system, REACH)
    if not len(i):
        return 1.0
    _, first = np.unique(i, return_index=True)  # pairs are sorted by distance
    i, j = i[first], j[first]
    old, new = (ase.data.covalent_radii[z] for z in (np.asarray(system.numbers), numbers))
    return float((new[i] + new[j]).sum() / (old[i] + old[j]).sum())


def substituted(
    start: Frame, rng: np.random.Generator, elements: Sequence[str] = USUAL, places: int = 1
) -> Frame | None:
    """The structure with some of its elements, drawn at random, replaced by similar ones that it does not have.

    All atoms of an element are replaced; positions and cell are scaled by `stretch`. None if it has no such element.
    """
    present = sorted({ase.data.chemical_symbols[z] for z in start.system.numbers})
    chosen = rng.random(len(present)) < 0.5
    if not chosen.any():
        chosen[rng.integers(len(present))] = True
    swaps: dict[str, str] = {}
    for symbol in (one for one, is_chosen in zip(present, chosen, strict=True) if is_chosen):
        options = [new for new in similar(symbol, elements, places) if new not in {*present, *swaps.values()}]
        if options:
            swaps[symbol] = options[rng.integers(len(options))]
    return _swapped(start, swaps) if swaps else None


def substitutes(
    starts: Sequence[Frame], n: int, seed: int, elements: Sequence[str] = USUAL, places: int = 1
) -> list[Frame]:
    """At most `n` different substitutions of each start; none of one with fixed atoms, which must keep their places."""
    replaced: list[Frame] = []
    for number, start in enumerate(starts):
        rng, by_source = np.random.default_rng((seed, number, 2)), {}
        for _ in range(TRIES * n if "fixed" not in start.info else 0):
            one = substituted(start, rng, elements, places)
            if one is not None and len(by_source) < n:
                by_source.setdefault(one.source, one._replace(info=one.info | {"seed": seed, "draw": len(by_source)}))
        replaced += by_source.values()
    return replaced


def _swapped(start: Frame, swaps: dict[str, str]) -> Frame:
    table = np.arange(119)
    for old, new in swaps.items():
        table[ase.data.atomic_numbers[old]] = ase.data.atomic_numbers[new]
    system, numbers = start.system, table[start.system.numbers].astype(start.system.numbers.dtype)
    factor = stretch(system, numbers)
    system = scaled(system, factor)._replace(numbers=numbers)
    labels = start.labels
    nothing = Labels(np.zeros_like(labels.energy), *(np.zeros_like(part) for part in labels[1:]))
    exchange = " ".join(f"{old}->{new}" for old, new in sorted(swaps.items()))
    info = {"substituted": exchange, "start": start.source}
    return Frame(system, nothing, f"{start.source}, {exchange}", ("",) * 3, info)
