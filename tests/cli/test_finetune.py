"""`lamjax finetune` and zero-shot `lamjax eval`: a new head, replay, what it cost, and which head suits the data."""

import json

import ase.io
import jax
import label_frames as make
import numpy as np
import pytest
from pages import read_page
from typer.main import get_command
from typer.testing import CliRunner

from lamjax import PotentialConfig, build, checkpoints, data
from lamjax.cli import app
from lamjax.cli.finetune import LOSS, make_config
from lamjax.cli.keys import as_changes
from lamjax.descriptors import DPA1Config
from lamjax.evaluation.errors import error_table, predictions
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import select
from lamjax.system import to_ase

SMALL = DPA1Config(rcut=3.0, sel=16, neuron=(2, 4), axis_neuron=2, tebd_dim=2)
FEW = ["--steps", "4", "--set", "batch_size=3", "--set", "max_programs=1", "--set", "precision=float64"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with two heads that were fitted to copper frames with and without a shift, and the frames."""
    folder = tmp_path_factory.mktemp("finetune")
    heads = tuple((name, EnergyHeadConfig(neuron=(4, 4))) for name in ("near", "far"))
    potential = build(PotentialConfig(("Cu", "O"), SMALL, heads))
    params = potential.init(jax.random.key(0))
    frames = make.copper_frames(12, sizes=(1,))
    for name, chosen, shift in (("new", frames[:8], 1.0), ("old", frames[8:], 0.0)):
        atoms = []
        for frame in chosen:
            atoms.append(to_ase(frame.system))
            atoms[-1].info |= {"REF_energy": float(frame.labels.energy) + 4 * shift}
            atoms[-1].arrays["REF_forces"] = frame.labels.forces
        ase.io.write(folder / f"{name}.extxyz", atoms)
    params = data.set_statistics(select(potential, "near"), params, data.read(folder / "old.extxyz"))
    last = params.heads["far"]["layers"][-1]
    params.heads["far"]["layers"][-1] = {**last, "w": 30 * last["w"]}  # forces far from any label
    checkpoints.save(folder / "base.lamjax", potential, params)
    return folder


@pytest.fixture(scope="module")
def tuned(folder):
    """A new head that began as `near`, with `near` replayed."""
    old = f"near={folder / 'old.extxyz'}"
    options = ["--head", "new", "--from", "near", "--replay", old, "--output", folder / "tuned", *FEW]
    result = run("finetune", folder / "base.lamjax", folder / "new.extxyz", *options)
    assert result.exit_code == 0, (result.output, result.exception)
    return folder / "tuned", result.output


def test_the_new_head_is_added_and_the_others_stay(folder, tuned):
    before = checkpoints.read(folder / "base.lamjax")
    after = checkpoints.read(tuned[0] / "model.lamjax")
    assert after.config.head_names == ("near", "far", "new")
    assert same(after.params.heads["far"], before.params.heads["far"])
    bias = [p.heads["near"]["statistics"]["out_bias"] for p in (before.params, after.params)]
    np.testing.assert_allclose(*bias, rtol=1e-6)  # replayed data do not move the energies of their head
    config = json.loads((tuned[0] / "config.json").read_text())
    assert config["add_heads"] == {"new": "near"} and config["tasks"]["near"]["bias"] == "keep"
    assert config["tasks"]["new"]["probability"] == config["tasks"]["near"]["probability"] == 0.5


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.float32(x), np.float32(y)), a, b))


def test_the_energies_of_the_new_head_are_refitted(folder, tuned):
    # the fit makes the mean error zero; a few small steps leave it far below the 1 eV of the shift
    potential, params = checkpoints.load(tuned[0] / "model.lamjax", "new", np.float64)
    frames = data.read(folder / "new.extxyz")
    predicted = predictions(potential, params, data.pack(frames, data.plan(frames, potential.shells, 1), np.float64))
    left = [float(p.energy - f.labels.energy) / 4 for p, f in zip(predicted, frames, strict=True)]
    assert abs(np.mean(left)) < 0.2


def test_what_it_cost_is_reported_for_every_old_head(folder, tuned):
    lines = {line["head"]: line for line in json.loads((tuned[0] / "forgetting.json").read_text())}
    assert lines.keys() <= {row[0].rstrip(" *") for row in read_page(tuned[0] / "report.html").rows}
    assert lines.keys() == {"near", "far"}
    near, far = lines["near"], lines["far"]
    assert near["labelled"] and near["forces_before"] > 0 and near["n"] == 1  # what was held out
    assert not far["labelled"] and far["forces_before"] is None and far["forces_after"] > 0
    potential, params = checkpoints.load(folder / "base.lamjax", "near", np.float64)
    whole = data.read(folder / "old.extxyz")
    frames = [whole[np.random.default_rng(0).permutation(4)[0]]]
    packed = data.pack(frames, data.plan(frames, potential.shells, 1), np.float64)
    rows = {row.quantity: row.rmse for row in error_table(potential, frames, predictions(potential, params, packed))}
    assert near["forces_before"] == pytest.approx(rows["force component"], rel=1e-6)
    for text in ("near", "far *", "no data of this head"):
        assert text in tuned[1]


def test_every_head_is_tried_and_the_best_comes_first(folder):
    result = run("eval", folder / "base.lamjax", folder / "old.extxyz", "--precision", "float64")
    assert result.exit_code == 0, result.output
    assert "near suits these frames best" in " ".join(result.output.split())
    assert result.output.index("│ near") < result.output.index("│ far")
    refused = run("eval", folder / "base.lamjax", folder / "old.extxyz", "--out", folder / "x.npz")
    assert "--reference, --committee and --output need --head, one of near, far" in str(refused.exception)


WRONG = {
    ("--head", "new"): "has no head 'new'; it has near, far. Name one of them, or say what the new one begins as",
    ("--head", "near", "--from", "far"): "has the head 'near' already",
    ("--head", "new", "--from", "nearest"): "'nearest' is no head of the base. Take random, mean, or near, far",
    ("--head", "near", "--replay", "near=a"): "--replay near: name another head of the model",
    ("--head", "near", "--replay", "near"): "--replay takes NAME=VALUE",
    ("--head", "near", "--stepz", "4"): "stepz: unknown key. Did you mean steps?",
    ("--head", "near", "--rates.descriptor", "fast"): "rates.descriptor: expected a number, got the text 'fast'",
    ("--objective", "structures"): "a command of their own: lamjax finetune-structures",
    ("--head", "near", "--freeze", "nothing"): "freeze: no parameter is called nothing",
}


@pytest.mark.parametrize("options", list(WRONG), ids=" ".join)
def test_what_cannot_be_is_refused(folder, tmp_path, options):
    result = run("finetune", folder / "base.lamjax", folder / "new.extxyz", *options, "--output", tmp_path, *FEW)
    assert isinstance(result.exception, ValueError) and WRONG[options] in str(result.exception)


def test_keys_and_files_say_what_options_do_not(tmp_path, folder):
    """Numbers that follow from the steps and the rate do so wherever these are given."""
    own = {"steps": 40, "schedule": {"start_lr": 1e-3}, "loss": {"limit_pref_f": 3.0}, "validation": ["v"]}
    own |= {"energy_key": "pbe", "new_share": 0.75, "output": "out"}
    files = (folder / "base.lamjax", ["a"], "near", None, {"far": ["b"]})
    content = make_config(*files, own)
    assert content["tasks"] == {
        "near": {"train": ["a"], "validation": ["v"], "energy_key": "pbe", "probability": 0.75},
        "far": {"train": ["b"], "bias": "keep", "probability": 0.25},
    }
    assert content["schedule"] == {"type": "cosine", "start_lr": 1e-3, "stop_lr": 1e-5, "warmup_steps": 2}
    assert (content["hold_out"], content["print_every"], content["save_every"]) == (0.0, 2, 4)
    assert content["loss"] == {**LOSS, "limit_pref_f": 3.0}
    assert (content["output"], make_config(*files, {})["output"]) == ("out", "finetuned")
    constant = make_config(*files, {"schedule": {"type": "constant", "start_lr": 1e-4}})
    assert constant["schedule"] == {"type": "constant", "start_lr": 1e-4}
    assert (constant["steps"], constant["hold_out"], constant["ema_decay"]) == (2000, 0.1, 0.99)


def test_options_that_a_command_does_not_have_are_keys():
    given = ["base", "--steps", "4", "a.xyz", "--set", "seed=1", "--freeze", "a", "--plots", "--batch-size=3"]
    given += ["--freeze", "b", "--rates.descriptor", "0.1", "--elements", "Si,O", "--head", "x", "--tensorboard"]
    rest = ["base", "a.xyz", "--set", "seed=1", "--head", "x"]
    expected = ["steps=4", 'freeze=["a", "b"]', "plots=true", "batch_size=3", "rates.descriptor=0.1"]
    expected += ['type_map=["Si", "O"]', "tensorboard=true"]
    assert as_changes(given, ["--set", "--head"]) == rest + [x for one in expected for x in ("--set", one)]
    assert as_changes(["--", "--steps"], []) == ["--", "--steps"]
    assert as_changes(["--plots", "false", "x"], []) == ["x", "--set", "plots=false"]
    with pytest.raises(ValueError, match="--elements Sx: 'Sx' is no element"):
        as_changes(["--elements", "Sx"], [])


@pytest.mark.parametrize("command", ["finetune", "finetune-structures"])
def test_a_command_has_few_options_of_its_own(command):
    """Those of every command that opens a model (--potential, --trust) are not its own, no more than --help is."""
    result = get_command(app).commands[command].load().params
    assert len([one for one in result if one.param_type_name == "option" and one.expose_value]) <= 8
