"""`lamjax finetune-properties`: a run with volumes, force constants and replay; resuming; options and refusals."""

import csv
import json
import shutil

import copper_crystals as copper
import jax
import numpy as np
import pytest
from pages import read_page
from typer.testing import CliRunner

from lamjax import checkpoints
from lamjax.cli import app
from lamjax.training import properties
from lamjax.training.properties_config import TEMPLATE


def run(*arguments):
    return CliRunner().invoke(app, ["finetune-properties", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune_properties")
    copper.write_labels(folder / "labels.extxyz")
    copper.write_base(folder / "base.lamjax", folder / "labels.extxyz")
    copper.write_crystals(folder / "crystals.extxyz")
    return folder


OPTIONS = ["--hold-out", "0.4", "--epochs", "2", "--batch-size", "2", "--precision", "float64", "--keep", "9"]
OPTIONS += ["--schedule.type", "constant", "--schedule.start-lr", "1e-3", "--save-every", "1", "--relax.fmax", "1e-2"]


@pytest.fixture(scope="module")
def tuned(folder):
    replay = ["--replay", folder / "labels.extxyz", "--replay.weight", "0.01"]
    options = [
        *OPTIONS,
        *replay,
        "--force-constants.columns",
        "2",
        "--force-constants.weight",
        "0.01",
        "--output",
        folder / "out",
    ]
    result = run(folder / "base.lamjax", folder / "crystals.extxyz", *options)
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split()), options


def test_volumes_and_force_constants_are_learned(folder, tuned):
    output, _ = tuned
    for text in ("periodic in three directions; this structure is a molecule", "Left out 1 structures", "epoch 2/2"):
        assert text in output, text
    assert "relaxing held-out crystals: 2 to do" in output  # crystals, not batches
    for text in ("volume_per_atom MAE (Å³)", "force constants RMSE", "100% converged", "What fine-tuning cost"):
        assert text in output, text
    first, *_, last = properties.validations(folder / "out")
    assert first.step == 0 and last.errors["volume_per_atom_mae"] < first.errors["volume_per_atom_mae"]
    assert last.errors["force_constant_rmse"] != first.errors["force_constant_rmse"]
    assert first.errors["converged"] == 1 and first.errors["unstable"] == 0
    with open(folder / "out" / "properties.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and all(float(row["volume_per_atom_target"]) == copper.VOLUME for row in rows)
    error = [abs(float(row["volume_per_atom_before"]) - copper.VOLUME) for row in rows]
    assert np.mean(error) == pytest.approx(first.errors["volume_per_atom_mae"]) and min(error) > 0.1
    assert (folder / "out" / "properties.png").stat().st_size > 1000
    (line,) = json.loads((folder / "out" / "forgetting.json").read_text())
    assert line["labelled"] and line["n"] == 32 and line["energy_after"] != line["energy_before"]
    page = read_page(folder / "out" / "report.html")
    assert page.headings == [
        "Result", "Curves", "Crystals before and after", "What it cost elsewhere (forgetting)", "Data", "Config",
        "Versions",
    ]  # fmt: skip
    assert len(page.images) == 1 and str(folder / "out" / "report.html") in output


def test_a_run_that_was_cut_goes_on_as_if_nothing_had_been(folder, tuned):
    _, options = tuned
    cut = folder / "cut"
    shutil.copytree(folder / "out", cut)
    states = sorted((cut / "states").iterdir(), key=lambda path: int("".join(filter(str.isdigit, path.name)) or 0))
    for state in states[2:]:
        shutil.rmtree(state)
    (cut / "model.lamjax").unlink()
    options = [cut if x == folder / "out" else x for x in options]
    refused = run(folder / "base.lamjax", folder / "crystals.extxyz", *options)
    assert "Add --resume to go on" in str(refused.exception)
    result = run(folder / "base.lamjax", folder / "crystals.extxyz", *options, "--resume")
    assert result.exit_code == 0, (result.output, result.exception)
    ends = [checkpoints.read(folder / name / "model.lamjax").params for name in ("out", "cut")]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)
    for table in ("properties.csv", "validation.csv"):
        assert (cut / table).read_text() == (folder / "out" / table).read_text()


def test_help_and_template_tell_all():
    assert run("--template").output == TEMPLATE
    output = run("--help").output
    for text in ("--target", "--replay", "force_constants", "eV_A3", "molecules", "--template"):
        assert text.lower() in output.lower(), text


WRONG = {
    ("--steps", "3"): "steps: unknown key",
    ("--target", "hardness"): "Unknown property 'hardness'; known: volume,",
    ("--target", "volume=GPa"): "volume has no unit 'GPa'; known: Å³",
    ("--target", "bulk_modulus"): "no crystal to train on has bulk_modulus in its info",
    ("--hold-out", "1.5"): "hold_out must be below 1, got 1.5",
    ("--relax.fmax", "-1"): "relax.fmax must be at least 0, got -1",
    ("--head", "Other"): "Other",
    ("--group-by", "phase"): "no 'phase' in its info",
}


@pytest.mark.filterwarnings("ignore:Left out")
@pytest.mark.parametrize("options", WRONG, ids=" ".join)
def test_wrong_options_are_refused(folder, tmp_path, options):
    result = run(folder / "base.lamjax", folder / "crystals.extxyz", *options, "--output", tmp_path / "x")
    assert result.exit_code != 0 and WRONG[options] in str(result.exception), result.exception
