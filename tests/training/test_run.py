"""A run from a config file: what it prints, writes, resumes and refuses."""

import csv
import dataclasses
import json

import ase.build
import ase.io
import jax
import numpy as np
import pytest
import typer
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from pydantic import TypeAdapter
from typer.testing import CliRunner

from lamjax import Calculator, checkpoints, data
from lamjax.cli.data import check
from lamjax.cli.evaluate import evaluate
from lamjax.cli.train import line, train
from lamjax.evaluation.errors import predictions
from lamjax.training import engine, labels, restore_state, saved_steps
from lamjax.training.config import TEMPLATE, TrainConfig, parse, read, to_json

CONFIG = """
model:
  elements: [Cu, No]     # No is an element, not false
  descriptor:
    repinit: {rcut: 3.0, nsel: 16, neuron: [2, 4], axis_neuron: 2, tebd_dim: 2}
    repformer: {rcut: 2.8, nsel: 16, nlayers: 1, g1_dim: 4, g2_dim: 2, axis_neuron: 2, update_g1_has_attn: false,
                update_g2_has_attn: false, update_g2_has_g1g1: false}
  heads: [[Default, {neuron: [4, 4]}]]
loss: {start_pref_v: 0.1, limit_pref_v: 0.1}
schedule: {start_lr: 1e-2, stop_lr: 1e-3, decay_steps: 2}
steps: 8
batch_size: 3
max_programs: 1
print_every: 2
validate_every: 4
save_every: 4
precision: float64
"""


def app() -> typer.Typer:
    result = typer.Typer()
    for name, command in (("train", train), ("eval", evaluate), ("check", check)):
        result.command(name)(command)
    return result


def invoke(*arguments):
    return CliRunner().invoke(app(), [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Copper frames labelled by EMT, and a config."""
    folder = tmp_path_factory.mktemp("run")
    frames = []
    for seed in range(9):
        atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(folder / "train.extxyz", frames[:7])
    ase.io.write(folder / "held_out.extxyz", frames[7:])
    paths = f"train: [{folder / 'train.extxyz'}]\nvalidation: [{folder / 'held_out.extxyz'}]\n"
    (folder / "config.yaml").write_text(CONFIG + paths + f"output: {folder / 'whole'}\n")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run."""
    result = invoke("train", folder / "config.yaml")
    assert result.exit_code == 0, result.output
    return folder / "whole"


def rows(output):
    with (output / "lcurve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_curve_states_config_and_model(whole):
    assert saved_steps(whole / "states") == [4, 8]
    curve = rows(whole)
    assert [int(row["step"]) for row in curve] == [2, 4, 6, 8]
    assert [bool(row["rmse_f_validation"]) for row in curve] == [False, True, False, True]
    assert all(float(row[f"rmse_{k}_train"]) > 0 for row in curve for k in "efv")
    config = TypeAdapter(TrainConfig).validate_json((whole / "config.json").read_text())
    assert config.schedule.start_lr == 1e-2 and config.model.elements == ("Cu", "No") and config.seed == 0
    potential, params = checkpoints.load(whole / "model.lamjax")
    assert potential.elements == ("Cu", "No")
    statistics = params.descriptor["repinit"]["statistics"]
    assert float(statistics["stddev"][0, 0]) != 1 and float(statistics["stddev"][1, 0]) == 0.1


def test_an_interrupted_run_goes_on_bit_for_bit(folder, whole, tmp_path):
    config = parse(folder / "config.yaml", [f"output={tmp_path / 'part'}"])
    for event in engine.events(labels.prepare(config)):
        if isinstance(event, engine.Saved):
            break
    assert saved_steps(tmp_path / "part" / "states") == [4]
    with pytest.raises(ValueError, match=r"holds the states of a run \(up to step 4\). Add --resume"):
        labels.prepare(config)
    events = list(engine.events(labels.prepare(config, resume=True)))
    assert [e.step for e in events if isinstance(e, engine.RunRecord)] == [6, 8]
    one, other = (checkpoints.read(path / "model.lamjax").params for path in (whole, tmp_path / "part"))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
    drop = ("seconds", "structures_per_s", "atoms_per_s", "wait_fraction")
    a, b = ([{k: v for k, v in row.items() if k not in drop} for row in rows(p)] for p in (whole, tmp_path / "part"))
    assert [row["step"] for row in b] == ["2", "4", "6", "8"]
    assert a == b


def test_a_run_says_what_it_does(folder, whole, tmp_path):
    # a finished run that is resumed has nothing left to do but say so
    result = invoke("train", folder / "config.yaml", "--resume")
    assert result.exit_code == 0, result.output
    for text in ("jax ", "float64", "parameters", "programs", "padding", "8 of 8 done", "saved"):
        assert text in result.output


def test_progress_lines():
    errors = {"rmse_e": 0.0123, "rmse_f": 0.25, "mae_e": 0.0}
    record = engine.RunRecord(10, 1e-3, 2.0, 3.0, errors, {"rmse_f": 0.5, "rmse_s": 1e-3}, 60.0, 3725.0, 12.34, 456.7)
    text = line(record, 100)
    assert text == (
        "step 10/100  lr 1.00e-03  loss 2.000e+00  train E 12.3 meV/atom F 250 meV/Å  validation F 500 meV/Å "
        "S 1 meV/Å³  12.3 structures/s 457 atoms/s  left 1:02:05"
    )
    assert "program 1: 3 x 4 atoms, 16/8 neighbours" in line(
        engine.Compiled(1, "3 x 4 atoms, 16/8 neighbours", 2.5), 100
    )


def test_eval_measures_and_writes_predictions(folder, whole, tmp_path):
    model, frames = whole / "model.lamjax", folder / "held_out.extxyz"
    out = tmp_path / "predicted.extxyz"
    result = invoke("eval", model, frames, "--precision", "float64", "--out", out)
    assert result.exit_code == 0, result.output
    for text in ("energy", "shifted", "force", "virial", "MAE", "RMSE"):
        assert text in result.output
    predicted, labels = ase.io.read(out, ":"), ase.io.read(frames, ":")
    differences = np.concatenate([np.ravel(a.get_forces() - a.arrays["REF_forces"]) for a in predicted])
    last = float(rows(whole)[-1]["rmse_f_validation"])
    np.testing.assert_allclose(np.sqrt(np.mean(differences**2)), last, rtol=1e-5)
    for a, b in zip(predicted, labels, strict=True):
        np.testing.assert_allclose(a.info["REF_energy"], b.get_potential_energy(), rtol=1e-9)
        virial = np.reshape(a.info["REF_virial"], (3, 3))
        np.testing.assert_allclose(virial, -b.get_volume() * b.get_stress(voigt=False), atol=1e-6)
    result = invoke("eval", model, frames, "--precision", "float64", "--out", tmp_path / "predicted.npz")
    assert result.exit_code == 0
    stored = dict(np.load(tmp_path / "predicted.npz"))
    np.testing.assert_allclose(stored["energy"][1], predicted[1].get_potential_energy(), rtol=1e-9)
    assert "must be float32 or float64" in str(invoke("eval", model, frames, "--precision", "half").exception)
    refused = str(invoke("eval", model, frames, "--out", "a.pdf").exception)
    assert "must end in .npz, .extxyz or .extxyz.gz: predictions are written in no other" in refused


def test_fine_tuning_keeps_the_weights_and_refits_the_bias(folder, whole, tmp_path):
    base = f"base={whole / 'model.lamjax'}"
    config = parse(folder / "config.yaml", ["model=null", base, f"output={tmp_path}", "bias=change"])
    run = labels.prepare(config)
    _, params = checkpoints.load(whole / "model.lamjax")
    for ours, theirs in ((run.state.params.descriptor, params.descriptor),):
        assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    (task,) = run.data.tasks
    predicted = predictions(run.potential, run.state.params, task.train, 3)
    left = [float(p.energy) - float(f.labels.energy) for p, f in zip(predicted, task.frames, strict=True)]
    np.testing.assert_allclose(np.mean(left), 0, atol=1e-9)  # one composition: the mean is what a bias can mend
    kept = labels.prepare(parse(folder / "config.yaml", ["model=null", base, f"output={tmp_path}", "bias=keep"]))
    bias, old = (p.heads["Default"]["statistics"]["out_bias"] for p in (kept.state.params, params))
    np.testing.assert_array_equal(bias, old)


def test_the_template_is_a_config_with_the_defaults(tmp_path):
    result = invoke("train", "--template")
    assert result.output == TEMPLATE
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    config = parse(tmp_path / "template.yaml")
    plain = TrainConfig(train=config.train, model=config.model)
    assert config == plain
    assert {field.name for field in dataclasses.fields(TrainConfig)} <= set(
        TEMPLATE.replace("# ", "").replace(":", " ").split()
    )


def test_set_changes_nested_keys(folder):
    changed = parse(folder / "config.yaml", ["schedule.start_lr=5e-3", "optimizer.name=adamw", "train=[a, b]"])
    assert changed.schedule.start_lr == 5e-3 and changed.optimizer.name == "adamw" and changed.train == ("a", "b")
    assert json.loads(to_json(changed))["schedule"]["start_lr"] == 5e-3


WRONG = {
    "stepps: 3": r"stepps: unknown key. Did you mean steps\?",
    "optimizer: {nam: adam}": r"optimizer.nam: unknown key. Did you mean name\?",
    "schedule: {xyz: 1}": "schedule.xyz: unknown key. Known keys: decay_phase_ratio, .*warmup_steps",
    "tasks: {a: {train: [x], vlidation: [y]}}": r"tasks.a.vlidation: unknown key. Did you mean validation\?",
    "accumulate: 0": "accumulate must be at least 1",
    "hold_out: 1.5": "hold_out must be below 1, got 1.5",
    "ema_decay: 1.0": "ema_decay must be below 1",
    "share_layers: most": "share_layers",
    "add_heads: {a: mean}": "`add_heads` adds heads to a `base`",
    "loss: {start_pref_x: 1}": "loss.start_pref_x",
    "steps: many": "steps: ",
    "steps: 0": "steps must be at least 1",
    "base: model.dp": "either `model` .* or `base`",
    "model: {elements: [Cu, Xx], descriptor: {}}": "distinct chemical symbols",
    "schedule: {stop_lr: 1.0}": "0 < stop_lr <= start_lr",
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_wrong_configs_name_the_key(folder, tmp_path, wrong):
    key = wrong.partition(":")[0]
    lines = (folder / "config.yaml").read_text()
    start = lines.find(f"\n{key}:") + 1
    if start:  # replace what is there, up to the next key
        ends = (lines.find(f"\n{k}", start) for k in ("loss:", "steps:", "schedule:", "batch"))
        end = min(i for i in ends if i > 0)
        lines = lines[:start] + lines[end + 1 :]
    (tmp_path / "wrong.yaml").write_text(lines + wrong + "\n")
    with pytest.raises(ValueError, match=f"(?s)wrong.yaml: the config is not valid.*{WRONG[wrong]}"):
        parse(tmp_path / "wrong.yaml")


def test_the_schema_knows_every_key_and_the_template_fits_it():
    content = json.loads(invoke("train", "--schema").output)
    assert {field.name for field in dataclasses.fields(TrainConfig)} == content["properties"].keys()
    assert content["additionalProperties"] is False
    assert content["$defs"]["ScheduleConfig"]["properties"]["type"]["enum"] == ["exp", "cosine", "wsd", "constant"]


def test_a_run_goes_on_only_with_the_same_config_and_data(folder, whole, tmp_path):
    def resume(*changes):
        return labels.prepare(parse(folder / "config.yaml", changes), resume=True)

    with pytest.raises(ValueError, match=r"another config: loss.limit_pref_f: 1.0 -> 2.0; steps: 8 -> 9"):
        resume("loss.limit_pref_f=2.0", "steps=9")
    assert resume("print_every=1", "keep=7").done == 8
    frames = ase.io.read(folder / "train.extxyz", ":")
    ase.io.write(tmp_path / "train.extxyz", frames[1:])
    (tmp_path / "whole").symlink_to(whole)
    content = (folder / "config.yaml").read_text().replace(str(folder / "train"), str(tmp_path / "train"))
    (tmp_path / "config.yaml").write_text(content)
    stored = json.loads((whole / "config.json").read_text()) | {"train": [str(tmp_path / "train.extxyz")]}
    kept = (whole / "config.json").read_text()
    try:
        (whole / "config.json").write_text(json.dumps(stored))
        with pytest.raises(ValueError, match=r"was begun with other data \(the run: train 7 -> 6; .*other structures"):
            labels.prepare(parse(tmp_path / "config.yaml"), resume=True)
    finally:
        (whole / "config.json").write_text(kept)


def turned(atoms):
    """Other forces, the same energy."""
    results = {**atoms.calc.results, "forces": -atoms.calc.results["forces"]}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


CHANGED = {
    "forces turned": ("train", lambda frames: [*frames[:-1], turned(frames[-1])], r"other forces \(training\)"),
    "another order": ("train", lambda frames: [*frames[1:], frames[0]], r"other structures \(training\)"),
    "held out": ("held_out", lambda frames: frames[::-1], r"other energies \(held out\)"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_run_goes_on_with_the_very_same_frames_only(folder, whole, name):
    """The same numbers of frames and sums of energies are not enough."""
    file, change, fault = CHANGED[name]
    path, config = folder / f"{file}.extxyz", parse(folder / "config.yaml")
    kept, facts = path.read_bytes(), json.loads((whole / "facts.json").read_text())
    try:
        ase.io.write(path, change(ase.io.read(path, ":")))
        with pytest.raises(ValueError, match=f"begun with other data .*{fault}.* new run in another output folder"):
            labels.prepare(config, resume=True)
        if name == "forces turned":  # a run of a version that did not look at forces goes on, and that is said
            old = {"": {key: value for key, value in facts["data"][""].items() if key != "digests"}}
            (whole / "facts.json").write_text(json.dumps(facts | {"data": old}))
            with pytest.warns(UserWarning, match="facts.json was written by an older lamjax"):
                assert labels.prepare(config, resume=True).done == 8
    finally:
        path.write_bytes(kept)
        (whole / "facts.json").write_text(json.dumps(facts))


def test_validation_is_of_the_running_mean(folder, tmp_path):
    """The errors of the curve are those of the model that is saved, as ASE's calculator has it."""
    small = "{type: dpa1, rcut: 3.0, sel: 16, neuron: [2, 4], axis_neuron: 2, tebd_dim: 2}"
    changes = [f"model.descriptor={small}", "ema_decay=0.9", "steps=3", "validate_every=3", "plots=false"]
    run = labels.prepare(parse(folder / "config.yaml", [*changes, f"output={tmp_path / 'mean'}"]))
    *_, record = (event for event in engine.events(run) if isinstance(event, engine.RunRecord))
    mean = checkpoints.load(tmp_path / "mean" / "model.lamjax", dtype=np.float64)
    last = restore_state(tmp_path / "mean" / "states", run.state).params

    def errors(potential, params):
        differences = {"e": [], "f": []}
        for atoms in ase.io.read(folder / "held_out.extxyz", ":"):
            free = atoms.copy()
            free.calc = Calculator((potential, params))
            differences["e"].append((free.get_potential_energy() - atoms.get_potential_energy()) / len(atoms))
            differences["f"].append(free.get_forces() - atoms.get_forces())
        return {f"rmse_{kind}": np.sqrt(np.mean(np.square(x))) for kind, x in differences.items()}

    averaged, raw = errors(*mean), errors(mean[0], last)
    for kind, value in averaged.items():
        assert record.validation[kind] == pytest.approx(value, rel=1e-6)
        assert abs(raw[kind] - value) > 1e-3 * value  # else nothing would be tested


def test_a_run_is_lengthened_where_its_rate_does_not_depend_on_its_end(folder, whole, tmp_path):
    with pytest.raises(ValueError, match=r"steps: 8 -> 9.*exp\): it would have been .* in step 3, .*`base: .*constant"):
        labels.prepare(parse(folder / "config.yaml", ["steps=9"]), resume=True)
    schedule = ["schedule={type: wsd, start_lr: 1e-2, stop_lr: 1e-3, decay_phase_ratio: 0.25}"]
    small = "{type: dpa1, rcut: 3.0, sel: 16, neuron: [2, 4], axis_neuron: 2, tebd_dim: 2}"
    common = [*schedule, f"model.descriptor={small}", "save_every=2", "validate_every=2", "plots=false"]

    def config(name, steps):
        return parse(folder / "config.yaml", [*common, f"output={tmp_path / name}", f"steps={steps}"])

    list(engine.events(labels.prepare(config("whole", 8))))
    for event in engine.events(labels.prepare(config("grown", 4))):
        if isinstance(event, engine.Saved):
            break  # after two steps, one before the rate falls
    grown = labels.prepare(config("grown", 8), resume=True)
    assert (grown.done, grown.data.planned) == (2, 4)
    list(engine.events(grown))
    one, other = (checkpoints.read(tmp_path / name / "model.lamjax").params for name in ("whole", "grown"))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
    assert labels.prepare(config("grown", 8), resume=True).data.planned == 4
    with pytest.raises(ValueError, match="steps: 8 -> 9.*wsd.*in step 8"):
        labels.prepare(config("grown", 9), resume=True)
    with pytest.raises(ValueError, match="steps: 8 -> 7, but 8 steps are done"):
        labels.prepare(config("grown", 7), resume=True)


def test_a_run_leaves_pictures_and_facts(whole):
    for name in ("parity.png", "curve.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    facts = json.loads((whole / "facts.json").read_text())
    assert facts["versions"].keys() >= {"python", "lamjax", "jax"} and facts["data"][""]["train"] == 7


def test_the_best_model_is_kept_and_a_run_without_progress_ends(folder, tmp_path):
    # so high a rate that the validation gets worse
    changes = [
        f"output={tmp_path / 'early'}",
        "schedule.start_lr=1.0",
        "schedule.stop_lr=1.0",
        "steps=40",
        "plots=false",
    ]
    config = parse(folder / "config.yaml", [*changes, "validate_every=2", "patience=2", "ema_decay=0.5"])
    events = list(engine.events(labels.prepare(config)))
    (stopped,) = [event for event in events if isinstance(event, engine.Stopped)]
    measured = {e.step: e.validation["rmse_f"] for e in events if isinstance(e, engine.RunRecord) and e.validation}
    assert stopped.step < 40 and stopped.best == min(measured.values()) == measured[stopped.best_step]
    assert stopped.step == stopped.best_step + 4
    assert checkpoints.read(tmp_path / "early" / "best.lamjax").card["steps"] == stopped.best_step
    assert "no better validation than" in line(stopped, 40)
    again = list(engine.events(labels.prepare(config, resume=True)))  # it knows that it is over
    assert [type(event) for event in again] == [engine.Saved]


def test_tensorboard_is_an_extra(folder, tmp_path):
    config = parse(folder / "config.yaml", [f"output={tmp_path}", "tensorboard=true"])
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r'needs tensorboardX: pip install "lamjax\[tensorboard\]"'):
            labels.prepare(config)
    else:
        next(engine.events(labels.prepare(config)))
        assert list((tmp_path / "tensorboard").glob("events*"))


def test_frames_are_held_out_by_seed(folder, tmp_path):
    def held_out(*changes):
        config = parse(folder / "config.yaml", ["validation=[]", "hold_out=0.3", f"output={tmp_path}", *changes])
        (task,) = labels.prepare(config).data.tasks
        assert (len(task.frames), len(task.held_out)) == (5, 2)
        return [frame.source for frame in task.held_out]

    assert held_out() == held_out() != held_out("seed=1")


def test_a_run_on_a_packed_set_equals_that_on_its_files(folder, whole, tmp_path):
    data.write_store(tmp_path / "train.h5", data.read(folder / "train.extxyz"))
    config = parse(
        folder / "config.yaml", [f"train=[{tmp_path / 'train.h5'}]", f"output={tmp_path / 'packed'}", "plots=false"]
    )
    list(engine.events(labels.prepare(config)))
    one, other = (checkpoints.read(path / "model.lamjax").params for path in (whole, tmp_path / "packed"))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_files_that_are_no_configs(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="--template"):
        parse(tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="expected keys and values"):
        parse(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1, 2\n")
    with pytest.raises(ValueError, match="not a valid YAML file"):
        parse(tmp_path / "broken.yaml")
    with pytest.raises(ValueError, match="--set takes key=value"):
        parse(folder / "config.yaml", ["steps"])
    with pytest.raises(ValueError, match="steps is not a group of keys"):
        parse(folder / "config.yaml", ["steps.many=3"])


def test_numbers_and_elements_of_yaml_are_what_they_look_like(tmp_path):
    """YAML 1.1 has words for 1e-3 (no point) and for the element No (false)."""
    for text, number in (("1e-3", 1e-3), ("-2E+4", -2e4), (".5e1", 5.0), ("1.0e-3", 1e-3), ("3", 3), ("0.25", 0.25)):
        (tmp_path / "one.yaml").write_text(f"options: {{eps: {text}}}\n")
        value = read(tmp_path / "one.yaml")["options"]["eps"]
        assert value == number and type(value) is type(number)
    (tmp_path / "one.yaml").write_text("elements: [No, N, Y, On, true, no]\n")
    assert read(tmp_path / "one.yaml")["elements"] == ["No", "N", "Y", "On", True, "no"]


def test_prepare_names_what_is_wrong(folder, tmp_path):
    def prepare(*changes):
        return labels.prepare(parse(folder / "config.yaml", [f"output={tmp_path}", *changes]))

    with pytest.raises(ValueError, match="freeze: no parameter is called descripto. Known: .*descriptor/repinit"):
        prepare("freeze=[descripto]")
    ase.io.write(tmp_path / "bare.extxyz", ase.build.bulk("Cu"))
    with pytest.raises(ValueError, match="bare.extxyz frame 0: the frame has no energy, forces or stress label"):
        prepare(f"train=[{tmp_path / 'bare.extxyz'}]")
    with pytest.raises(ValueError, match="element Cu is not in the model's type map"):
        prepare("model.elements=[Ag]")


def test_check_prints_a_table(folder, whole):
    result = invoke("check", folder / "train.extxyz", "--model", whole / "model.lamjax")
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.replace("│", " ").split())
    for text in ("frames 7", "energy: energy (7)", "forces: forces (7)", "stress (7)", "with virial 7", "Cu(7)"):
        assert text in output, output
