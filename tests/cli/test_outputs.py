"""No command writes over one of its inputs, and what cannot be written is told before any work, by every command."""

import contextlib
import os
import shutil
from pathlib import Path

import ase.build
import ase.io
import jax
import numpy as np
import pytest
from invoke import invoke

import lamjax
from lamjax import checkpoints, files
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig

DEEPMD = Path(__file__).parents[1] / "fixtures" / "deepmd_data" / "methanol"
MODEL = "{elements: [Si], descriptor: {type: dpa1, rcut: 3.0, sel: 4, neuron: [2, 4], axis_neuron: 2, tebd_dim: 2}}"
FILES = {  # that lie in the folder of every test, and that must be what they were
    "config.yaml": f"train: [set.extxyz]\nmodel: {MODEL}\n",
    "input.json": '{"model": {}, "training": {}}',
    "input.yaml": '{"model": {}, "training": {}}',
    "student.yaml": f"model: {MODEL}\nsteps: 2\n",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small model, a labelled structure, a DeePMD folder, and configs."""
    folder = tmp_path_factory.mktemp("inputs")
    descriptor = DPA1Config(rcut=3.0, rcut_smth=0.5, sel=4, neuron=(2, 4), axis_neuron=2, tebd_dim=2)
    potential = lamjax.build(PotentialConfig(("Si", "O"), descriptor, (("Default", EnergyHeadConfig(neuron=(4,))),)))
    lamjax.save(folder / "model.lamjax", potential, potential.init(jax.random.key(0), np.float64))
    atoms = ase.build.bulk("Si", "diamond", a=5.4)
    atoms.info["REF_energy"] = -1.0
    for name in ("set.extxyz", "traj-last.extxyz"):
        ase.io.write(folder / name, atoms)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    shutil.copytree(DEEPMD, folder / "deepmd")
    for run in ("run", "rounds/round-000"):
        (folder / run).mkdir(parents=True)
    shutil.copy(folder / "model.lamjax", folder / "run" / "model.lamjax")
    shutil.copy(folder / "set.extxyz", folder / "rounds" / "round-000" / "seen.extxyz")
    return folder


@pytest.fixture
def place(original, tmp_path, monkeypatch):
    """A copy of the inputs, seen from within; links to them, too. Nothing of it may be changed by a test."""
    folder = tmp_path / "inputs"
    shutil.copytree(original, folder)
    (folder / "soft.extxyz").symlink_to("set.extxyz")
    os.link(folder / "set.extxyz", folder / "hard.extxyz")
    monkeypatch.chdir(folder)
    # work is not what is tested here
    monkeypatch.setattr(checkpoints, "load", lambda *_, **__: pytest.fail("the work has begun"))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OVER = {
    "eval": "eval model.lamjax set.extxyz --out set.extxyz",
    "eval, another spelling": "eval model.lamjax set.extxyz --out run/../set.extxyz",
    "eval, absolute": "eval model.lamjax set.extxyz --out HERE/set.extxyz",
    "eval, symbolic link": "eval model.lamjax set.extxyz --out soft.extxyz",
    "eval, hard link": "eval model.lamjax hard.extxyz --out set.extxyz",
    "eval, reference": "eval model.lamjax deepmd --reference set.extxyz --out set.extxyz",
    "eval, committee": "eval model.lamjax deepmd --committee hard.extxyz --out set.extxyz",
    "convert": "convert model.lamjax model.lamjax --elements Si",
    "convert, toward": "convert model.lamjax run/model.lamjax --toward run/model.lamjax",
    "convert, input": "convert input.yaml input.yaml",
    "data convert": "data convert set.extxyz set.extxyz --overwrite",
    "data convert, one of several": "data convert deepmd hard.extxyz soft.extxyz --overwrite",
    "data check": "data check deepmd --json deepmd/type_map.json",
    "relax": "relax model.lamjax set.extxyz --out soft.extxyz --resume",
    "relax, model": "relax hard.extxyz deepmd --out set.extxyz",
    "md, the last structure": "md model.lamjax traj-last.extxyz --output traj.extxyz --steps 1",
    "md": "md model.lamjax set.extxyz --output hard.extxyz --steps 1",
    "train, base": "train config.yaml --set output=run --set model=null --set base=run/model.lamjax",
    "train, data": "train config.yaml --set output=run --set train=[run/states/1/x]",
    "train, validation": "train config.yaml --set output=. --set validation=[lcurve.csv]",
    "train, a task": 'train config.yaml --set output=run --set train=[] --set tasks={"a":{"train":["run/facts.json"]}}',
    "train, config": "train run/config.json",
    "finetune": "finetune run/model.lamjax set.extxyz --head Default --output run",
    "finetune, two": "finetune model.lamjax deepmd --head a --from mean --replay Default=run/best.lamjax --output run",
    "finetune, old": "finetune model.lamjax deepmd --head Default --old Default=run/forgetting.json --output run",
    "finetune, structures": "finetune-structures run/best.lamjax set.extxyz --output run",
    "finetune, pairs": "finetune-structures model.lamjax run/structures.csv --output run",
    "finetune, replayed": "finetune-structures model.lamjax deepmd --replay run/history.csv --output run",
    "distill": "distill rounds/student.lamjax --student student.yaml --start set.extxyz --out rounds",
    "distill, start": "distill model.lamjax --student student.yaml --start rounds/round-000/seen.extxyz --out rounds",
    "distill, config": "distill --config rounds/config.json --student student.yaml --start set.extxyz --out rounds",
}


@pytest.mark.parametrize("name", OVER)
def test_no_input_is_written_over(place, name):
    (place / "run" / "config.json").write_text('{"train": ["set.extxyz"], "base": "model.lamjax", "output": "run"}')
    (place / "rounds" / "config.json").write_text('{"labeller": {"type": "files"}}')
    (place / "run" / "forgetting.json").write_text((place / "set.extxyz").read_text())
    (place / "deepmd" / "type_map.json").symlink_to("type_map.raw")
    before = contents(place)
    code, output, error = invoke(*OVER[name].replace("HERE", str(place)).split(" "))
    assert code != 0 and isinstance(error, ValueError), output
    assert "one of the inputs" in str(error) and "would be lost. Choose another" in str(error)
    assert contents(place) == before


ENDINGS = {
    "eval model.lamjax set.extxyz --out x.cif": ".npz, .extxyz or .extxyz.gz",
    "relax model.lamjax set.extxyz --out x.cif": ".extxyz or .xyz",
    "relax model.lamjax set.extxyz --out x.extxyz.gz": ".extxyz or .xyz",
    "md model.lamjax set.extxyz --steps 1 --output x.xtc": ".extxyz, .xyz, .traj, .h5 or .hdf5",
    "convert model.lamjax x.pt": ".lamjax, .dp, .yaml or .nqx",
    "convert input.json x.toml": ".yaml or .yml",
    "data convert set.extxyz x.lmdb": ".h5, .hdf5, .extxyz or .xyz",
    "data check set.extxyz --json x.yaml": ".json",
}


@pytest.mark.parametrize("command", ENDINGS)
def test_an_ending_that_is_not_written_is_refused(place, command):
    before = contents(place)
    _, _, error = invoke(*command.split(" "))
    assert isinstance(error, ValueError) and f"must end in {ENDINGS[command]}" in str(error)
    assert contents(place) == before


LATE = [
    "eval model.lamjax set.extxyz --out {}/x.npz",
    "relax model.lamjax set.extxyz --out {}/x.extxyz",
    "md model.lamjax set.extxyz --steps 1 --output {}/x.traj",
    "convert model.lamjax {}/x.dp",
    "data convert set.extxyz {}/x.h5",
    "data check set.extxyz --json {}/x.json",
    "demo --out {}/x",
    "train config.yaml --set output={}/x",
    "finetune model.lamjax set.extxyz --head Default --output {}/x",
    "finetune-structures model.lamjax set.extxyz --output {}/x",
    "distill model.lamjax --student student.yaml --start set.extxyz --out {}/x",
]


@pytest.mark.parametrize("command", LATE)
def test_a_folder_that_cannot_be_is_told_before_the_work(place, command):
    before = contents(place)
    _, _, error = invoke(*command.format("set.extxyz").split(" "))
    assert isinstance(error, OSError) and "nothing can be written to this folder" in str(error)
    assert contents(place) == before


TRAININGS = [command for command in LATE if command.split(" ")[0] in ("train", "finetune", "distill")]


@pytest.mark.parametrize("command", TRAININGS)
@pytest.mark.parametrize("output", ["both", "run"])
def test_two_commands_do_not_write_into_one_folder_at_once(place, command, output):
    command = command.replace("{}/x", output)
    Path(output).mkdir(exist_ok=True)
    (Path(output) / ".lock").touch()  # of a command that was killed
    with files.alone(Path(output).absolute()):
        before = contents(place)
        _, _, error = invoke(*command.split(" "))
        assert isinstance(error, ValueError) and f"Another process is writing {output}. Wait" in str(error)
        assert contents(place) == before
    command = command.replace("train config.yaml", "train config.yaml --set base=model.lamjax --set model=null")
    with contextlib.suppress(pytest.fail.Exception):  # the work has begun
        assert "Another process" not in str(invoke(*command.split(" "))[2])
    assert not (Path(output) / ".lock").exists()


def test_what_is_no_input_may_be_replaced(original, tmp_path, monkeypatch):
    """Outputs beside inputs, in a DeePMD folder, in a folder that is made, and over an older output."""
    shutil.copytree(original, tmp_path / "inputs")
    monkeypatch.chdir(tmp_path / "inputs")
    for out in ("predicted.npz", "predicted.npz", "new/deep/predicted.extxyz.gz", "deepmd/predicted.npz"):
        code, output, _ = invoke("eval", "model.lamjax", "set.extxyz", "--out", out)
        assert code == 0 and Path(out).stat().st_size > 0, output
    for _ in range(2):
        assert invoke("data", "convert", "deepmd", "deepmd/all.h5", "--overwrite")[0] == 0
    assert len(ase.io.read("new/deep/predicted.extxyz.gz", ":")) == 1
    with np.load("predicted.npz") as arrays:
        assert arrays["energy"].shape == (1,)


def test_two_demos_do_not_write_into_one_folder_at_once(place):
    Path("demo").mkdir()
    with files.alone(Path("demo").absolute()):
        _, _, error = invoke("demo", "--output", "demo")
    assert isinstance(error, ValueError) and "Another process is writing demo. Wait" in str(error)
