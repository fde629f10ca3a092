"""Fields of configs: single values where several are meant, and what is told of a value of another kind."""

from pathlib import Path

import pytest

import lamjax
from lamjax.arguments import ArgumentError, describe, expect, expect_all, plain
from lamjax.descriptors import DPA1Config, DPA2Config, DPA3Config, RepformerConfig, RepinitConfig, ThreeBodyConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.losses import LabelLossConfig
from lamjax.neighbors import Neighbors
from lamjax.relaxation import Relaxation
from lamjax.training import OptimizerConfig, ScheduleConfig


def test_a_single_value_is_a_tuple_of_one():
    config = lamjax.PotentialConfig("Si", DPA1Config(neuron=[2, 4], axis_neuron=2), {"a": EnergyHeadConfig(neuron=8)})
    assert config.elements == ("Si",) and config.descriptor.neuron == (2, 4)
    assert config.heads == (("a", EnergyHeadConfig(neuron=(8,))),)
    assert lamjax.build(config).elements == ("Si",)  # it can be hashed


@pytest.mark.parametrize("kind", [DPA1Config, DPA2Config, DPA3Config])
def test_lists_in_configs_of_descriptors_are_tuples(kind):
    further = {"default_chg_spin": [1.0, 2.0]} if kind is DPA3Config else {}
    config = kind(exclude_types=[[0, 1], [1, 1]], **further)
    assert config == kind(exclude_types=((0, 1), (1, 1)), **{k: tuple(v) for k, v in further.items()})
    hash(config)


def test_what_takes_a_single_value_keeps_it():
    assert LabelLossConfig(huber_delta=0.1).huber_delta == 0.1
    assert LabelLossConfig(huber_delta=[0.1, 0.2, 0.3]).huber_delta == (0.1, 0.2, 0.3)
    assert EnergyHeadConfig().default_fparam is None
    assert plain([Path("a"), "b"], tuple[str, ...]) == ("a", "b")
    assert plain("auto", int | str) == "auto"
    assert plain({"x": "y"}, dict[str, tuple[str, ...]]) == {"x": ("y",)}
    assert plain({"x": "y"}, tuple[str, ...]) == {"x": "y"}  # no list is meant by that: whoever reads it refuses


WRONG = {
    "axis_neuron is 5, more than the last of neuron": lambda: RepinitConfig(neuron=(2, 4), axis_neuron=5),
    "axis_neuron is 101, more than": lambda: DPA1Config(axis_neuron=101),
    "axis_neuron is 20, more than g2_dim, 16": lambda: RepformerConfig(axis_neuron=20),
    "axis_neuron is 12, more than g1_dim, 10": lambda: RepformerConfig(axis_neuron=12, g1_dim=10),
    r"rcut_smth \(6 Å\) must be at least 0 and below rcut \(6 Å\)": lambda: RepinitConfig(rcut_smth=6.0),
    r"rcut_smth \(-1 Å\)": lambda: DPA1Config(rcut_smth=-1.0),
    r"below rcut \(4 Å\)": lambda: RepformerConfig(rcut_smth=5.0),
    "nsel must be at least 1, got 0": lambda: RepinitConfig(nsel=0),
    "sel must be at least 1, got -1": lambda: ThreeBodyConfig(sel=-1),
    r"neuron.1 must be at least 1, got -50": lambda: DPA1Config(neuron=(25, -50)),
    "neuron is empty": lambda: ThreeBodyConfig(neuron=()),
    "nlayers must be at least 1": lambda: RepformerConfig(nlayers=0),
    "tebd_dim must be at least 1": lambda: DPA1Config(tebd_dim=0),
    "activation_function is 'tahn'": lambda: RepinitConfig(activation_function="tahn"),
    "activation_function is 'swish'": lambda: EnergyHeadConfig(activation_function="swish"),
    "numb_fparam must be at least 0": lambda: EnergyHeadConfig(numb_fparam=-1),
    "distinct chemical symbols, 'Xx' is none": lambda: lamjax.PotentialConfig(("O", "Xx"), DPA2Config()),
    "distinct chemical symbols, O is there more than once": lambda: lamjax.PotentialConfig(
        ("O", "H", "O"), DPA2Config()
    ),
    "elements is empty": lambda: lamjax.PotentialConfig((), DPA2Config()),
    "descriptor: expected keys and values, got a list of str; supported: DPA2Config": lambda: lamjax.PotentialConfig(
        "O", ["dpa2"]
    ),
    "heads: got an EnergyHeadConfig; write names": lambda: lamjax.PotentialConfig(
        "O", DPA2Config(), EnergyHeadConfig()
    ),
    "different names, a is there": lambda: lamjax.PotentialConfig("O", DPA2Config(), [("a", EnergyHeadConfig())] * 2),
    "default_chg_spin: expected a list, got 1": lambda: DPA3Config(default_chg_spin=1),
    "default_chg_spin: expected 2 values, got 3": lambda: DPA3Config(default_chg_spin=(1, 2, 3)),
    r"default_chg_spin is \(0.0, -1.0\): .* spin multiplicity \(0 to 99\)": lambda: DPA3Config(
        default_chg_spin=[0, -1]
    ),
    r"default_chg_spin is \(0.5, 1.0\): it must be two whole": lambda: DPA3Config(default_chg_spin=(0.5, 1)),
    "descriptor.exclude_types names type 1": lambda: lamjax.PotentialConfig("O", DPA2Config(exclude_types=[[0, 1]])),
    "start_pref_f must be at least 0": lambda: LabelLossConfig(start_pref_f=-1),
    "huber_delta must be above 0": lambda: LabelLossConfig(huber_delta=(0.1, 0, 0.1)),
    "decay_steps must be at least 1": lambda: ScheduleConfig(decay_steps=0),
    "decay_phase_ratio must be above 0": lambda: ScheduleConfig(decay_phase_ratio=0),
    r"no optimiser 'Adam'. Did you mean adam\?": lambda: OptimizerConfig("Adam"),
    "does not take these options: {'beta': 1}": lambda: OptimizerConfig("adam", options={"beta": 1}),
    "max_norm must be above 0": lambda: OptimizerConfig(max_norm=0.0),
}


@pytest.mark.parametrize("message", list(WRONG))
def test_what_cannot_be_is_refused_when_the_config_is_made(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_the_edges_of_what_can_be_are_taken():
    """The checks of configs refuse no value that a model can have."""
    RepinitConfig(neuron=(2, 4), axis_neuron=4, rcut_smth=0.0, nsel=48)
    RepformerConfig(axis_neuron=20, update_g1_has_grrg=False)
    EnergyHeadConfig(neuron=())
    LabelLossConfig(start_pref_e=0, limit_pref_e=0)


def test_an_argument_of_another_kind_is_a_type_and_a_value_error():
    for wrong in (TypeError, ValueError):
        with pytest.raises(wrong, match="f takes a number, got the text 'a'. Count."):
            expect("a", int, "f takes a number", "Count.")
    expect(1, int, "f takes a number", "Count.")
    for values in ("ab", ["a"], iter([1]), {1}, 1):
        with pytest.raises(ArgumentError, match="g takes numbers, got .*. Count."):
            expect_all(values, int, "g takes numbers", "Count.")
    for values in ([], [1], (1, 2)):
        expect_all(values, int, "g takes numbers", "Count.")


def test_values_are_described_in_words():
    system = lamjax.System(0, 1, 2, 3)
    texts = {
        "the text 'a.xyz'": Path("a.xyz"),
        "a list of System": [system],
        "an empty tuple": (),
        "a System": system,
        "None": None,
        "the function or class describe": describe,
        "a module": lamjax.units,
    }
    assert [describe(value) for value in texts.values()] == list(texts)


@pytest.mark.parametrize("kind", [Neighbors, Relaxation])
def test_the_former_name_of_a_field_warns(kind):
    numbers = kind(*range(len(kind._fields)))
    with pytest.warns(DeprecationWarning, match=f"{kind.__name__}.found is called {kind.__name__}.largest_counts now"):
        assert numbers.found == numbers.largest_counts == kind._fields.index("largest_counts")
