"""Labellers: the teacher, a calculator of ASE, or files that come back later."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import ase
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from lamjax import checkpoints, units
from lamjax.data import Frame, ReadOptions, from_atoms, read, records
from lamjax.distillation.answers import Failed, bare, labelled
from lamjax.distillation.calculators import open_calculator
from lamjax.distillation.config import CalculatorConfig, FilesConfig, LabellerConfig, TeacherConfig
from lamjax.distillation.files import write_frames
from lamjax.distillation.probes import add_probes
from lamjax.distillation.shapes import LastingShapes
from lamjax.evaluation.errors import predictions
from lamjax.lattice import shortest
from lamjax.potential import Params, Potential, Prediction, check_elements

WANTED, ANSWER = "to_label.extxyz", "answer.extxyz"
CHUNK = 256  # frames that a potential labels before they are written: enough to fill arrays of several shapes
PROGRAMS = (2, 6)  # shapes for a few frames, and at most; one more for every `CHUNK` frames
SAME = 1e-3  # Å; an answer whose atoms lie farther off belongs to another structure


class Labeller(Protocol):
    """An object that computes energies and forces of structures."""

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
        dtype: DTypeLike | None = np.float32,
        probes: bool = False,
        level: str | None = None,
    ) -> None:
        self.potential, self.params, self.batch_size = potential, params, batch_size
        self.level = level  # the level of theory in the info of labelled frames
        self.probes = probes  # whether Hessian-vector products come with the labels
        self.shapes = LastingShapes(potential.shells, PROGRAMS[0], batch_size, dtype)

    @property
    def together(self) -> int:
        """Frames that are evaluated in one go, counted from the first: parts of them differ in the last digits."""
        return CHUNK

    def cover(self, frames: Sequence[Frame]) -> None:
        """Shapes for all of these frames: the more there are, the more programs are worth compiling."""
        few, most = PROGRAMS
        self.shapes.max_programs = max(self.shapes.max_programs, min(most, few + len(frames) // CHUNK))
        self.shapes.cover(frames)

    def label(self, frames: Sequence[ase.Atoms], folder: Path) -> Iterator[ase.Atoms | Failed]:
        """Energies, forces and stresses of the potential."""
        known = [self._evaluable(bare(atoms)) for atoms in frames]
        if usable := [one for one in known if isinstance(one, Frame)]:
            self.cover(usable)
        for first in range(0, len(frames), CHUNK):
            yield from self._answers(frames[first : first + CHUNK], known[first : first + CHUNK])

    def _evaluable(self, atoms: ase.Atoms) -> Frame | Failed:
        """The frame, unless it has an element that the potential does not know."""
        frame = from_atoms(atoms)
        try:
            check_elements(self.potential, frame.system)
        except ValueError as error:
            return Failed(str(error))
        return frame

    def _answers(self, part: Sequence[ase.Atoms], known: Sequence[Frame | Failed]) -> Iterator[ase.Atoms | Failed]:
        usable = [one for one in known if isinstance(one, Frame)]
        packed = self.shapes.pack(usable) if usable else None
        answers = iter(predictions(self.potential, self.params, packed, self.batch_size) if usable else ())
        asked = [bare(atoms) for atoms, one in zip(part, known, strict=True) if isinstance(one, Frame)]
        if self.probes and usable:
            add_probes(self.potential, self.params, asked, packed, self.batch_size)
        rest = iter(asked)
        for one in known:
            if isinstance(one, Failed):
                yield one
                continue
            atoms, prediction = next(rest), next(answers)
            finite = all(np.isfinite(x).all() for x in prediction)
            yield _answered(atoms, prediction) if finite else Failed("The teacher's answer is not finite.")


class FileLabeller:
    """A labeller outside of the program: frames are written to a file, their labels read from another beside it."""

    def __init__(self, options: ReadOptions | None = None) -> None:
        self.options = options or ReadOptions()  # of the other file

    def label(self, frames: Sequence[ase.Atoms], folder: Path) -> Iterator[ase.Atoms | Failed]:
        """The labels in the file of answers, which may be of fewer frames; Waiting if there is no such file yet.

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
        by_number = dict(zip(_numbers(answers, max(numbers, default=-1) + 1, answer), answers, strict=True))
        for number, atoms in zip(numbers, frames, strict=True):
            if number not in by_number:
                yield Failed(f"{answer}: there is no answer to frame {number}.")
            else:
                _check_same(atoms, by_number[number], f"{answer}, answer to frame {number}")
                labels = by_number[number].labels
                virial = labels.virial if labels.weights[2] > 0 else None
                yield _of_labels(atoms, float(labels.energy), labels.forces, virial)


def open_labeller(config: LabellerConfig | None, probes: bool = False, options: ReadOptions | None = None) -> Labeller:
    """The labeller of a config; `probes` asks a potential for Hessian-vector products too, `options` are of answers.

    Raises ValueError for a calculator that is not known or not installed.
    """
    match config:
        case TeacherConfig():
            model = load_teacher(config)
            return PotentialLabeller(*model, config.batch_size, config.precision, probes, _level(config, model[0]))
        case CalculatorConfig(name=name, options=settings, reuse=reuse):
            return open_calculator(name, settings, reuse)
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


def _level(config: TeacherConfig, potential: Potential) -> str:
    """The model's file, by name and content, and its head, which identify its labels."""
    if checkpoints.is_function(config.model):
        return records.one_line(config.model).replace('"', "'")
    with open(checkpoints.locate(config.model), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    return records.one_line(f"{Path(config.model).name} ({digest}), head {potential.head}")


def numbered(atoms: ase.Atoms, number: int) -> ase.Atoms:
    """The structure with its number in its info."""
    copy = bare(atoms)
    copy.info["number"] = number
    return copy


def _answered(atoms: ase.Atoms, prediction: Prediction) -> ase.Atoms:
    virial = np.asarray(prediction.virial, np.float64) if atoms.pbc.all() else None
    return _of_labels(atoms, float(prediction.energy), prediction.forces, virial)


def _of_labels(atoms: ase.Atoms, energy: float, forces: Array, virial: Array) -> ase.Atoms:
    results = {"energy": energy, "forces": np.asarray(forces, np.float64)}
    if virial is not None:
        results["stress"] = units.to_voigt(units.virial_to_stress(virial, atoms.get_volume()))
    return labelled(atoms, **results)


def _numbers(answers: Sequence[Frame], n: int, path: Path) -> list[int]:
    """The number of the frame that each answer belongs to."""
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
    moved = np.linalg.norm(shortest(system.positions - asked.positions, asked.cell.array, asked.pbc), axis=1)
    if moved.max() > SAME:
        k = int(moved.argmax())
        raise ValueError(f"{where}: atom {k} is {moved[k]:.3g} Å from where it is in {WANTED}. Was the frame relaxed?")
