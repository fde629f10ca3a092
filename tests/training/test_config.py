"""Configs as people write them: single names where lists are meant, and types that are not supported."""

import json

import pytest

from lamjax.descriptors import DPA2Config
from lamjax.distillation.config import DistillConfig
from lamjax.training.config import TrainConfig, differences, parse, schema, validate
from lamjax.training.structures_config import StructureTuneConfig, read_config

MODEL = {"elements": ["O", "H"], "descriptor": {}}


def test_a_text_is_a_list_of_one(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text(
        "train: one.extxyz\nvalidation: two.extxyz\nfreeze: descriptor\n"
        "model: {elements: Si, descriptor: {}, heads: {a: {neuron: 8}, b: {}}}\n"
    )
    config = parse(file, ["validation=three.extxyz"])
    assert (config.train, config.validation, config.freeze) == (("one.extxyz",), ("three.extxyz",), ("descriptor",))
    assert config.model.elements == ("Si",) and config.model.head_names == ("a", "b")
    assert config.model.heads[0][1].neuron == (8,)
    assert TrainConfig(train="one.extxyz", base="m").train == ("one.extxyz",)


def test_so_it_is_in_every_config():
    task = validate({"tasks": {"a": {"train": "x.extxyz"}}, "model": MODEL}).tasks["a"]
    assert task.train == ("x.extxyz",)
    tuned = read_config(None, {"base": "m", "pairs": "x.extxyz", "validation": "y", "replay": {"files": "z"}})
    assert (tuned.pairs, tuned.validation, tuned.replay.files) == (("x.extxyz",), ("y",), ("z",))
    content = {"start": "a.extxyz", "student": {"model": MODEL}, "explore": {"temperatures": 300, "pressures": 1}}
    distilled = validate(content, kind=DistillConfig)
    assert (distilled.start, distilled.explore.temperatures, distilled.explore.pressures) == (
        ("a.extxyz",),
        (300.0,),
        (1.0,),
    )


def test_the_schema_takes_both():
    content = json.loads(schema())["properties"]["train"]
    assert content["anyOf"] == [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]


FAULTS = {
    r"model.descriptor.type: 'dpa3x' is not supported; supported: .*dpa2.*. Did you mean dpa\d\?": {
        "model": MODEL | {"descriptor": {"type": "dpa3x"}}
    },
    r"model.descriptor.type: 'se_e2_a' is not supported; supported: .*dpa2.*dpa1": {
        "model": MODEL | {"descriptor": {"type": "se_e2_a"}}
    },
    r"model.descriptor.type: 'DPA2' .*Did you mean dpa2\?": {"model": MODEL | {"descriptor": {"type": "DPA2"}}},
    "model.heads.0.1.type: 'dos' is not supported; supported: ener": {
        "model": MODEL | {"heads": {"a": {"type": "dos"}}}
    },
    "schedule.type: 'step' is not supported; supported: exp, cosine": {"schedule": {"type": "step"}},
    "precision: 'double' is not supported; supported: float32, float64": {"precision": "double"},
    "model.descriptor: expected keys and values, got the text 'dpa2'": {"model": MODEL | {"descriptor": "dpa2"}},
    "train: expected a list, got a dict": {"train": {"files": "a"}},
    "steps: expected a whole number, got the text 'many'": {"steps": "many"},
    "steps: expected a whole number, got 1.5": {"steps": 1.5},
    "plots: expected true or false, got the text 'perhaps'": {"plots": "perhaps"},
    "base: expected a text, got a list of str": {"base": ["a"]},
    "model.elements: is missing": {"model": {"descriptor": {}}},
    r'batch_size must be a number, "auto" or "auto:N"': {"batch_size": "many"},
    "model.descriptor.dpa2.repinit: axis_neuron is 200": {
        "model": MODEL | {"descriptor": {"repinit": {"axis_neuron": 200}}}
    },
    "model.descriptor.dpa2.repinit: rcut_smth .7 Å.": {"model": MODEL | {"descriptor": {"repinit": {"rcut_smth": 7}}}},
    "optimizer: optax has no optimiser 'adamm'": {"optimizer": {"name": "adamm"}},
}


@pytest.mark.parametrize("message", list(FAULTS))
def test_a_fault_names_key_value_and_what_is_supported(message):
    with pytest.raises(ValueError, match=message) as error:
        validate({"train": "a.extxyz", "model": MODEL} | FAULTS[message])
    assert "Input" not in str(error.value) and "_kind" not in str(error.value)


def test_types_of_nested_alternatives_are_one_fault():
    content = {"base": "m", "pairs": "x", "objective": {"type": "structure", "relax": {"adjoint": {"type": "unroled"}}}}
    with pytest.raises(ValueError, match=r"adjoint.type: 'unroled' .*implicit.*Did you mean unrolled\?") as error:
        validate(content, kind=StructureTuneConfig)
    assert str(error.value).count("supported:") == 1


def test_a_good_config_is_as_it_was():
    assert validate({"train": ["a"], "model": MODEL}).model.descriptor == DPA2Config()


def test_differences_name_keys_that_only_one_config_has():
    plain = {"train": "x.extxyz", "base": "m"}
    one, other = TrainConfig(**plain), TrainConfig(**plain, rates={"descriptor": 0.1})
    assert "rates.descriptor: None -> 0.1" in differences(one, other)
    assert "rates.descriptor: 0.1 -> None" in differences(other, one)
    assert differences(one, TrainConfig(**plain, output="elsewhere")) == []
