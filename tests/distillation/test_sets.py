"""Sets labelled by the command: equal to what `distill` asks for, whole after kills, and nothing lost."""

import subprocess
import sys
from pathlib import Path

import ase.build
import ase.io
import h5py
import jax
import numpy as np
import pytest
import students
from ase.calculators.emt import EMT
from invoke import invoke

import lamjax
from lamjax import data, distillation
from lamjax.audit import theory_levels as levels
from lamjax.distillation import CalculatorConfig, TeacherConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig

HERE = Path(__file__).parent
SOME = 11  # structures, of which the fifth cannot be labelled


def run(*arguments):
    """The command in this process; (exit code, output, exception)."""
    return invoke("label", *arguments, COLUMNS="250")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """structures.extxyz, some with labels of somebody else, and model.lamjax."""
    folder = tmp_path_factory.mktemp("label")
    collected = []
    for seed in range(SOME):
        atoms = ase.build.bulk("Au" if seed == 4 else "Cu", cubic=True) * (1 + seed % 2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.info |= {"REF_energy": -99.0, "family": f"run {seed}", "failed": "once", "labelled_by": "DFT"}
        atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
        collected.append(atoms)
    ase.io.write(folder / "structures.extxyz", collected)
    config = PotentialConfig(("Cu", "Al"), students.DESCRIPTOR, (("Default", EnergyHeadConfig(neuron=(4,))),))
    potential = lamjax.build(config)
    lamjax.save(folder / "model.lamjax", potential, jax.jit(potential.init)(jax.random.key(3)))
    return folder


def content(path: Path) -> dict[str, bytes]:
    """Every byte of the arrays of a store."""
    with h5py.File(path) as file:
        return {name: values[()].tobytes() for name, values in file.items()}


def killed(n: int, folder: Path, *arguments) -> None:
    """The command in a process that kills itself in its nth calculation."""
    words = [sys.executable, HERE / "killed_label.py", n, "label", folder / "structures.extxyz", *arguments]
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == -9, done.stdout + done.stderr


@pytest.mark.parametrize(("labeller", "n", "kept"), [("emt", 4, 3), ("model.lamjax", 2, 4)])
def test_a_killed_run_goes_on_to_the_same_set(folder, tmp_path, monkeypatch, labeller, n, kept):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("lamjax.distillation.label.CHUNK", 4)
    words = ["structures.extxyz", "--labeller", labeller, "--out"]
    killed(n, folder, *words[1:], tmp_path / "set.h5")
    assert (tmp_path / "set.h5.partial").read_text().count("Lattice") == kept
    with open(tmp_path / "set.h5.partial", "a") as file:
        file.write("4\nLattice=")  # a record that was not written to its end
    for name, more in (("whole.h5", ()), ("set.h5", ("--resume",))):
        code, _, error = run(*words, tmp_path / name, *more)
        assert code == 0, error
    assert content(tmp_path / "set.h5") == content(tmp_path / "whole.h5")
    if labeller == "model.lamjax":
        failed = [(tmp_path / f"{name}.h5.failed.extxyz").read_text() for name in ("set", "whole")]
        assert failed[0] == failed[1] and "Au" in failed[0]
    assert not list(tmp_path.glob("*.partial*"))


def test_a_structure_that_ends_the_process_can_be_left_out(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    with jax.enable_x64(True):
        frames, _ = distillation.read_structures(["structures.extxyz"])
        emt = distillation.open_labeller(CalculatorConfig("emt"))
        begun = distillation.label_set(emt, frames, tmp_path / "set.extxyz")
        next(begun), next(begun)
        begun.close()
    words = ["structures.extxyz", "--labeller", "emt", "--out", tmp_path / "set.extxyz", "--skip"]
    assert "needs --resume" in str(run(*words)[2])
    code, output, error = run(*words, "--resume")
    assert code == 0 and "1 without a label: left out: the process was killed" in output, error
    (lost,) = ase.io.read(tmp_path / "set.extxyz.failed.extxyz", ":")
    assert lost.info["source"] == "structures.extxyz frame 2"
    assert len(ase.io.read(tmp_path / "set.extxyz", ":")) == SOME - 1


def test_labels_are_those_of_the_calculator_and_say_who_gave_them(folder, tmp_path):
    code, output, error = run(folder / "structures.extxyz", "--labeller", "emt", "--out", tmp_path / "set.extxyz")
    assert code == 0, error
    structures = ase.io.read(tmp_path / "set.extxyz", ":")
    assert len(structures) == SOME and "REF" not in (tmp_path / "set.extxyz").read_text()
    for atoms in structures:
        asked = atoms.copy()
        asked.calc = EMT()
        np.testing.assert_allclose(atoms.get_potential_energy(), asked.get_potential_energy(), rtol=1e-14)
        np.testing.assert_allclose(atoms.get_forces(), asked.get_forces(), atol=1e-8)  # the digits of extxyz
        np.testing.assert_allclose(atoms.get_stress(), asked.get_stress(), atol=1e-10)
    assert {atoms.info["labelled_by"] for atoms in structures} == {"emt"} and structures[3].info["family"] == "run 3"
    assert "failed" not in structures[0].info and structures[3].info["source"] == "structures.extxyz frame 3"
    assert f"{SOME} of {SOME} periodic" in output


@pytest.mark.parametrize("config", [CalculatorConfig("emt"), TeacherConfig("model.lamjax")])
def test_the_set_is_what_distill_would_ask_for(folder, tmp_path, monkeypatch, config):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("lamjax.distillation.label.CHUNK", 4)
    with jax.enable_x64(True):
        frames, wrong = distillation.read_structures(["structures.extxyz"])
        *steps, written = distillation.label_set(distillation.open_labeller(config), frames, tmp_path / "set.h5")
        asked = [distillation.sets.as_written(frame) for frame in frames]
        answers = list(distillation.open_labeller(config).label(asked, tmp_path))
    labelled = [answer for answer in answers if isinstance(answer, ase.Atoms)]
    store = data.open_frames(tmp_path / "set.h5")
    assert wrong == [] and len(store) == len(labelled) == written.n_frames and len(steps) == SOME
    for frame, answer in zip(store, labelled, strict=True):
        assert float(frame.labels.energy) == answer.get_potential_energy()
        text = np.array([[f"{x:.8f}" for x in row] for row in answer.get_forces()], float)
        np.testing.assert_array_equal(frame.labels.forces, text)
    assert store[0].source == "structures.extxyz frame 0"
    (who,) = levels.levels(store)
    assert who == "emt" or who.startswith("model.lamjax (") and who.endswith("head Default")


def test_what_a_potential_does_not_know_costs_its_frame(folder, tmp_path):
    words = ["--labeller", folder / "model.lamjax", "--out", tmp_path / "set.h5"]
    code, output, error = run(folder / "structures.extxyz", *words)
    assert code == 0, error
    assert len(data.read(tmp_path / "set.h5")) == SOME - 1
    assert "without a label" in output and "Element Au is not in the model's type map" in output
    (lost,) = ase.io.read(tmp_path / "set.h5.failed.extxyz", ":")
    assert lost.info["source"] == "structures.extxyz frame 4" and "Au" in lost.info["failed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labeller", "emt", "--out", "structures.extxyz"], "one of the inputs"),
        (["--labeller", "emt", "--out", "set.cif"], "must end in .h5"),
        (["--labeller", "emt", "--out", "there.h5"], "there.h5 exists"),
        (["--labeller", "emt", "--out", "half.h5"], "--resume"),
        (["--labeller", "emt", "--out", "half.h5", "--resume"], "labeller: lj -> emt"),
        (["--labeller", "emt", "--head", "Default", "--out", "a.h5"], "--head Default: that is for a model"),
        (["--labeller", "emt", "--option", "method", "--out", "a.h5"], "--option takes key=value"),
        (["--labeller", "model.lamjax", "--option", "a=1", "--out", "a.h5"], "is a model file"),
        (["--labeller", "nowhere.lamjax", "--out", "a.h5"], "no such model file"),
        (["--labeller", "emtt", "--out", "a.h5"], "Did you mean emt"),
    ],
)
def test_what_cannot_be_labelled_is_refused_before_the_work(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    (folder / "there.h5").touch()
    (folder / "half.h5.partial.json").write_text('{"labeller": "lj"}')
    before = (folder / "structures.extxyz").read_bytes()
    code, _, error = run("structures.extxyz", *words)
    assert code and isinstance(error, ValueError | OSError) and message in str(error)
    assert (folder / "structures.extxyz").read_bytes() == before and not (folder / "a.h5.partial").exists()


def test_the_frames_that_failed_can_be_asked_about_again(folder, tmp_path):
    lost = ase.build.bulk("Cu", cubic=True)
    lost.info["failed"] = "out of memory"
    ase.io.write(tmp_path / "set.failed.extxyz", lost)
    code, _, error = run(tmp_path / "set.failed.extxyz", "--labeller", "emt", "--out", tmp_path / "set.extxyz")
    assert code == 0, error
    assert len(ase.io.read(tmp_path / "set.extxyz", ":")) == 1 and (tmp_path / "set.failed.extxyz").exists()


def test_a_set_of_which_nothing_can_be_labelled_says_why(folder, tmp_path):
    words = ["--labeller", "fake_calculators:Troubled", "--out", tmp_path / "set.h5"]
    bad = ase.build.bulk("Cu")
    bad.info["trouble"] = "energy"
    ase.io.write(tmp_path / "bad.extxyz", [bad] * 2)
    code, _, error = run(tmp_path / "bad.extxyz", *words)
    assert code and "No frame could be labelled" in str(error) and "the energy is not finite" in str(error)
    assert not (tmp_path / "set.h5").exists()


@pytest.mark.parametrize(("together", "kept"), [(1, 6), (4, 4), (3, 6), (7, 0)])
def test_what_belongs_together_is_asked_for_again_as_a_whole(tmp_path, together, kept):
    path = tmp_path / "partial"
    ase.io.write(path, [ase.build.bulk("Cu")] * 6, format="extxyz")
    with open(path, "a") as file:
        file.write("1\nLattice=")
    assert distillation.labelling.keep_whole(path, "lamjax label", together) == kept
    assert path.read_text().count("Lattice") == kept


def test_an_answer_of_many_lines_is_one_record(tmp_path):
    asked = [ase.build.bulk("Cu") for _ in range(3)]
    asked[1].info["trouble"] = "crash"
    labeller = distillation.open_labeller(CalculatorConfig("fake_calculators:Troubled"))
    with open(tmp_path / "partial", "a") as file:
        list(distillation.labelling.append_answers(file, labeller, asked, tmp_path))
    _, failed, last = ase.io.read(tmp_path / "partial", ":", format="extxyz")
    assert failed.info["failed"].endswith("scf did not converge, after 500 steps")
    assert last.info["labelled_by"] == "fake_calculators:Troubled"
