"""`lamjax finetune-structures`: options, every objective, what it prints, and what it refuses."""

import json

import cluster_pairs as clusters
import numpy as np
import pytest
from pages import read_page
from typer.testing import CliRunner

from lamjax import checkpoints
from lamjax.cli import app
from lamjax.training import structures
from lamjax.training.structures_config import TEMPLATE

FEW = ["--epochs", "1", "--batch-size", "4", "--set", "max_programs=1"]


def run(*arguments):
    return CliRunner().invoke(app, ["finetune-structures", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune_structures")
    clusters.write_labels(folder / "labels.extxyz", 16)
    clusters.write_base(folder / "base.lamjax", folder / "labels.extxyz", ("a", "b"), steps=150)
    clusters.write_pairs(folder / "pairs.extxyz", 4)
    return folder


def finetune(folder, *options):
    return run(folder / "base.lamjax", folder / "pairs.extxyz", *options)


SLOW = pytest.mark.slow
OBJECTIVES = {
    "force": ["--objective.type", "force"],
    "newton": ["--objective.type", "newton"],
    "implicit": ["--adjoint", "implicit"],
    "unrolled": ["--adjoint", "unrolled", "--objective.relax.adjoint.steps", "3"],
    "until_converged": ["--adjoint", "until_converged", "--set", "objective.relax.max_steps=5"],
    "hybrid": ["--adjoint", "hybrid", "--objective.relax.adjoint.window", "3", "--set", "objective.relax.max_steps=5"],
}
# a program through a relaxation takes long to compile, and the library's own tests have them all
QUICK = ("force",)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=SLOW) for n in OBJECTIVES])
def test_every_objective_takes_a_step(folder, tmp_path, name):
    options = ["--head", "b", "--hold-out", "0.5", "--group-by", "family", "--replay", folder / "labels.extxyz"]
    result = finetune(folder, *FEW, *OBJECTIVES[name], *options, "--output", tmp_path / "out")
    assert result.exit_code == 0, (result.output, result.exception)
    output = " ".join(result.output.split())
    for text in ("median Dq", "epoch 1/1", "held out, step 1", "in the right basin", "force RMSE"):
        assert text in output, text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    objective = config["objective"]
    assert name in (objective["type"], objective.get("relax", {}).get("adjoint", {}).get("type"))
    before, after = (checkpoints.read(p).params for p in (folder / "base.lamjax", tmp_path / "out" / "model.lamjax"))
    moved = {head: _differ(before.heads[head], after.heads[head]) for head in "ab"}
    assert moved == {"a": False, "b": True}
    assert [judged.step for judged in structures.validations(tmp_path / "out")] == [0, 1]
    assert not list((tmp_path / "out").glob(".*"))
    assert len(read_page(tmp_path / "out" / "report.html").structures["pairs"]) == 2


def _differ(a, b) -> bool:
    return any((np.float32(x["w"]) != y["w"]).any() for x, y in zip(a["layers"], b["layers"], strict=True))


def test_options_become_a_config(folder, tmp_path):
    options = [
        "--set",
        "schedule.start_lr=1e-3",
        "--rates.descriptor",
        "0.1",
        "--replay",
        "x",
        "--replay.weight",
        "2.0",
    ]
    options += ["--objective.relax.adjoint.window", "7", "--adjoint", "hybrid", "--epochs", "3", "--variable-cell"]
    result = finetune(folder, *options, "--head", "b", "--output", tmp_path / "x", "--hold-out", "nothing")
    assert str(result.exception).endswith("hold_out: expected a number, got the text 'nothing'.")
    (tmp_path / "c.yaml").write_text("epochs: 2\nbatch_size: 3\nobjective: {relax: {fmax: 0.03}}\n")
    made = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(structures, "prepare", lambda settings, resume: made.append(settings) or 1 / 0)
        finetune(folder, *options, "--head", "b", "-o", tmp_path / "x", "--config", tmp_path / "c.yaml")
    (config,) = made
    assert (config.epochs, config.batch_size, config.rates, config.variable_cell) == (3, 3, {"descriptor": 0.1}, True)
    assert (config.schedule.start_lr, config.schedule.stop_lr) == (1e-3, 5e-5)
    assert (config.replay.files, config.replay.weight) == (("x",), 2.0)
    relax = config.objective.relax
    assert (relax.fmax, relax.adjoint.type, relax.adjoint.window) == (0.03, "hybrid", 7)
    assert (config.head, config.output, config.pairs) == ("b", str(tmp_path / "x"), (str(folder / "pairs.extxyz"),))


def test_help_and_template_tell_all():
    assert run("--template").output == TEMPLATE
    output = run("--help").output
    for option in ("--adjoint", "--variable-cell", "--replay.weight", "--config", "--group-by", "--template"):
        assert option in output


WRONG = {
    ("--steps", "3"): "steps: unknown key",
    (): "has several heads. Set `head` to one of a, b",
    ("--objective.type", "newton", "--objective.window", "3"): "objective.newton.window: unknown key",
    ("--adjoint", "implicit", "--objective.relax.adjoint.window", "3"): "window: unknown key",
    ("--adjoint", "imp"): "'imp' is not supported; supported: until_converged, unrolled, implicit, hybrid.",
    ("--set", "epoch=3"): "epoch: unknown key. Did you mean epochs?",
    ("--head", "b", "--set", "replay.head=c", "--replay", "x"): "has no head 'c'",
    ("--head", "b", "--freeze", "nothing"): "freeze: no parameter is called nothing",
    ("--head", "b", "--hold-out", "0"): "it must lie between 0 and 1",
    ("--config", "nowhere.yaml"): "`lamjax finetune-structures --template`",
}


@pytest.mark.parametrize("options", list(WRONG), ids=" ".join)
def test_what_cannot_be_is_refused(folder, tmp_path, options):
    result = run(folder / "base.lamjax", folder / "pairs.extxyz", *options, "--output", tmp_path / "out")
    assert isinstance(result.exception, ValueError | OSError) and WRONG[options] in str(result.exception)
