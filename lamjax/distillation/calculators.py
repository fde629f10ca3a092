"""ASE calculators as labellers: found by ASE's name for them, or imported as "package.module:factory"."""

import difflib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np
from ase.calculators import calculator as calculators

from lamjax import imports
from lamjax.calculator import Calculator
from lamjax.data import records
from lamjax.distillation.answers import Failed, bare, labelled
from lamjax.imports import FAILURES
from lamjax.potential import Potential

ROUNDING: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-4}  # eV, eV/Å, eV/Å³: larger differences are not rounding
MISSING = (calculators.PropertyNotImplementedError, NotImplementedError)


class CalculatorLabeller:
    """Any ASE calculator. A calculation that fails, or gives what is no number, costs its frame and nothing else.

    `make` returns a calculator. With `reuse` one instance serves many frames: after its first frame it is compared
    with a new one, and if the two disagree beyond rounding every frame gets a new one. One that failed is replaced.
    """

    def __init__(
        self, make: Callable[[], Any], name: str = "calculator", reuse: bool = False, level: str | None = None
    ) -> None:
        self.make, self.name, self.reuse = make, name, reuse
        self.level = name if level is None else level  # the level of theory in the info of labelled frames
        self._kept: Any = None  # the instance that is used again
        self._has_answered = False  # the kept one, before
        self._compared = False  # an instance that had answered before, with a new one

    def label(self, frames: Sequence[ase.Atoms], folder: Path | None = None) -> Iterator[ase.Atoms | Failed]:
        """Energies and forces, and stresses where the cell is periodic and the calculator has them.

        The energy is the one of which the forces are the derivative (ASE's `free_energy`) where there is one.
        """
        for atoms in frames:
            try:
                yield labelled(atoms, **self._results(bare(atoms)))
            except FAILURES as error:
                self._kept = None
                yield Failed(f"{self.name}: {type(error).__name__}: {error}")

    def instance(self) -> Any:
        """A calculator: the stored instance if it may be reused, else a new one."""
        return self.make() if self._kept is None else self._kept

    def _results(self, atoms: ase.Atoms) -> dict[str, Any]:
        used = self._kept is not None and self._has_answered
        calculator, self._kept = self.instance(), None
        answer = results(calculator, atoms)
        if used and not self._compared:
            new = results(self.make(), atoms)
            self._compared, self.reuse = True, _agree(answer, new)
            answer = answer if self.reuse else new
        self._kept, self._has_answered = calculator if self.reuse else None, self.reuse
        return answer


def results(calculator: Any, atoms: ase.Atoms) -> dict[str, Any]:
    """Energy (eV), forces (eV/Å) and maybe stress (eV/Å³, Voigt) in float64; ValueError for what is no such number."""
    if hasattr(calculator, "reset"):
        calculator.reset()  # forget the frame before
    asked = atoms.copy()
    asked.calc = calculator
    energy, forces = asked.get_potential_energy(), asked.get_forces(apply_constraint=False)
    properties = {"energy": _consistent(asked, energy), "forces": forces}
    if asked.pbc.all() and (stress := _stress(asked)) is not None:
        properties["stress"] = stress
    shapes = {"energy": (), "forces": (len(atoms), 3), "stress": (6,)}
    return {name: _checked(name, value, shapes[name]) for name, value in properties.items()}


def open_calculator(name: str, options: dict[str, Any], reuse: bool | None = None) -> CalculatorLabeller:
    """The labeller of a name and keyword arguments; ValueError for what cannot be imported or made, before any frame.

    `reuse` is by default that of an imported class, whose weights take long to load. A name in ASE's list gets a new
    instance for each frame: programs that write files may go on from those of the frame before.
    """
    make = functools.partial(_for_ase, calculator_class(name), **options)
    made = _made(make, name, options)
    reuse = imports.is_named(name) if reuse is None else reuse
    labeller = CalculatorLabeller(make, name, reuse, _level(name, options))
    labeller._kept = made if reuse else None
    return labeller


def _for_ase(factory: Callable[..., Any], /, **options: Any) -> Any:
    """The result of a factory, a potential of lamjax, alone or with its parameters, as a calculator."""
    made = factory(**options)
    if isinstance(made, Potential):
        made = (made, made.init(jax.random.key(0)))
    is_model = isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Potential)
    return Calculator(made) if is_model else made


def _level(name: str, options: dict[str, Any]) -> str:
    """The calculator and its options, by which its labels are distinguished from those of another one."""
    settings = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return records.one_line(f"{name} ({settings})" if settings else name).replace('"', "'").replace("\\", "/")


def calculator_class(name: str) -> Callable[..., Any]:
    """Class or function that makes a calculator: "package.module:factory", imported, or a name in ASE's list or tblite.

    Only a name that the user gives, in a config or a command, may come here: importing runs the package's code.
    """
    if imports.is_named(name):
        return _imported(name)
    known = sorted({*calculators.names, "tblite"})
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
        raise ValueError(
            f"labeller.name: {name!r} is no calculator. {hint} A class that ASE does not list is named as "
            "package.module:factory, for example chgnet.model.dynamics:CHGNetCalculator."
        )
    try:
        if name == "tblite":
            from tblite.ase import TBLite

            return TBLite
        return calculators.get_calculator_class(name)
    except ImportError as error:
        raise ValueError(f"The calculator {name!r} is not installed ({error}). pip install {name}?") from error


def _imported(name: str) -> Callable[..., Any]:
    factory = imports.named(name, "labeller.name")
    if not callable(factory) or hasattr(factory, "get_potential_energy") and not isinstance(factory, type):
        kind = type(factory).__name__
        raise ValueError(f"labeller.name: {name!r} is a {kind}. Name a class, or a function that returns a calculator.")
    return factory


def _made(make: Callable[[], Any], name: str, options: dict[str, Any]) -> Any:
    try:
        made = make()
    except FAILURES as error:
        raise ValueError(
            f"The calculator {name} cannot be made with the options {options} ({type(error).__name__}: {error}). "
            "`options` are the keyword arguments of its class or function."
        ) from error
    missing = [key for key in ("get_potential_energy", "get_forces", "get_stress") if not hasattr(made, key)]
    if missing:
        raise ValueError(
            f"{name} returned a {type(made).__name__} without {', '.join(missing)}: no ASE calculator. Name the class "
            "that its package offers for ASE."
        )
    return made


def _consistent(atoms: ase.Atoms, energy: float) -> float:
    """The energy of which the forces are the derivative, where the calculator says both."""
    properties = getattr(atoms.calc, "results", None)
    if isinstance(properties, dict):
        free = properties.get("free_energy")
        return energy if free is None else free
    try:
        return atoms.get_potential_energy(force_consistent=True)
    except (*MISSING, TypeError):
        return energy


def _stress(atoms: ase.Atoms) -> np.ndarray | None:
    """None of a calculator that has no stress; ValueError of one that has, but did not give it."""
    try:
        return atoms.get_stress(apply_constraint=False)
    except MISSING as error:
        if "stress" in getattr(atoms.calc, "implemented_properties", ()):
            raise ValueError("the stress is missing, although the calculator has one.") from error
        return None


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    value = np.asarray(value, np.float64)
    value = value.reshape(()) if not shape and value.size == 1 else value
    if value.shape != shape:
        raise ValueError(f"the {name} has shape {value.shape}, expected {shape}.")
    if not np.isfinite(value).all():
        raise ValueError(f"the {name} is not finite (NaN or infinity).")
    return value if shape else float(value)


def _agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[k], other[k], **ROUNDING) for k in one)
