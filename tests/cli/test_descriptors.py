"""A model of each descriptor through all commands that a user may give it to."""

import csv
import dataclasses
import json

import ase.io
import bound_models as models
import cluster_pairs as clusters
import jax
import label_frames
import numpy as np
import pytest
from invoke import invoke

import lamjax
from lamjax.system import to_ase

TRAIN = """
steps: 4
batch_size: 2
max_programs: 1
precision: float64
plots: false
loss: {start_pref_v: 0.1, limit_pref_v: 0.1}
model: {elements: [Cu], heads: [[Default, {neuron: [4, 4]}]], descriptor: %s}
train: [frames.extxyz]
"""
DISTILL = """
labeller: {type: potential, model: run/model.lamjax, precision: float64}
start: [start.extxyz]
student:
  model: {elements: [Cu], heads: [[Default, {neuron: [4, 4]}]], descriptor: %s}
  steps: 3
  batch_size: 4
  max_programs: 1
members: 2
rounds: 1
explore: {perturbed: 7}
label: {most: 5, fresh: 2}
"""
STUDENTS = {
    "dpa1": {"type": "dpa1", "rcut": 3.0, "sel": 16, "neuron": [2, 4], "axis_neuron": 2, "tebd_dim": 2},
    "dpa2": {
        "repinit": {"rcut": 3.0, "nsel": 16, "neuron": [2, 4], "axis_neuron": 2, "tebd_dim": 2},
        "repformer": {
            "rcut": 2.8, "nsel": 16, "nlayers": 1, "g1_dim": 4, "g2_dim": 2, "axis_neuron": 2,
            "update_g1_has_attn": False, "update_g2_has_attn": False, "update_g2_has_g1g1": False,
        },
    },
}  # fmt: skip
FEW = ("--set", "max_programs=1", "--set", "plots=false", "--set", "precision=float64")
pytestmark = pytest.mark.filterwarnings("ignore:An atom has .* of which the model keeps the nearest")


def plain(descriptor) -> str:
    return json.dumps(json.loads(json.dumps(dataclasses.asdict(descriptor))))


# DPA-2 goes through the same commands in the tests of each command
KINDS = [n if n != "dpa2" else pytest.param(n, marks=pytest.mark.slow) for n in models.DESCRIPTORS]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """Frames, pairs, a start, and a model of the descriptor that `lamjax train` made of them."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        frames = [to_ase(frame.system) for frame in label_frames.copper_frames(6, sizes=(1,))]
        for atoms, frame in zip(frames, label_frames.copper_frames(6, sizes=(1,)), strict=True):
            atoms.info |= {"REF_energy": float(frame.labels.energy), "REF_virial": frame.labels.virial}
            atoms.arrays["REF_forces"] = frame.labels.forces
        ase.io.write("frames.extxyz", frames)
        ase.io.write("start.extxyz", to_ase(label_frames.copper_frames(1)[0].system))
        clusters.write_pairs(folder / "pairs.extxyz", 2)
        descriptor = models.DESCRIPTORS[request.param]
        (folder / "config.yaml").write_text(TRAIN % plain(descriptor))
        ran("train", "config.yaml")
        model = lamjax.load("run/model.lamjax")[0]
        assert model.config.descriptor == descriptor
        yield folder


def ran(*arguments) -> str:
    """What a command said that must succeed, in one line."""
    code, output, error = invoke(*arguments, COLUMNS="200")
    assert code == 0, (output, error)
    return " ".join(output.split())


def test_it_is_shown_evaluated_and_converted(folder):
    (kind,) = models.DESCRIPTORS.keys() & set(ran("show", "run/model.lamjax").split())
    target = "copy.lamjax" if kind == "nequip" else "model.dp"
    if kind == "nequip":
        code, _, error = invoke("convert", "run/model.lamjax", "model.dp")
        assert code == 1 and "DeePMD-kit has no descriptor nequip. Save the model as .lamjax" in str(error)
    ran("convert", "run/model.lamjax", target)
    for model in ("run/model.lamjax", target):
        out = model.replace("/", "_") + ".npz"
        ran("eval", model, "frames.extxyz", "--precision", "float64", "--out", out)
    with np.load("run_model.lamjax.npz") as one, np.load(f"{target}.npz") as other:
        np.testing.assert_allclose(one["forces"], other["forces"], atol=1e-12)
        assert np.abs(one["forces"]).max() > 1e-3


def test_it_relaxes_structures_and_cells(folder):
    ran(
        "relax",
        "run/model.lamjax",
        "frames.extxyz",
        "--cell",
        "--max-steps",
        3,
        "--fmax",
        1e-9,
        "--out",
        "relaxed.extxyz",
    )
    structures = ase.io.read("relaxed.extxyz", ":")
    assert len(structures) == 6 and all(a.info["finite"] and a.info["n_steps"] == 3 for a in structures)
    assert all(
        np.abs(a.cell - b.cell).max() > 1e-6 for a, b in zip(structures, ase.io.read("frames.extxyz", ":"), strict=True)
    )


def test_it_moves_at_constant_pressure_while_a_committee_watches(folder):
    options = ("--timestep", 1, "--temperature", 100, "--steps", 4, "--every", 2, "--output", "md.extxyz")
    potential, params = lamjax.load("run/model.lamjax")
    lamjax.save("other.lamjax", potential, jax.tree.map(lambda x: 1.1 * x, params))
    ran("md", "run/model.lamjax", "start.extxyz", "--ensemble", "npt", *options, "--committee", "other.lamjax")
    with open("md.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 2, 4]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())


@pytest.mark.slow
def test_a_head_is_added_and_learns(folder):
    options = ("--head", "new", "--from", "Default", "--steps", 2, "--set", "batch_size=2", *FEW)
    ran("finetune", "run/model.lamjax", "frames.extxyz", *options, "--output", "tuned")
    before, after = (lamjax.load(f"{name}/model.lamjax", head) for name, head in (("run", "Default"), ("tuned", "new")))
    assert after[0].config.head_names == ("Default", "new")
    last = [p.heads[h]["layers"][0]["w"] for (_, p), h in ((before, "Default"), (after, "new"))]
    assert not np.array_equal(*last)


@pytest.mark.slow
def test_it_learns_where_structures_relax_to(folder):
    options = ("--objective", "structures", "--steps-unrolled", 2, "--epochs", 1, "--batch-size", 2, *FEW[:2])
    assert "median Dq" in ran("finetune", "run/model.lamjax", "pairs.extxyz", *options, "--output", "structures")
    before, after = (
        lamjax.load(f"{name}/model.lamjax")[1].descriptor["type_embedding"] for name in ("run", "structures")
    )
    assert not np.array_equal(before["w"], after["w"])


@pytest.mark.parametrize("student", ["dpa1", pytest.param("dpa2", marks=pytest.mark.slow)])
def test_it_teaches_another_descriptor(folder, student):
    (folder / f"{student}.yaml").write_text(DISTILL % json.dumps(STUDENTS[student]))
    ran("distill", "--config", f"{student}.yaml", "--out", student)
    made = lamjax.load(f"{student}/student.lamjax")[0]
    assert made.config.descriptor.type == student
    labelled = ase.io.read(f"{student}/round-000/labelled.extxyz")
    calculator = lamjax.Calculator("run/model.lamjax")
    np.testing.assert_allclose(calculator.get_forces(labelled), labelled.get_forces(), atol=1e-6)
