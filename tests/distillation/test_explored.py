"""Sets made by the command: what is in them and says so, made again by the same seed, and whole after a kill."""

import dataclasses

import ase.build
import ase.io
import fake_calculators
import numpy as np
import pytest
import students
from ase.calculators.emt import EMT
from invoke import invoke

import lamjax
from lamjax import classical, distillation
from lamjax.data import from_atoms
from lamjax.distillation import DistillConfig, ExploreConfig, calculator_engine, explore_set
from lamjax.distillation import exploration as exploring
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig

MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=4.5)
ALONG = ExploreConfig(temperatures=(), relaxations=2, relax_steps=6, relax_every=2, strain=0.05, perturbed=0)
HOT = ExploreConfig(temperatures=(300.0,), timestep=2.0, steps=20, every=5, perturbed=1)


def run(*arguments):
    """The command in this process; (exit code, output, exception)."""
    return invoke("explore", *arguments, COLUMNS="250")


def copper():
    return from_atoms(ase.build.bulk("Cu", cubic=True), source="here")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    atoms = [ase.build.bulk("Cu", cubic=True), ase.build.bulk("NaCl", "rocksalt", a=5.64)]
    atoms[0].info |= {"origin": "elsewhere", "substituted": "Ag->Cu", "seed": 77, "energy": 5.0}  # of its own history
    ase.io.write(tmp_path / "starts.extxyz", atoms)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_perturbations_and_substitutions_need_no_potential(folder):
    words = ["--perturbed", 3, "--substitutions", 2, "--elements", "Ag,Au,Ni,K,Li,Br", "--set", "strain=0.1"]
    for out, seed in (("a.extxyz", 5), ("b.extxyz", 5), ("c.extxyz", 6)):
        code, output, error = run("starts.extxyz", "--out", out, *words, "--seed", seed)
        assert code == 0, error
    a, b, c = ((folder / f"{name}.extxyz").read_text() for name in "abc")
    assert a == b != c
    frames = ase.io.read("a.extxyz", ":")
    origins = [atoms.info["origin"] for atoms in frames]
    assert origins == ["start"] * 2 + ["substitution"] * 4 + ["perturbation"] * 18
    assert "perturbation" in output and "24" in output
    for atoms in frames[2:]:
        assert atoms.info["seed"] == 5 and atoms.info["draw"] in range(3)
        assert set(atoms.symbols) <= {"Cu", "Na", "Cl", "Ag", "Au", "Ni", "K", "Li", "Br"}
    assert "substituted" not in frames[0].info and "energy" not in a
    made = [atoms for atoms in frames if "->" in atoms.info["start"]]
    assert len(made) == 4 * 4 and all(atoms.info["substituted"] in atoms.info["start"] for atoms in made)


def check_relaxations(walks) -> None:
    """Frames after 2, 4 and 6 steps of two relaxations."""
    (walk,) = walks
    assert walk.failure is None
    assert [(a.info["draw"], a.info["step"]) for a in walk.frames] == [(d, s) for d in (0, 1) for s in (2, 4, 6)]
    assert {a.info["origin"] for a in walk.frames} == {"relaxation"} and {a.info["seed"] for a in walk.frames} == {2}


def energies(walk, calculator) -> np.ndarray:
    collected = []
    for atoms in walk.frames:
        atoms.calc = calculator
        collected.append(atoms.get_potential_energy())
    return np.reshape(collected, (2, 3))


def test_relaxations_are_kept_along_the_way():
    (walk,) = walks = list(exploring.relax_with(MORSE, MORSE.init(), ALONG, [copper()], 2))
    check_relaxations(walks)
    assert (np.diff(energies(walk, lamjax.Calculator((MORSE, MORSE.init()))), axis=1) < 0).all()
    assert all(np.array_equal(a.cell, walk.frames[0].cell) for a in walk.frames[:3])


@pytest.mark.parametrize("cell", [False, True])
def test_a_calculator_relaxes_and_is_as_good_as_a_potential(cell):
    config = dataclasses.replace(ALONG, relax_cell=cell)
    (walk,) = walks = list(calculator_engine(EMT).relax(config, [copper()], 2))
    check_relaxations(walks)
    assert (np.diff(energies(walk, EMT()), axis=1) < 0).all()
    assert np.array_equal(walk.frames[2].cell, walk.frames[0].cell) != cell
    begin = exploring.to_be_relaxed(config, copper(), 2, 0)
    for draw, system in enumerate(begin):  # the same beginnings as those of a potential
        assert np.abs(walk.frames[3 * draw].positions - system.positions).max() < 0.3


def test_a_calculator_simulates(rng):
    engine = calculator_engine(EMT)
    start = from_atoms(ase.build.bulk("Cu", cubic=True) * (2, 2, 1), source="here")
    mild, pressed = (exploring.PlannedSimulation(start, 300.0, pressure) for pressure in (None, 30.0))
    walk = engine.simulate(HOT, mild, 4)
    assert walk.failure is None and [a.info["step"] for a in walk.frames] == [5, 10, 15, 20]
    again = engine.simulate(HOT, mild, 4)
    np.testing.assert_array_equal(walk.frames[-1].positions, again.frames[-1].positions)
    other = engine.simulate(HOT, mild, 5)
    assert np.abs(walk.frames[-1].positions - other.frames[-1].positions).max() > 1e-3
    long = dataclasses.replace(HOT, steps=100, every=50)
    squeezed = engine.simulate(long, pressed, 4)
    assert squeezed.failure is None and squeezed.frames[-1].info["pressure"] == 30
    assert squeezed.frames[-1].get_volume() < 0.99 * start.system.n_atoms * 3.61**3 / 4


def test_a_calculator_that_fails_ends_its_walk_alone():
    def broken():
        calculator = fake_calculators.Troubled()
        calculator.broken = True
        return calculator

    (walk,) = calculator_engine(broken).relax(ALONG, [copper()], 0)
    assert walk.frames == [] and "here, relaxed: RuntimeError: scf did not" in walk.failure
    walk = calculator_engine(broken).simulate(HOT, exploring.PlannedSimulation(copper(), 300.0, None), 0)
    assert "here at 300 K: RuntimeError" in walk.failure
    fierce = dataclasses.replace(HOT, timestep=500.0, every=1)
    walk = calculator_engine(EMT).simulate(fierce, exploring.PlannedSimulation(copper(), 3000.0, None), 0)
    assert walk.failure and all(np.isfinite(a.positions).all() for a in walk.frames)


def test_an_exploration_goes_on_where_it_was_killed(tmp_path):
    config = dataclasses.replace(ALONG, perturbed=2, temperatures=(300.0,), steps=4, every=2, substitutions=1)
    starts = [copper(), from_atoms(ase.build.bulk("Ag", cubic=True), source="there")]

    def steps(name: str, resume: bool = False, seed: int = 1):
        return explore_set(config, calculator_engine(EMT), starts, tmp_path / name, seed, ("Cu", "Ag", "Au"), resume)

    whole = list(steps("whole.extxyz"))
    assert whole[-1].done == whole[-1].total == 1 + 4 + 4 + 4 and sum(whole[-1].origins.values()) == 4 + 8 + 24 + 8
    for n, resume in ((3, False), (4, True)):
        part = steps("set.extxyz", resume)
        for _ in range(n):
            next(part)
        part.close()
        with open(tmp_path / "set.extxyz.partial", "a") as file:
            file.write("4\nLattice=")
    with pytest.raises(ValueError, match="--resume"):
        next(steps("set.extxyz"))
    with pytest.raises(ValueError, match="other settings .seed"):
        next(steps("set.extxyz", True, 2))
    *_, last = steps("set.extxyz", True)
    assert last.origins == whole[-1].origins
    assert (tmp_path / "set.extxyz").read_bytes() == (tmp_path / "whole.extxyz").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--relaxations", 1], "need a potential"),
        (["--temperature", 300], "need a potential"),
        (["--set", "perturbd=3"], "Did you mean perturbed"),
        (["--elements", "Xx"], "Xx: no element"),
        (["--head", "a"], "about a --potential"),
        (["--potential", "emtt"], "Did you mean emt"),
        (["--out", "starts.extxyz"], "one of the inputs"),
        (["--out", "frames.h5"], "must end in .extxyz"),
    ],
)
def test_what_cannot_be_explored_is_refused_before_the_work(folder, words, message):
    before = (folder / "starts.extxyz").read_bytes()
    words = words if "--out" in words else ["--out", "out.extxyz", *words]
    code, _, error = run("starts.extxyz", *words)
    assert code and isinstance(error, ValueError) and message in str(error)
    assert (folder / "starts.extxyz").read_bytes() == before and sorted(p.name for p in folder.iterdir()) == [
        "starts.extxyz"
    ]


def test_the_command_relaxes_with_a_calculator(folder):
    ase.io.write("cu.extxyz", ase.build.bulk("Cu", cubic=True))
    words = ["--potential", "emt", "--relaxations", 1, "--perturbed", 0, "--set", "relax_steps=2", "--temperature", 100]
    code, output, error = run("cu.extxyz", "--out", "set.extxyz", *words, "--set", "steps=2", "--set", "every=1")
    assert code == 0, error
    assert [a.info["origin"] for a in ase.io.read("set.extxyz", ":")] == ["start", "relaxation"] + ["simulation"] * 2


def test_distillation_begins_from_substitutions_that_the_student_knows(folder):
    ase.io.write("cu.extxyz", ase.build.bulk("Cu", cubic=True))
    model = PotentialConfig(("Cu", "Ag", "O"), students.DESCRIPTOR, (("Default", EnergyHeadConfig(neuron=(4,))),))
    student = distillation.StudentConfig(model=model, steps=1)
    config = DistillConfig(
        student, ("cu.extxyz",), distillation.CalculatorConfig("emt"), explore=ExploreConfig(substitutions=3)
    )
    run, _ = distillation.prepare(config)
    assert [start.source for start in run.starts] == ["cu.extxyz frame 0", "cu.extxyz frame 0, Cu->Ag"]
