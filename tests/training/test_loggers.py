"""Records sent to TensorBoard, Weights & Biases and MLflow; what they do when they fail. Stand-ins for the packages."""

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter

from lamjax import training
from lamjax.distillation import DistillConfig
from lamjax.training import engine, loggers, records
from lamjax.training.config import TrainConfig, differences, validate
from lamjax.training.records import RunRecord
from lamjax.training.structures_config import StructureTuneConfig

NAMES = ("csv", "tensorboard", "wandb", "mlflow")


def loss(params, batch, lr_ratio=1.0):
    """The square distance of one number from another."""
    return (params["x"] - batch) ** 2, {"away": jnp.abs(params["x"] - batch)}


GOAL = training.objective(
    loss, lambda start: itertools.repeat(0.5), measure=lambda params: {"size": float(abs(params["x"]))}, score="size"
)


def begin(output: Path, resume: bool = False, steps: int = 12, **changes) -> engine.Run:
    rate = training.ScheduleConfig("constant", 0.05)
    common = {"print_every": 2, "validate_every": 4, "save_every": 5}
    settings = training.RunConfig(str(output), steps, training.OptimizerConfig("adam"), rate, **common | changes)
    return training.prepare(GOAL, {"x": jnp.array(2.0)}, settings, resume=resume)


class Seen:
    """What the stand-ins were given: {package: [(step, numbers)]}, and how often each was opened and closed."""

    def __init__(self):
        self.sent = {name: [] for name in NAMES[1:]}
        self.opened, self.closed, self.failing = [], [], set()

    def log(self, name: str, step: int, numbers: dict) -> None:
        if name in self.failing:
            raise ConnectionError("no route to host")
        self.sent[name].append((step, dict(numbers)))


def summary_writer(services):
    """The class of tensorboardX that writes."""

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            services.opened.append(("tensorboard", purge_step))

        def add_scalar(self, name, x, step):
            services.log("tensorboard", step, {name: x})

        def flush(self):
            pass

        def close(self):
            services.closed.append("tensorboard")

    return SummaryWriter


def mlflow_client(services):
    """The class of mlflow that writes."""

    class MlflowClient:
        def __init__(self, tracking_uri):
            services.uri, services.params, services.metrics = tracking_uri, {}, []

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "1"

        def create_run(self, experiment, run_name):
            return SimpleNamespace(info=SimpleNamespace(run_id="the run"))

        def update_run(self, run, status):
            services.opened.append(("mlflow", run))

        def log_batch(self, run, metrics=(), params=()):
            services.params |= dict(params)
            assert len(params) <= 100
            if metrics:
                services.log("mlflow", metrics[0][2], {key: x for key, x, _ in metrics})

        def set_terminated(self, run):
            services.closed.append("mlflow")

    return MlflowClient


def wandb_init(services):
    """The function of wandb that begins a run."""

    def init(**options):
        services.opened.append(("wandb", options["id"]))
        services.wandb = options
        if "init" in services.failing:
            raise ConnectionError("no route to host")
        return SimpleNamespace(
            log=lambda numbers, step: services.log("wandb", step, numbers),
            finish=lambda: services.closed.append("wandb"),
        )

    return init


@pytest.fixture
def seen(monkeypatch):
    """The three packages, replaced by what only remembers."""
    services = Seen()
    entities = {"Metric": lambda key, x, time, step: (key, x, step), "Param": lambda key, x: (key, x)}
    for name, content in (
        ("tensorboardX", {"SummaryWriter": summary_writer(services)}),
        ("wandb", {"init": wandb_init(services)}),
        ("mlflow", {"MlflowClient": mlflow_client(services)}),
        ("mlflow.entities", entities),
    ):
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return services


def test_every_logger_gets_the_numbers_of_the_tables(seen, tmp_path):
    training.follow(begin(tmp_path, logger=NAMES))
    history, validation = (records.read(tmp_path / name) for name in (records.HISTORY, records.VALIDATION))
    wanted = {int(row["step"]): float(row["away"]) for row in history}
    measured = {int(row["step"]): float(row["size"]) for row in validation}
    assert sorted(wanted) == [2, 4, 6, 8, 10, 12]
    for name in NAMES[1:]:
        sent = seen.sent[name]
        assert {step: x["train/away"] for step, x in sent if "train/away" in x} == wanted, name
        assert {step: x["validation/size"] for step, x in sent if "validation/size" in x} == measured, name
    assert seen.closed == list(NAMES[1:])
    assert seen.wandb["config"]["steps"] == 12 and seen.params["optimizer.name"] == "adam"
    assert seen.uri == f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"


def test_a_run_that_goes_on_is_the_same_one_to_its_loggers(seen, tmp_path):
    for event in training.events(begin(tmp_path, logger=NAMES)):
        if isinstance(event, engine.Saved):
            break
    training.follow(begin(tmp_path, resume=True, logger=NAMES))
    assert len({name for kind, name in seen.opened if kind == "wandb"}) == 1
    assert [one for one in seen.opened if one[0] == "mlflow"] == [("mlflow", "the run")] * 2
    assert ("tensorboard", 6) in seen.opened  # steps after the state, which is of step 5, are done again
    n = len(seen.opened)
    training.follow(begin(tmp_path, resume=True, logger=NAMES))  # nothing is left to do
    assert len(seen.opened) == n


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_package_that_is_missing_is_told_with_its_extra_before_anything_is_written(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, loggers.PACKAGES[name], None)  # as if it were not installed
    with pytest.raises(ValueError, match=rf'logger: {name} needs .*pip install "lamjax\[{name}\]"'):
        begin(tmp_path / "run", logger=("csv", name))
    assert not (tmp_path / "run").exists()


def test_a_logger_that_cannot_begin_ends_the_run_before_its_first_step(seen, tmp_path):
    seen.failing.add("init")
    with pytest.raises(ValueError, match="logger: wandb cannot begin .*no route.*WANDB_MODE=offline.*out of `logger`"):
        training.follow(begin(tmp_path, logger=NAMES))
    assert seen.closed == ["tensorboard"]  # which had begun
    assert not (tmp_path / records.HISTORY).exists() and not (tmp_path / "states").exists()
    training.follow(begin(tmp_path, logger=("csv",)))  # the folder is free


def test_a_logger_that_fails_later_never_ends_a_run(seen, tmp_path):
    run = begin(tmp_path, logger=NAMES)
    with pytest.warns(UserWarning, match="logger: mlflow has failed .*the run goes on.*no route to host"):
        for event in training.events(run):
            if isinstance(event, RunRecord) and event.step == 6:
                seen.failing.add("mlflow")
    assert [step for step, _ in seen.sent["mlflow"]] == [2, 4, 6]
    assert seen.sent["wandb"][-1][0] == 12 and seen.closed == ["tensorboard", "wandb"]
    assert len(records.read(tmp_path / records.HISTORY)) == 6


def test_loggers_get_finite_numbers_under_names_that_group():
    record = RunRecord(
        3, 1e-3, np.nan, train={"rmse_f:water": 0.5}, validation={"judgement": object(), "in_basin": np.nan, "ok": True}
    )
    assert loggers.numbers(record) == {
        "lr": 1e-3, "train/rmse_f/water": 0.5, "seconds": 0, "structures_per_s": 0, "atoms_per_s": 0, "wait_fraction": 0
    }  # fmt: skip


def test_mlflow_is_given_no_name_that_it_refuses():
    assert loggers._mlflow_name("train/minimiser/mass (norm)") == "train/minimiser/mass _norm_"


CONTENT = {
    TrainConfig: {"train": "a.xyz", "base": "b"},
    StructureTuneConfig: {"pairs": "a.xyz", "base": "b"},
    DistillConfig: {"student": {"base": "b"}, "start": "a.xyz"},
}


@pytest.mark.parametrize("kind", CONTENT)
def test_the_key_is_that_of_every_config_and_may_change_when_a_run_goes_on(kind):
    one, several = (validate(CONTENT[kind] | {"logger": x}, "config", kind) for x in ("wandb", ["csv", "mlflow"]))
    assert one.logger == ("wandb",) and several.logger == ("csv", "mlflow")
    assert differences(one, several) == []
    assert TypeAdapter(kind).validate_json(TypeAdapter(kind).dump_json(several)) == several
    with pytest.raises(ValueError, match="logger.*'neptune' is not supported.*csv, tensorboard, wandb, mlflow"):
        validate(CONTENT[kind] | {"logger": ["neptune"]}, "config", kind)


def test_a_run_goes_on_with_other_loggers(seen, tmp_path):
    training.follow(begin(tmp_path, logger=("csv",)))
    training.follow(begin(tmp_path, resume=True, steps=16, logger=("csv", "wandb")))
    assert [step for step, _ in seen.sent["wandb"]] == [14, 16]
    assert json.loads((tmp_path / loggers.IDS).read_text()).keys() == {"wandb"}
