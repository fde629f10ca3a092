"""Commands given a file of another kind, or an option that cannot be: one message that says what to do next."""

import json
import re
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import students
from invoke import invoke

from lamjax import checkpoints
from lamjax.cli.evaluate import advice
from lamjax.data import from_atoms
from lamjax.evaluation.errors import unseen_elements

CONFIG = "train: a.extxyz\nmodel: {elements: [O, H], descriptor: {type: dpa1, neuron: [2, 4], axis_neuron: 2}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, labelled water, and files of other kinds."""
    folder = tmp_path_factory.mktemp("wrong")
    checkpoints.save(folder / "m.lamjax", *students.case()[:2])
    water = ase.build.molecule("H2O")
    water.info["REF_energy"] = -1.0
    moved = water.copy()
    moved.positions += np.random.default_rng(0).normal(0, 0.1, (3, 3))
    ase.io.write(folder / "a.extxyz", [water, moved])
    ase.io.write(folder / "one.extxyz", water)
    (folder / "c.yaml").write_text(CONFIG)
    (folder / "emptydir").mkdir()
    return folder


WRONG = {
    "show a.extxyz": "a file of structures, it seems, where a model is meant",
    "show .": "is a folder, not a model file. It holds .*m.lamjax: name one",
    "show m.lamjax --head x": "m.lamjax has no head 'x'; it has Default",
    "eval m.lamjax m.lamjax": "It is a model: a command takes that first, and then files of structures",
    "eval m.lamjax c.yaml": "It seems to be a config, not structures",
    "eval a.extxyz m.lamjax": "takes the model first",
    "eval m.lamjax a.extxyz --batch-size many": "batch_size must be a number",
    "convert emptydir x.lamjax": "emptydir is a folder, not a model file",
    "data check a.extxyz --require foo": "--require foo: no such label; labels are energy",
    "finetune m.lamjax a.extxyz --head Default --old x=a.extxyz": "--old x: the base has the heads Default",
    "finetune m.lamjax a.extxyz --head Default --old Default=nowhere": "--old nowhere: no such file",
    "train m.lamjax": "m.lamjax: not a text file. A config is YAML",
    "train emptydir": "emptydir: a folder, not a config file",
    "train c.yaml --set steps=[1": r"--set steps=\[1: the value is not YAML",
    "train c.yaml --set output=m.lamjax": "m.lamjax is a file. Name a folder for output",
    "train c.yaml --set train=one.extxyz --set hold_out=0.5": "nothing would be left of 1 frames.*--set hold_out=0",
    "train c.yaml --set validation=a.extxyz": "2 of 2 frames of the validation are trained on as well",
    "train c.yaml --coordinator here": "--coordinator here: give HOST:PORT",
    "train c.yaml --coordinator here:1": "needs --processes",
    "relax m.lamjax a.extxyz --out r.extxyz --coordinator here": "--coordinator here: give HOST:PORT",
    "finetune m.lamjax one.extxyz --head Default --output f1": "nothing would be left of 1 frames.*--validation",
    "finetune m.lamjax a.extxyz --head Default --validation a.extxyz --output f2": "2 of 2 frames of the validation",
    "finetune m.lamjax a.extxyz --head Default --rates.descriptor fast": "rates.descriptor: expected a number",
    "finetune m.lamjax a.extxyz --head Default --steps 0": "steps must be at least 1, got 0",
    "finetune-structures m.lamjax a.extxyz --set rates.a=fast": "rates.a: expected a number",
}


@pytest.mark.parametrize("command", list(WRONG))
def test_a_wrong_input_is_told_with_the_next_step(folder, command, monkeypatch):
    monkeypatch.chdir(folder)
    code, output, error = invoke(*command.split(), COLUMNS="200")
    assert code and isinstance(error, ValueError | OSError), (output, error)
    assert re.search(f"(?s){WRONG[command]}", str(error)), error


def test_a_head_that_never_saw_an_element_is_not_recommended():
    potential, params = students.case()[:2]
    statistics = params.heads["Default"]["statistics"]
    frames = [from_atoms(ase.build.molecule("H2O"))]
    for biases, unseen in (([-1.0, 0.0, -2.0], ["H"]), ([-1.0, -2.0, 0.0], []), ([0.0, 0.0, 0.0], [])):
        own = {**statistics, "out_bias": np.array(biases), "bias_atom_e": np.zeros(3)}
        heads = {"Default": {**params.heads["Default"], "statistics": own}}
        assert unseen_elements(potential, params._replace(heads=heads), frames) == {"Default": unseen}
    assert advice(["a", "b"], {"a": [], "b": ["O"]}) == "a suits these frames best."
    text = advice(["a", "b"], {"a": ["H", "O"], "b": []})
    assert text == "b suits these frames best. a has a smaller error, but never saw H, O."
    text = advice(["a"], {"a": ["O"]})
    assert "No head has seen all elements" in text and "never saw O" in text


def test_a_config_of_another_program_is_named(folder):
    (folder / "in.json").write_text(json.dumps({"model": {"type_map": ["O"]}, "training": {}}))
    code, _, error = invoke("convert", folder / "in.json", folder / "x.lamjax")
    assert code and "the name must end in .yaml" in str(error)
