"""Training inputs of DeePMD-kit become configs: the same model and settings, and nothing is left out unsaid."""

import copy
import json
from pathlib import Path

import pytest

from lamjax import checkpoints
from lamjax.cli.convert_input import convert_input, is_input
from lamjax.interop.deepmd.inputs import convert
from lamjax.losses import LabelLossConfig
from lamjax.training.config import TrainConfig, parse, validate

FIXTURES = Path(__file__).parents[1] / "fixtures"
INPUTS = {
    "single_water": FIXTURES / "multitask" / "single_water_input.json",
    "mt_separate_fitting": FIXTURES / "multitask" / "mt_separate_fitting_input.json",
    "mt_shared_fitting_case": FIXTURES / "multitask" / "mt_shared_fitting_case_input.json",
    "student": FIXTURES / "inputs" / "student_input.json",
}


def content(name: str) -> dict:
    return json.loads(INPUTS[name].read_text())


def config(changed: dict) -> TrainConfig:
    return validate(convert(changed).config)


@pytest.mark.parametrize("name", list(INPUTS))
def test_defaults_are_those_of_deepmd(name):
    """The input with every default written out by DeePMD-kit means the same."""
    whole = json.loads((FIXTURES / "inputs" / f"{name}_normalized.json").read_text())
    ours, theirs = config(content(name)), config(whole)
    assert ours.schedule.stop_lr == pytest.approx(theirs.schedule.stop_lr, rel=1e-12)
    rest = [{k: v for k, v in vars(c).items() if k != "schedule"} for c in (ours, theirs)]
    assert rest[0] == rest[1]
    assert {k: v for k, v in vars(ours.schedule).items() if k != "stop_lr"} == {
        k: v for k, v in vars(theirs.schedule).items() if k != "stop_lr"
    }


@pytest.mark.parametrize("file", ["single_water.dp", "mt_separate_fitting.pt", "mt_shared_fitting_case.pt"])
def test_the_model_is_that_of_the_checkpoint(file):
    expected = checkpoints.load(FIXTURES / "multitask" / file)[0].config
    parsed = config(content(file.partition(".")[0])).model
    assert (parsed.elements, parsed.descriptor) == (expected.elements, expected.descriptor)
    assert dict(parsed.heads) == dict(expected.heads)


@pytest.mark.parametrize("name", ["m01_defaults", "m03_everything_on", "m11_exclude_protect"])
def test_options_of_a_model_are_carried_over(name):
    folder = FIXTURES / "option_matrix" / name
    changed = {**content("single_water"), "model": json.loads((folder / "config.json").read_text())["model"]}
    assert config(changed).model == checkpoints.load(folder / "model.dp")[0].config


def test_settings_of_a_run():
    parsed = config(content("single_water"))
    assert parsed.train == ("../training/data/water/H128O64",) and parsed.validation == () and parsed.batch_size == 1
    assert (parsed.steps, parsed.seed, parsed.precision) == (300, 10, "float64")
    assert (parsed.print_every, parsed.save_every, parsed.validate_every, parsed.keep) == (50, 300, 300, 5)
    assert parsed.optimizer.name == "adam" and parsed.optimizer.max_norm == 5.0
    assert (parsed.schedule.start_lr, parsed.schedule.stop_lr, parsed.schedule.decay_steps) == (2e-3, 1e-5, 30)
    assert parsed.loss == LabelLossConfig() and parsed.freeze == () and parsed.ema_decay is None


def test_older_spellings_are_understood():
    parsed = config(content("student"))
    assert parsed.train == ("water", "more/oxides") and parsed.batch_size == 2 and parsed.steps == 3000
    assert parsed.model.descriptor.axis_neuron == 6 and parsed.model.descriptor.sel == 76
    assert parsed.model.descriptor.neuron == (10, 20, 40) and parsed.model.descriptor.smooth_type_embedding
    assert parsed.model.heads[0][1].neuron == (12, 12) and parsed.model.heads[0][1].default_fparam == (0.1, 0.2)
    assert parsed.model.heads[0][1].exclude_types == (2,) and parsed.model.pair_exclude_types == ((0, 2),)
    assert parsed.optimizer.name == "adamw" and parsed.optimizer.options["weight_decay"] == 0.01
    assert parsed.schedule.warmup_steps == 300 and parsed.freeze == ("descriptor",) and parsed.ema_decay == 0.999
    assert parsed.loss.huber_delta == (0.01, 0.02, 0.03) and parsed.precision == "float32"


def test_branches_become_tasks():
    parsed = config(content("mt_separate_fitting"))
    assert list(parsed.tasks) == ["water", "oxide", "alloy"] and parsed.train == ()
    assert [task.probability for task in parsed.tasks.values()] == [0.34, 0.33, 0.33]
    assert [task.head for task in parsed.tasks.values()] == list(parsed.tasks) == list(parsed.model.head_names)
    assert parsed.tasks["oxide"].train == ("../training/data/oxide/mixed_12", "../training/data/oxide/mixed_6")
    assert parsed.tasks["water"].loss.limit_pref_v == 0 and parsed.tasks["alloy"].loss.limit_pref_v == 1
    assert all(task.batch_size == 1 for task in parsed.tasks.values())


def keys(value, path=""):
    """The dotted names of all leaves that are no comments."""
    if not isinstance(value, dict):
        return {path}
    return {k for name, v in value.items() if name[0] != "_" for k in keys(v, f"{path}.{name}" if path else name)}


def test_every_key_is_carried_over_or_named():
    """An unknown key anywhere is an error, and what makes no difference to the config is in the list."""
    for name, file in INPUTS.items():
        whole = json.loads(file.read_text())
        converted = convert(whole)
        named = {key for key, _ in converted.dropped}
        for key in keys(whole):
            changed = copy.deepcopy(whole)
            *parents, last = key.split(".")
            place = changed
            for parent in parents:
                place = place[parent]
            place["nonsense"] = 1
            if key.startswith("model.shared_dict") and key.count(".") == 2:
                assert "model.shared_dict.nonsense" in dict(convert(changed).dropped)  # DeePMD-kit takes it too
            else:
                with pytest.raises(ValueError, match="nonsense"):
                    convert(changed)
            del place["nonsense"]
            if key in named:
                del place[last]
                assert convert(changed).config == converted.config, (name, key)


def test_what_is_dropped_is_listed_with_a_reason():
    converted = convert(content("mt_shared_fitting_case"))
    dropped = dict(converted.dropped)
    assert converted.config["share_layers"] == "all" and "model.shared_dict.shared_fit_with_id" not in dropped
    changed = content("mt_shared_fitting_case")
    changed["model"]["model_dict"]["alloy"]["fitting_net"] = changed["model"]["shared_dict"]["shared_fit_with_id"]
    converted = convert(changed)
    text = dict(converted.dropped)["model.shared_dict.shared_fit_with_id"]
    assert "fitting net shared among branches water, oxide:" in text and "share_layers" not in converted.config
    assert "all frames" in dropped["model.model_dict.water.data_stat_nbatch"] and "training.disp_file" in dropped
    changed = content("mt_separate_fitting")
    del changed["training"]["model_prob"]
    converted = convert(changed)
    assert "number of frames" in dict(converted.dropped)["training.model_prob"]
    assert validate(converted.config).tasks["water"].probability is None
    assert {key for key, _ in convert(content("student")).dropped} == {
        "training.profiling", "training.tensorboard", "training.numb_test"}  # fmt: skip


UNSUPPORTED = {
    "model.descriptor.type": ("se_e2_a", "descriptor is of type 'se_e2_a'; supported"),
    "model.descriptor.repinit.nsel": ("auto", "repinit has nsel 'auto'"),
    "model.descriptor.precision": ("float16", "precision 'float16' is not supported"),
    "model.descriptor.repformer.trainable_ln": (False, "repformer.trainable_ln = False is not supported"),
    "model.fitting_net.type": ("dipole", "fitting net is of type 'dipole'"),
    "model.fitting_net.atom_ener": ([1.0, 2.0], "atom_ener"),
    "model.preset_out_bias": ({"energy": [None, 0]}, "model.preset_out_bias"),
    "model.data_stat_protect": (0.1, "model.data_stat_protect = 0.1"),
    "model.use_srtab": ("table", "use_srtab"),
    "model.spin": ({"use_spin": [True]}, "spin"),
    "loss.type": ("ener_spin", "loss.type = 'ener_spin'"),
    "loss.start_pref_ae": (1.0, "loss.start_pref_ae = 1.0"),
    "loss.enable_atom_ener_coeff": (True, "loss.enable_atom_ener_coeff"),
    "learning_rate.type": ("step", "learning_rate.type = 'step'"),
    "learning_rate.stop_lr_ratio": (0.1, "stop_lr and stop_lr_ratio exclude each other"),
    "learning_rate.start_lr": (None, "learning_rate.start_lr is missing"),
    "optimizer.type": ("LKF", "optimizer.type = 'LKF'"),
    "optimizer.weight_decay": (0.1, "optimizer.weight_decay = 0.1 .*AdamW"),
    "training.numb_epoch": (3, "training.numb_epoch = 3.* Give numb_steps"),
    "training.numb_steps": (None, "training.numb_steps is missing"),
    "training.acc_freq": (4, "training.acc_freq = 4"),
    "training.change_bias_after_training": (True, "training.change_bias_after_training"),
    "training.training_data.batch_size": ([1, 2], r"training.training_data.batch_size = \[1, 2\]"),
    "training.training_data.auto_prob": ("prob_uniform", "training_data.auto_prob = 'prob_uniform'"),
    "training.training_data.sys_weights": ([1.0], "training_data.sys_probs"),
    "training.training_data.min_pair_dist": (0.5, "training_data.min_pair_dist = 0.5"),
    "training.training_data.systems": ("water.hdf5", "water.hdf5 is no folder of npy files"),
}


@pytest.mark.parametrize("key", list(UNSUPPORTED))
def test_what_changes_numbers_is_refused_by_name(key):
    value, message = UNSUPPORTED[key]
    changed = content("single_water")
    *parents, last = key.split(".")
    place = changed
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    with pytest.raises(ValueError, match=message):
        config(changed)


def branch(changed, key, value):
    changed["model"]["model_dict"]["oxide"][key] = value


UNSHARED = {
    "level": (lambda c: branch(c, "descriptor", "dpa2_descriptor:1"), "share one descriptor as a whole"),
    "own": (lambda c: branch(c, "descriptor", c["model"]["shared_dict"]["dpa2_descriptor"]), "share one descriptor"),
    "types": (lambda c: branch(c, "type_map", ["O", "H"]), "oxide.type_map: all branches need the same type_map"),
    "no entry": (lambda c: branch(c, "fitting_net", "nothing"), "fitting_net = 'nothing': model.shared_dict has no"),
    "pairs": (lambda c: branch(c, "pair_exclude_types", [[0, 1]]), "oxide.pair_exclude_types differs"),
    "no probability": (
        lambda c: c["training"]["model_prob"].pop("oxide"),
        "model_prob.oxide: give the probability of every",
    ),
    "no data": (lambda c: c["training"]["data_dict"].pop("oxide"), "data_dict.oxide.training_data.systems is missing"),
    "epochs": (lambda c: c["training"].update(num_epoch_dict={"water": 3}), "training.num_epoch_dict"),
}


@pytest.mark.parametrize("case", list(UNSHARED))
def test_branches_that_cannot_be_one_model_are_refused(case):
    spoil, message = UNSHARED[case]
    changed = content("mt_separate_fitting")
    spoil(changed)
    with pytest.raises(ValueError, match=message):
        config(changed)


def test_settings_for_all_branches_may_stand_beside_them():
    changed = content("mt_separate_fitting")
    changed["model"]["pair_exclude_types"] = [[0, 1]]
    changed["model"]["shared_dict"]["spare"] = {"neuron": [3]}
    converted = convert(changed)
    assert validate(converted.config).model.pair_exclude_types == ((0, 1),)
    assert dict(converted.dropped)["model.shared_dict.spare"] == "no branch refers to it"


def test_the_written_config_works_from_the_present_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "inputs").mkdir()
    source = tmp_path / "inputs" / "input.json"
    source.write_text(json.dumps({**content("single_water"), "_comment": "water"}))
    monkeypatch.chdir(tmp_path)
    assert is_input(source)
    convert_input(Path("inputs/input.json"), Path("config.yaml"))
    text = (tmp_path / "config.yaml").read_text()
    output = capsys.readouterr().out
    for key in ("model.descriptor.seed", "model.fitting_net.seed", "model.data_stat_nbatch", "training.disp_file"):
        assert f"#   {key}: " in text and key in output
    parsed = parse("config.yaml")
    assert parsed.train == ("training/data/water/H128O64",)
    assert parsed.model == config(content("single_water")).model


def test_other_files_are_no_inputs(tmp_path):
    assert not is_input(FIXTURES / "multitask" / "single_water.dp") and not is_input(FIXTURES / "README.md")
    (tmp_path / "other.json").write_text('{"model": {}}')
    assert not is_input(tmp_path / "other.json")
    (tmp_path / "broken.json").write_text('{"model": ')
    assert not is_input(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("model",), 7, "model: expected keys and values, got 7"),
        (("training",), None, "training: expected keys and values, got None"),
        (("model", "type_map"), 7, "model.type_map: expected a list of elements, got 7"),
        (("model", "type_map"), [8, 1], r"model.type_map: expected a list of elements, got \[8, 1\]"),
        (("model", "descriptor", "repinit"), [1], r"model.descriptor.repinit: expected keys and values, got \[1\]"),
        (("model", "fitting_net", "precision"), [], r"model.fitting_net.precision: expected a word, got \[\]"),
        (("learning_rate", "type"), {}, "learning_rate.type: expected a word, got {}"),
        (
            ("training", "training_data", "systems"),
            [1],
            r"training_data.systems: expected a list of folders, got \[1\]",
        ),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_key(keys, value, message):
    changed = content("single_water")
    section = changed
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    with pytest.raises(ValueError, match=message):
        convert(changed)
