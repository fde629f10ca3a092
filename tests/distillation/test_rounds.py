"""Two rounds of distillation by the command: what is written, resumed after kills, told and refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ase.build
import ase.io
import jax
import numpy as np
import pytest
import students
import yaml
from ase.calculators.emt import EMT
from invoke import invoke
from pages import read_page

import lamjax
from lamjax import checkpoints, data, distillation
from lamjax.distillation import TEMPLATE, DistillConfig, StudentConfig, files, train
from lamjax.distillation.rounds import last_members
from lamjax.distillation.train import Trainer
from lamjax.training.config import validate

CONFIG = """
labeller: {type: calculator, name: emt}
student:
  model:
    elements: [Cu]
    descriptor: {type: dpa1, rcut: 3.0, sel: 16, neuron: [2, 4], axis_neuron: 2, tebd_dim: 2}
    heads: [[Default, {neuron: [4, 4]}]]
  schedule: {start_lr: 1e-2, stop_lr: 1e-3, decay_steps: 5}
  steps: 12
  batch_size: 4
  max_programs: 1
members: 2
rounds: 2
explore: {temperatures: [300], timestep: 1.0, steps: 10, every: 2, perturbed: 7}
trust: {lower: 0.0, upper: 5.0}
label: {most: 5, fresh: 3}
"""


def run(*arguments):
    """The command in this process; (exit code, output, exception)."""
    return invoke("distill", *arguments, COLUMNS="250")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Starts and a config."""
    folder = tmp_path_factory.mktemp("distill")
    atoms = ase.build.bulk("Cu", cubic=True)
    ase.io.write(folder / "start.extxyz", [atoms])
    (folder / "config.yaml").write_text(CONFIG + f"start: [{folder}/start.extxyz]\n")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """A run that nothing interrupts: its output, and what it said."""
    done = process(folder, "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "whole", done.stdout


def process(folder: Path, out: str, *options, kind: str = "none", n: int = 0) -> subprocess.CompletedProcess:
    """The command in a process of its own that may kill itself. All of them share their compiled programs."""
    script = Path(__file__).with_name("killed_run.py")
    arguments = ["distill", "--config", folder / "config.yaml", "--out", folder / out, *options]
    here = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"), "COLUMNS": "250"}
    command = [sys.executable, script, kind, n, folder / f"{out}.calls", *arguments]
    return subprocess.run(
        list(map(str, command)), env={**os.environ, **here}, capture_output=True, text=True, timeout=600
    )


def facts(output: Path, number: int) -> dict:
    return json.loads((output / f"round-{number:03d}" / "round.json").read_text())


def test_every_stage_is_on_disk(whole):
    output, _ = whole
    for number, explored in ((0, 8), (1, 7 + 5)):
        folder = output / f"round-{number:03d}"
        assert len(ase.io.read(folder / "explored.extxyz", ":")) == explored == facts(output, number)["explored"]
        labelled = ase.io.read(folder / "labelled.extxyz", ":")
        assert [a.info["use"] for a in labelled] == ["train"] * 5 + ["fresh"] * 3
        assert not list(folder.glob("*.partial")) and not (folder / "states").exists()
        for member in range(2):
            lamjax.load(folder / f"student-{member}.lamjax")
    assert (output / "rounds.png").stat().st_size > 10_000
    page = read_page(output / "report.html")
    assert page.headings == ["Result", "Rounds", "Data", "Config", "Versions"]
    models = {
        row[0]: row[1:] for row in page.rows if row[0] in ("student.lamjax", "student-tabulated.lamjax", "labels")
    }
    assert len(models) == 3 and models["labels"][:2] == ["-", "-"] and float(models["student.lamjax"][1]) > 0
    assert ["labeller.type", "calculator"] in page.rows


def test_labels_are_those_of_the_calculator_and_can_be_read(whole):
    output, _ = whole
    for atoms in ase.io.read(output / "round-001" / "labelled.extxyz", ":"):
        asked = atoms.copy()
        asked.calc = EMT()
        np.testing.assert_allclose(atoms.get_potential_energy(), asked.get_potential_energy(), rtol=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), asked.get_forces(), atol=1e-7)
    frames = data.read(output / "round-001" / "labelled.extxyz", require=("energy", "forces", "virial"))
    assert len(frames) == 8


def test_members_differ_and_their_statistics_do_not(whole):
    output, _ = whole
    one, other = (checkpoints.read(output / "round-000" / f"student-{k}.lamjax").params for k in range(2))
    assert not np.array_equal(one.descriptor["type_embedding"]["w"], other.descriptor["type_embedding"]["w"])
    jax.tree.map(
        np.testing.assert_array_equal,
        one.descriptor["repinit"]["statistics"],
        other.descriptor["repinit"]["statistics"],
    )


def test_deviation_and_errors_are_those_of_the_members(whole):
    output, _ = whole
    first = [lamjax.load(output / "round-000" / f"student-{k}.lamjax", dtype=np.float32) for k in range(2)]
    labelled = ase.io.read(output / "round-001" / "labelled.extxyz", ":")
    squares = []
    for atoms in labelled:
        events = []
        for model in first:
            asked = atoms.copy()
            asked.calc = lamjax.Calculator(model, dtype="float32")
            events.append(asked.get_forces())
        if atoms.info["use"] == "fresh":
            squares.append(np.mean([np.square(forces - atoms.get_forces()).mean() for forces in events]))
        spread = np.linalg.norm(events[0] - events[1], axis=1) / 2
        np.testing.assert_allclose(atoms.info["deviation"], spread.max(), rtol=1e-3)
    force = facts(output, 1)["force"]  # the mean over members of their RMSE
    np.testing.assert_allclose(force, np.sqrt(np.mean(squares)), rtol=0.2)


def test_the_student_is_the_best_member(whole):
    output, message = whole
    potential, params = lamjax.load(output / "student.lamjax")
    table = lamjax.load(output / "student-tabulated.lamjax")
    atoms = ase.io.read(output / "round-000" / "labelled.extxyz")
    forces = []
    for model in ((potential, params), table):
        asked = atoms.copy()
        asked.calc = lamjax.Calculator(model)
        forces.append(asked.get_forces())
    np.testing.assert_allclose(*forces, atol=1e-5)
    assert checkpoints.read(output / "student.lamjax").card["round"] == 1
    for line in ("round 1: 12 frames explored", "student-tabulated.lamjax", "µs/atom", "Not enough after 2 rounds"):
        assert line in message


def test_a_killed_run_goes_on_as_if_it_had_not_been(folder, whole):
    assert process(folder, "killed", kind="label", n=8 + 4).returncode == -9  # in round 1
    partial = folder / "killed" / "round-001" / "labelled.partial"
    assert partial.read_text().count("Lattice") == 3
    with open(partial, "a") as file:
        file.write("4\nLattice=")  # what a full disk leaves
    assert process(folder, "killed", "--resume", kind="save", n=2).returncode == -9  # while it trains
    assert not (folder / "killed" / "round-001" / "student-0.lamjax").exists()
    last = process(folder, "killed", "--resume")
    assert last.returncode == 0, last.stdout + last.stderr
    calls = (folder / "killed.calls").read_text().splitlines()
    assert len(calls) == len(set(calls)) + 1 == 17  # only the one in which it was killed was asked for again
    for number in range(2):
        for name in ("explored.extxyz", "labelled.extxyz"):
            a, b = (folder / one / f"round-{number:03d}" / name for one in ("whole", "killed"))
            assert a.read_text() == b.read_text()
    for member in range(2):
        files = (folder / one / "round-001" / f"student-{member}.lamjax" for one in ("whole", "killed"))
        assert jax.tree.all(jax.tree.map(np.array_equal, *(checkpoints.read(file).params for file in files)))


@pytest.fixture
def finished(monkeypatch) -> list:
    """Numbers of the rounds whose students are taken at the end; nothing is measured or tabulated."""
    numbers: list = []
    monkeypatch.setattr(distillation, "finish", lambda run: numbers.append(last_members(run)[0]) or [])
    return numbers


def test_what_is_finished_is_not_done_again(whole, folder, monkeypatch, finished):
    output, _ = whole
    for stage in ("_explore", "_select", "_label", "_train"):
        monkeypatch.setattr(f"lamjax.distillation.rounds.{stage}", None)
    code, shown, error = run("--config", folder / "config.yaml", "--out", output, "--resume")
    assert code == 0 and "round 1: 12 frames" in shown and finished == [1], error


def test_it_ends_when_it_is_good_enough(whole, folder, tmp_path, finished):
    shutil.copytree(whole[0], tmp_path / "run")
    for member in range(2):
        (tmp_path / "run" / "round-001" / f"student-{member}.lamjax").unlink()
    (tmp_path / "run" / "round-001" / "round.json").write_text(json.dumps(facts(whole[0], 1) | {"finished": False}))
    options = ("--config", folder / "config.yaml", "--out", tmp_path / "run", "--resume", "--set", "rounds=7")
    code, output, error = run(*options, "--set", "enough={deviation: 100, force: 100, energy: 100}")
    assert code == 0 and "; enough" in output and "Changed for the rounds to come: enough" in output, error
    assert finished == [0]  # the students that were measured


def test_files_are_waited_for(folder, tmp_path, monkeypatch):
    options = ("--config", folder / "config.yaml", "--out", tmp_path / "run", "--set", "labeller={type: files}")
    code, output, _ = run(*options)
    assert code == 0 and "Waiting:" in output and "answer.extxyz" in output
    here = tmp_path / "run" / "round-000"
    answers = ase.io.read(here / "to_label.extxyz", ":")
    for atoms in answers:
        atoms.calc = EMT()
        atoms.get_forces()
    ase.io.write(here / "answer.extxyz", answers)
    monkeypatch.setattr("lamjax.distillation.rounds.frames_of", lambda *_: [])
    code, output, error = run(*options, "--resume")
    assert code == 1 and "no labelled frame" in str(error)  # so far it went
    labelled = ase.io.read(here / "labelled.extxyz", ":")
    assert len(labelled) == 8 and labelled[0].get_potential_energy() == answers[0].get_potential_energy()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "trust={lower: 0.3, upper: 0.1}"], "lower .0.3. must be below upper .0.1."),
        (["--set", "start=[]"], "`start` names no file"),
        (["--set", "members=1"], "needs at least 2"),
        (["--set", "explore.temperature=300"], "Did you mean temperatures"),
        (["--set", "labeller={type: calculator, name: emmt}"], "Did you mean emt"),
        (["--set", "labeller={type: potential, model: nowhere.lamjax}"], "no such model"),
        (["--start", "nowhere.extxyz"], "no such file"),
        (["--set", "student.model.elements=[Au]"], "element Cu is not in the model's type map"),
    ],
)
def test_what_cannot_be_is_told(folder, tmp_path, options, message):
    code, _, error = run("--config", folder / "config.yaml", "--out", tmp_path / "run", *options)
    assert code == 1
    with pytest.raises((ValueError, OSError), match=message):
        raise error


def test_a_teacher_without_the_elements_is_told(folder, tmp_path):
    case = students.case()
    lamjax.save(tmp_path / "teacher.lamjax", *lamjax.edit.restrict_elements(*case[:2], ["O", "H"]))
    code, _, error = run(tmp_path / "teacher.lamjax", "--config", folder / "config.yaml", "--out", tmp_path / "run")
    assert code == 1 and "The teacher cannot label start.extxyz frame 0: Element Cu" in str(error)


def test_a_folder_with_rounds_is_not_touched_without_resume(whole, folder):
    code, _, error = run("--config", folder / "config.yaml", "--out", whole[0])
    assert code == 1 and "Add --resume" in str(error)
    code, _, error = run("--config", folder / "config.yaml", "--out", whole[0], "--resume", "--set", "members=3")
    assert code == 1 and "members: 2 -> 3" in str(error)


def test_rounds_go_on_with_the_same_starts_only(whole, folder):
    """Other starts under the same name are refused; under another name they are for the rounds to come."""
    path, facts = folder / "start.extxyz", whole[0] / "facts.json"
    kept, options = path.read_bytes(), ("--config", folder / "config.yaml", "--out", whole[0], "--resume")
    try:
        moved = ase.io.read(path)
        moved.positions[0, 0] += 0.01
        ase.io.write(path, moved)
        _, _, error = run(*options)
        assert isinstance(error, ValueError) and "other files: what start names is not what it was" in str(error)
        old = facts.read_bytes()
        facts.unlink()  # as an older version left it
        with pytest.warns(UserWarning, match="was begun by an older lamjax"):
            settings = validate(json.loads((whole[0] / "config.json").read_text()), "", DistillConfig)
            prepared, _ = distillation.prepare(settings, resume=True)
        assert json.loads(facts.read_text())["start"] == data.digests(prepared.starts)
        facts.write_bytes(old)
    finally:
        path.write_bytes(kept)


def test_an_interrupted_training_goes_on_with_the_same_frames_only(folder, tmp_path, monkeypatch):
    frames = data.read(folder / "start.extxyz")
    config = validate(yaml.safe_load(CONFIG)["student"], "", StudentConfig)
    begin = lambda frames, **changes: Trainer._begin(  # noqa: E731
        SimpleNamespace(config=dataclasses.replace(config, **changes), seed=0), frames, tmp_path
    )
    states = tmp_path / files.STATES
    states.mkdir()
    monkeypatch.setattr(train, "saved_steps", lambda _: [1000])
    begin(frames)
    begin(frames)
    system = frames[0].system
    other = frames[0]._replace(system=system._replace(positions=system.positions + 0.1))
    with pytest.raises(ValueError, match=r"began with other frames \(structures differ\)"):
        begin([other])
    assert states.exists()
    begin(frames, steps=99)  # another course: this training begins anew
    assert not states.exists()


def test_the_template_is_a_config_with_the_defaults():
    content = yaml.safe_load(TEMPLATE)
    config = validate(content, "template", DistillConfig)
    bare = {key: content[key] for key in ("labeller", "start")} | {"student": {"model": content["student"]["model"]}}
    assert config == validate(bare, "bare", DistillConfig)
    assert run("--template")[1] == TEMPLATE and "trust" in json.loads(run("--schema")[1])["properties"]
