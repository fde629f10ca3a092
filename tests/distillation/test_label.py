"""Labellers: what they say equals what their source says, and what fails costs no more than its frame."""

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

import lamjax
from lamjax import classical
from lamjax.data import from_atoms
from lamjax.distillation import (
    CalculatorConfig,
    CalculatorLabeller,
    Failed,
    FileLabeller,
    FilesConfig,
    PotentialLabeller,
    Waiting,
    open_labeller,
)
from lamjax.distillation.label import ANSWER, WANTED

MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=4.5)


def frames(n: int = 3) -> list[ase.Atoms]:
    collected = []
    for seed in range(n):
        atoms = ase.build.bulk("Cu", cubic=True) * (1 + seed % 2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.info["use"] = "train"
        collected.append(atoms)
    return collected


def same(answer: ase.Atoms, calculator, rtol: float = 1e-12) -> None:
    """The answer has the calculator's energy, forces and stress."""
    asked = answer.copy()
    asked.calc = calculator
    np.testing.assert_allclose(answer.get_potential_energy(), asked.get_potential_energy(), rtol=rtol)
    np.testing.assert_allclose(answer.get_forces(apply_constraint=False), asked.get_forces(), rtol=rtol, atol=1e-9)
    if answer.pbc.all():
        np.testing.assert_allclose(answer.get_stress(), asked.get_stress(), rtol=rtol, atol=1e-9)


def test_a_calculator_by_its_name(tmp_path):
    labeller = open_labeller(CalculatorConfig("emt"))
    asked = frames()
    asked[0].set_constraint(FixAtoms([0]))  # the forces are those of the energy
    for atoms in labeller.label(asked, tmp_path):
        same(atoms, EMT())
        assert atoms.info["use"] == "train"


def test_options_reach_the_calculator(tmp_path):
    (atoms,) = open_labeller(CalculatorConfig("lj", {"sigma": 2.3, "rc": 4.0})).label(frames(1), tmp_path)
    (other,) = open_labeller(CalculatorConfig("lj", {"sigma": 2.2, "rc": 4.0})).label(frames(1), tmp_path)
    assert atoms.get_potential_energy() != other.get_potential_energy()


class Metal(Calculator):
    """Smeared electrons: E(sigma -> 0), and the free energy of which forces are the derivative."""

    implemented_properties = ["energy", "free_energy", "forces"]

    def calculate(self, atoms, properties, changes):
        super().calculate(atoms, properties, changes)
        self.results = {"energy": -1.0, "free_energy": -1.25, "forces": np.zeros((len(atoms), 3))}


def test_a_calculator_with_a_free_energy_labels_with_it(tmp_path):
    (atoms,) = CalculatorLabeller(Metal).label(frames(1), tmp_path)
    assert atoms.get_potential_energy() == -1.25


class Fragile(Calculator):
    """Crashes for larger structures, and is infinite for one of them."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms, properties, changes):
        super().calculate(atoms, properties, changes)
        if len(atoms) > 4:
            raise CalculationFailed("scf did not converge")
        bad = atoms.positions[0, 0] > 0.5
        self.results = {"energy": np.inf if bad else 1.0, "forces": np.zeros((len(atoms), 3))}


def test_a_calculation_that_crashes_costs_its_frame(tmp_path):
    asked = frames(4)
    asked[2].positions[0, 0] = 0.6
    answers = list(CalculatorLabeller(Fragile, "fragile").label(asked, tmp_path))
    assert [isinstance(one, Failed) for one in answers] == [False, True, True, True]
    assert "CalculationFailed: scf did not converge" in answers[1].reason and "not finite" in answers[2].reason
    assert "stress" not in answers[0].calc.results  # it has none


@pytest.mark.parametrize(
    ("name", "message"), [("emtt", "Did you mean emt"), ("os", "no calculator"), ("gpaw", "install")]
)
def test_only_calculators_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        open_labeller(CalculatorConfig(name))


def test_a_potential_says_what_its_calculator_says(tmp_path, monkeypatch):
    monkeypatch.setattr("lamjax.distillation.label.CHUNK", 2)
    traces = []

    def counted(params, system, neighbors):
        traces.append(1)
        return MORSE.atomic_energies(params, system, neighbors)

    potential = MORSE._replace(atomic_energies=counted)
    labeller = PotentialLabeller(potential, MORSE.init(), dtype=np.float64)
    traced = []
    for round_ in range(2):  # the shapes, and so the programs, stay
        for atoms in labeller.label(frames(4)[round_:], tmp_path):
            same(atoms, lamjax.Calculator((MORSE, MORSE.init())), rtol=1e-9)
        traced.append(len(traces))
    assert traced[0] == traced[1] > 0


def test_many_frames_are_worth_more_programs(tmp_path, monkeypatch):
    """Padded arrays cost time in every frame, a program once."""
    monkeypatch.setattr("lamjax.distillation.label.CHUNK", 4)
    unlike = [ase.build.bulk("Cu", a=3.6 + 0.02 * n) * (1, 1, n) for n in (1, 2, 4, 7, 11, 16, 22, 29)]
    labeller = PotentialLabeller(MORSE, MORSE.init(), batch_size=1, dtype=np.float64)
    few, many = ([from_atoms(atoms) for atoms in some] for some in (unlike[:3], unlike))
    n_programs = []
    for some in (few, many):
        labeller.cover(some)
        n_programs.append(len(labeller.shapes.plan.buckets))
    assert n_programs == [2, 4]
    for atoms in labeller.label(unlike, tmp_path):
        same(atoms, lamjax.Calculator((MORSE, MORSE.init())), rtol=1e-9)
    assert len(labeller.shapes.plan.buckets) == 4


def test_a_potential_that_says_nothing_finite(tmp_path):
    broken = {name: value * np.nan for name, value in MORSE.init().items()}
    assert all(isinstance(one, Failed) for one in PotentialLabeller(MORSE, broken).label(frames(2), tmp_path))


def answered(folder, change=lambda k, atoms: atoms) -> None:
    """Somebody has calculated what was asked for."""
    asked = ase.io.read(folder / WANTED, ":")
    answers = []
    for k, atoms in enumerate(asked):
        atoms.calc = EMT()
        atoms.get_stress(), atoms.get_forces()
        answers.append(change(k, atoms))
    ase.io.write(folder / ANSWER, [atoms for atoms in answers if atoms is not None])


def test_files_come_back_later(tmp_path):
    labeller = open_labeller(FilesConfig())
    with pytest.raises(Waiting, match="3 frames in .*to_label.extxyz.*answer.extxyz.*--resume"):
        list(labeller.label(frames(), tmp_path))
    answered(tmp_path)
    for atoms in labeller.label(frames(), tmp_path):
        same(atoms, EMT(), rtol=1e-6)
        assert atoms.info["use"] == "train"


def unnumbered(k: int, atoms: ase.Atoms) -> ase.Atoms:
    del atoms.info["number"]
    return atoms


def test_answers_are_found_by_number_or_order(tmp_path):
    for change, n in ((unnumbered, 3), (lambda k, atoms: None if k == 1 else atoms, 2)):
        with pytest.raises(Waiting):
            list(FileLabeller().label(frames(), tmp_path))
        answered(tmp_path, change)
        result = list(FileLabeller().label(frames(), tmp_path))
        assert [isinstance(one, Failed) for one in result].count(False) == n
        (tmp_path / ANSWER).unlink()


def moved(k: int, atoms: ase.Atoms) -> ase.Atoms:
    copy = atoms.copy()
    copy.positions[0, 0] += 0.1 if k else 0
    copy.calc = atoms.calc
    return copy


def wrapped(k: int, atoms: ase.Atoms) -> ase.Atoms:
    atoms.positions += atoms.cell[0]
    atoms.calc = EMT()
    atoms.get_forces()
    return atoms


def gold(k: int, atoms: ase.Atoms) -> ase.Atoms:
    atoms.numbers[:] = 79
    atoms.get_forces()
    return atoms


def lost(k: int, atoms: ase.Atoms) -> ase.Atoms | None:
    return unnumbered(k, atoms) if k else None


@pytest.mark.parametrize(
    ("change", "message"),
    [(moved, "frame 1: atom 0 is 0.1 Å"), (gold, "other elements"), (lost, "2 frames, 3 were asked"), (wrapped, None)],
)
def test_answers_to_other_questions_are_refused(tmp_path, change, message):
    with pytest.raises(Waiting):
        list(FileLabeller().label(frames(), tmp_path))
    answered(tmp_path, change)
    if message is None:
        assert len(list(FileLabeller().label(frames(), tmp_path))) == 3
        return
    with pytest.raises(ValueError, match=message):
        list(FileLabeller().label(frames(), tmp_path))


def test_tblite_labels_a_molecule(tmp_path):
    tblite = pytest.importorskip("tblite.ase")
    water = ase.build.molecule("H2O")
    water.rattle(0.05, seed=1)
    labeller = open_labeller(CalculatorConfig("tblite", {"method": "GFN2-xTB", "verbosity": 0}))
    (atoms,) = labeller.label([water], tmp_path)
    same(atoms, tblite.TBLite(method="GFN2-xTB", verbosity=0), rtol=1e-8)
    assert from_atoms(atoms).labels.weights.tolist() == [1, 1, 0]
