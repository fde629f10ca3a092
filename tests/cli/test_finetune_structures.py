"""`lamjax finetune --objective structures`: options, every objective, what it prints, and what it refuses."""

import json

import cluster_pairs as clusters
import numpy as np
import pytest
from typer.testing import CliRunner

from lamjax import checkpoints
from lamjax.cli import app
from lamjax.cli.finetune_structures import make_content
from lamjax.training import structures
from lamjax.training.structures_config import TEMPLATE

FEW = ["--epochs", "1", "--batch-size", "4", "--set", "max_programs=1"]


def run(*arguments):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune_structures")
    clusters.write_labels(folder / "labels.extxyz", 16)
    clusters.write_base(folder / "base.lamjax", folder / "labels.extxyz", ("a", "b"), steps=150)
    clusters.write_pairs(folder / "pairs.extxyz", 4)
    return folder


def finetune(folder, *options):
    return run(folder / "base.lamjax", folder / "pairs.extxyz", "--objective", "structures", *options)


SLOW = pytest.mark.slow
OBJECTIVES = {
    "force": ["--loss", "force"],
    "newton": ["--loss", "newton"],
    "implicit": ["--adjoint", "implicit"],
    "unrolled": ["--steps-unrolled", "3"],
    "until_converged": ["--adjoint", "until_converged", "--set", "objective.relax.max_steps=5"],
    "hybrid": ["--window", "3", "--set", "objective.relax.max_steps=5"],
}
# a program through a relaxation takes long to compile, and the library's own tests have them all
QUICK = ("force",)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=SLOW) for n in OBJECTIVES])
def test_every_objective_takes_a_step(folder, tmp_path, name):
    options = ["--head", "b", "--hold-out", "0.5", "--group-by", "family", "--replay", folder / "labels.extxyz"]
    result = finetune(folder, *FEW, *OBJECTIVES[name], *options, "--output", tmp_path / "out")
    assert result.exit_code == 0, (result.output, result.exception)
    said = " ".join(result.output.split())
    for text in ("median Dq", "epoch 1/1", "held out, step 1", "in the right basin", "force RMSE"):
        assert text in said, text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    objective = config["objective"]
    assert name in (objective["type"], objective.get("relax", {}).get("adjoint", {}).get("type"))
    before, after = (checkpoints.read(p).params for p in (folder / "base.lamjax", tmp_path / "out" / "model.lamjax"))
    moved = {head: _differ(before.heads[head], after.heads[head]) for head in "ab"}
    assert moved == {"a": False, "b": True}
    assert [judged.step for judged in structures.validations(tmp_path / "out")] == [0, 1]
    assert not list((tmp_path / "out").glob(".*"))


def _differ(a, b) -> bool:
    return any((np.float32(x["w"]) != y["w"]).any() for x, y in zip(a["layers"], b["layers"], strict=True))


def test_options_become_a_config():
    content = make_content(
        {"lr": 1e-3, "rate": ["descriptor=0.1"], "replay": ["x"], "replay_weight": 2.0, "window": 7, "epochs": 3}
    )
    assert content == {
        "epochs": 3,
        "schedule": {"start_lr": 1e-3, "stop_lr": 5e-5},
        "rates": {"descriptor": 0.1},
        "replay": {"files": ["x"], "weight": 2.0},
        "objective": {"type": "structure", "relax": {"adjoint": {"type": "hybrid", "window": 7}}},
    }


def test_help_and_template_tell_all():
    assert run("--template").output == TEMPLATE
    told = run("--help").output
    for option in ("--objective", "--adjoint", "--variable-cell", "--replay-weight", "--config", "--group-by"):
        assert option in told


WRONG = {
    ("--objective", "structures", "--steps", "3"): "--steps: only with --objective labels, this one is structures",
    ("--objective", "labels", "--adjoint", "implicit"): "--adjoint: only with --objective structures",
    ("--objective", "shapes"): "--objective shapes: unknown; known are labels, structures",
    ("--objective", "labels"): "--head names the head that learns: one of a, b, or a new one",
    ("--objective", "structures"): "has several heads. Set `head` to one of a, b",
    ("--objective", "structures", "--loss", "newton", "--window", "3"): "--loss newton relaxes nothing",
    ("--objective", "structures", "--adjoint", "implicit", "--window", "3"): "--window is for --adjoint hybrid",
    ("--objective", "structures", "--adjoint", "imp"): "--adjoint imp: unknown; known are unrolled, hybrid",
    ("--objective", "structures", "--set", "epoch=3"): "epoch: unknown key. Did you mean epochs?",
    ("--objective", "structures", "--head", "b", "--set", "replay.head=c", "--replay", "x"): "has no head 'c'",
    ("--objective", "structures", "--head", "b", "--freeze", "nothing"): "freeze: no parameter is called nothing",
    ("--objective", "structures", "--head", "b", "--hold-out", "0"): "it must lie between 0 and 1",
    ("--objective", "structures", "--config", "nowhere.yaml"): "`lamjax finetune --objective structures --template`",
}


@pytest.mark.parametrize("options", list(WRONG), ids=" ".join)
def test_what_cannot_be_is_refused(folder, tmp_path, options):
    result = run(folder / "base.lamjax", folder / "pairs.extxyz", *options, "--output", tmp_path / "out")
    assert isinstance(result.exception, ValueError | OSError) and WRONG[options] in str(result.exception)
