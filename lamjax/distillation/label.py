"""Who says what energies and forces are: the teacher, a calculator of ASE, or files that come back later."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import ase
import numpy as np
from ase.calculators import calculator as calculators
from ase.calculators.singlepoint import SinglePointCalculator

from lamjax import checkpoints, units
from lamjax.data import Frame, ReadOptions, from_atoms, read
from lamjax.data.matching import nearest
from lamjax.distillation.config import CalculatorConfig, FilesConfig, LabellerConfig, TeacherConfig
from lamjax.distillation.files import write_frames
from lamjax.distillation.probes import add_probes
from lamjax.distillation.shapes import Shapes
from lamjax.potential import Params, Potential, Prediction
from lamjax.training.errors import predictions

WANTED, ANSWER = "to_label.extxyz", "answer.extxyz"
CHUNK = 64  # frames that a potential labels before they are written
SAME = 1e-3  # Å; an answer whose atoms lie farther off is one to another question


class Failed(NamedTuple):
    """A frame that has no label, and why."""

    reason: str


class Labeller(Protocol):
    """Anything that can say energies and forces of structures."""

    def label(self, frames: Sequence[ase.Atoms], folder: Path) -> Iterator[ase.Atoms | Failed]:
        """One answer a frame, in order: the frame with a SinglePointCalculator (energy, forces, maybe stress).

        `folder` is that of the round, for files. May raise Waiting.
        """
        ...


class Waiting(Exception):
    """The labels are not there yet; the message says where they are expected."""


class PotentialLabeller:
    """A teacher that is a potential; few shapes, each compiled once for all rounds."""

    def __init__(
        self,
        potential: Potential,
        params: Params,
        batch_size: int | str = "auto:256",
        dtype=np.float32,
        probes: bool = False,
    ):
        self.potential, self.params, self.batch_size = potential, params, batch_size
        self.probes = probes  # whether Hessian-vector products come with the labels
        self.shapes = Shapes(potential.shells, 2, batch_size, dtype)

    def label(self, frames: Sequence[ase.Atoms], folder: Path) -> Iterator[ase.Atoms | Failed]:
        """Energies, forces and stresses of the potential."""
        for first in range(0, len(frames), CHUNK):
            part = frames[first : first + CHUNK]
            packed = self.shapes.pack([from_atoms(bare(atoms)) for atoms in part])
            answers = predictions(self.potential, self.params, packed, self.batch_size)
            if self.probes:
                part = [bare(atoms) for atoms in part]
                add_probes(self.potential, self.params, part, packed, self.batch_size)
            for atoms, found in zip(part, answers, strict=True):
                finite = all(np.isfinite(x).all() for x in found)
                yield _answered(atoms, found) if finite else Failed("The teacher's answer is not finite.")


class CalculatorLabeller:
    """Any ASE calculator. A calculation that fails costs its frame, not the round."""

    def __init__(self, make, name: str = "calculator"):
        self.make, self.name = make, name  # () -> a calculator; a new one for every frame: none remembers a crash

    def label(self, frames: Sequence[ase.Atoms], folder: Path) -> Iterator[ase.Atoms | Failed]:
        """Energies and forces, and stresses where the cell is periodic and the calculator has them."""
        for atoms in frames:
            try:
                yield self._answer(atoms)
            except Exception as error:  # every code has its own ways to fail
                yield Failed(f"{self.name}: {type(error).__name__}: {error}")

    def _answer(self, atoms: ase.Atoms) -> ase.Atoms | Failed:
        asked = bare(atoms)
        asked.calc = self.make()
        forces = asked.get_forces(apply_constraint=False)
        results = {"energy": _consistent_energy(asked), "forces": forces}
        if atoms.pbc.all():
            try:
                results["stress"] = asked.get_stress(apply_constraint=False)
            except (calculators.PropertyNotImplementedError, NotImplementedError):
                pass  # energies and forces are what is needed
        if not all(np.isfinite(value).all() for value in results.values()):
            return Failed(f"{self.name}: the result is not finite.")
        return labelled(atoms, **results)


class FileLabeller:
    """Somebody else: frames are written to a file, and their labels are expected in another beside it."""

    def __init__(self, options: ReadOptions | None = None):
        self.options = options or ReadOptions()  # of the other file

    def label(self, frames: Sequence[ase.Atoms], folder: Path) -> Iterator[ase.Atoms | Failed]:
        """The answers of the file, which may be fewer; Waiting if there is none yet.

        Raises ValueError for answers to other structures: elements, cell or positions differ.
        """
        wanted, answer = folder / WANTED, folder / ANSWER
        numbers = [int(atoms.info.get("number", k)) for k, atoms in enumerate(frames)]
        if not answer.exists():
            write_frames(wanted, [numbered(atoms, k) for k, atoms in zip(numbers, frames, strict=True)])
            raise Waiting(
                f"{len(frames)} frames in {wanted} wait for energies and forces (and stresses). Write the frames with "
                f"them to {answer}, in the same order or with their info `number`, and start the same command with "
                "--resume."
            )
        answers = read(answer, require=("energy", "forces"), options=self.options)
        found = dict(zip(_numbers(answers, max(numbers, default=-1) + 1, answer), answers, strict=True))
        for number, atoms in zip(numbers, frames, strict=True):
            if number not in found:
                yield Failed(f"{answer}: there is no answer to frame {number}.")
            else:
                _check_same(atoms, found[number], f"{answer}, answer to frame {number}")
                labels = found[number].labels
                virial = labels.virial if labels.weights[2] > 0 else None
                yield _of_labels(atoms, float(labels.energy), labels.forces, virial)


def open_labeller(config: LabellerConfig | None, probes: bool = False, options: ReadOptions | None = None) -> Labeller:
    """The labeller of a config; `probes` asks a potential for Hessian-vector products too, `options` are of answers.

    Raises ValueError for a calculator that is not known or not installed.
    """
    match config:
        case TeacherConfig():
            return PotentialLabeller(*load_teacher(config), config.batch_size, config.precision, probes)
        case CalculatorConfig(name=name, options=options):
            make = calculator_class(name)
            return CalculatorLabeller(lambda: make(**options), name)
        case FilesConfig():
            return FileLabeller(options)
    raise ValueError("There is no labeller: name one in the config, or give one to `prepare`.")


def load_teacher(config: TeacherConfig) -> tuple[Potential, Params]:
    """The potential that labels; ValueError listing the heads where one must be chosen."""
    potential, params = checkpoints.load(config.model, config.head, np.dtype(config.precision))
    if potential.head is None:
        raise ValueError(
            f"{config.model} has several heads; set labeller.head to one of {', '.join(potential.config.head_names)}."
        )
    return potential, params


def calculator_class(name: str):
    """The calculator of that name: those that ASE knows by name, and tblite. No code is looked for anywhere else."""
    known = sorted({*calculators.names, "tblite"})
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
        raise ValueError(f"labeller.name: {name!r} is no calculator. {hint}")
    try:
        if name == "tblite":
            from tblite.ase import TBLite

            return TBLite
        return calculators.get_calculator_class(name)
    except ImportError as error:
        raise ValueError(f"The calculator {name!r} is not installed ({error}). pip install {name}?") from error


def _consistent_energy(atoms: ase.Atoms) -> float:
    """The energy (eV) of which the forces are the derivative: the free energy where a calculator tells both."""
    energy = atoms.get_potential_energy()
    free = getattr(atoms.calc, "results", {}).get("free_energy")
    return energy if free is None else free


def labelled(atoms: ase.Atoms, **results) -> ase.Atoms:
    """The structure with its info and these results."""
    atoms = bare(atoms)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def bare(atoms: ase.Atoms) -> ase.Atoms:
    """The structure and its info, without calculator and constraints: forces are those of the energy."""
    copy = atoms.copy()
    copy.calc = None
    copy.set_constraint()
    return copy


def numbered(atoms: ase.Atoms, number: int) -> ase.Atoms:
    """The structure with its number in its info."""
    copy = bare(atoms)
    copy.info["number"] = number
    return copy


def _answered(atoms: ase.Atoms, found: Prediction) -> ase.Atoms:
    virial = np.asarray(found.virial, np.float64) if atoms.pbc.all() else None
    return _of_labels(atoms, float(found.energy), found.forces, virial)


def _of_labels(atoms: ase.Atoms, energy: float, forces, virial) -> ase.Atoms:
    results = {"energy": energy, "forces": np.asarray(forces, np.float64)}
    if virial is not None:
        results["stress"] = units.to_voigt(units.virial_to_stress(virial, atoms.get_volume()))
    return labelled(atoms, **results)


def _numbers(answers: Sequence[Frame], n: int, path: Path) -> list[int]:
    """Which question each answer is to."""
    if all("number" in frame.info for frame in answers):
        numbers = [int(frame.info["number"]) for frame in answers]
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(n)):
            raise ValueError(f"{path}: info `number` must be different for every frame, and 0 to {n - 1}.")
        return numbers
    if len(answers) != n:
        raise ValueError(
            f"{path} holds {len(answers)} frames, {n} were asked for. Keep the info `number` of {WANTED} with every "
            "frame, or answer all of them in their order."
        )
    return list(range(n))


def _check_same(asked: ase.Atoms, answer: Frame, where: str) -> None:
    """ValueError if the structures differ; positions may be wrapped."""
    system = answer.system
    if system.numbers.tolist() != asked.numbers.tolist():
        raise ValueError(f"{where}: other elements, or in another order, than in {WANTED}.")
    if asked.pbc.any() and not np.allclose(system.cell, asked.cell.array, atol=SAME):
        raise ValueError(f"{where}: another cell than in {WANTED}.")
    way = np.linalg.norm(nearest(system.positions - asked.positions, asked.cell.array, asked.pbc), axis=1)
    if way.max() > SAME:
        k = int(way.argmax())
        raise ValueError(f"{where}: atom {k} is {way[k]:.3g} Å from where it is in {WANTED}. Was the frame relaxed?")
