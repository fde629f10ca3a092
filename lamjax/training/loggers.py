"""Loggers of a run beside its own tables: TensorBoard, Weights & Biases, MLflow."""

import contextlib
import importlib
import json
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lamjax.config.files import flat
from lamjax.files import write_atomically
from lamjax.training.records import RunRecord

LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}  # csv: the tables of every run
IDS = "loggers.json"  # under which a run that continues is known to wandb and mlflow
WRITTEN = (IDS, *(f"{name}/*" for name in PACKAGES))
REMEDIES = {
    "tensorboard": "Make its folder writable",
    "wandb": "Log in once (`wandb login`), or set WANDB_MODE=offline, which keeps the numbers in the folder of the run "
    "until `wandb sync` sends them",
    "mlflow": "Set MLFLOW_TRACKING_URI to a server that answers, or to nothing: the numbers then go to the folder of "
    "the run",
}


class Logger(NamedTuple):
    """A place for the numbers of a run. What it raises ends it, never the run."""

    log: Callable[[int, Mapping[str, float]], None]  # a step, and numbers by name
    close: Callable[[], None]


class Begun(NamedTuple):
    """The run that a logger is made for."""

    folder: Path
    settings: Mapping[str, Any]  # its config as plain data
    done: int  # steps before its first one
    name: str | None  # under which the logger knew it before it was interrupted


def check(names: Sequence[str]) -> None:
    """Raise ValueError, with what to install, for a logger whose package cannot be imported."""
    for name in names:
        if name not in PACKAGES:
            continue
        try:
            importlib.import_module(PACKAGES[name])
        except Exception as error:  # an installation may be broken in any way
            raise ValueError(
                f'logger: {name} needs {PACKAGES[name]}: pip install "lamjax[{name}]", or take {name} out of '
                f"`logger`. ({type(error).__name__}: {error})"
            ) from error


@contextlib.contextmanager
def writing(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], done: int
) -> Iterator[Callable[[RunRecord], None]]:
    """A function that sends a record to each of these loggers; they are closed at the end.

    Raises ValueError if one of them cannot begin. One that fails later is left out from then on, with a warning.
    """
    check(names)
    opened: dict[str, Logger] = {}

    def attempt(name: str, act: Callable, *arguments: Any) -> None:
        try:
            act(*arguments)
        except Exception as error:  # networks and servers fail in any way; the tables of the run have every number
            opened.pop(name, None)
            warnings.warn(
                f"logger: {name} has failed and is left out from now on; the run goes on, and its tables have every "
                f"number. ({type(error).__name__}: {error})",
                stacklevel=2,
            )

    def send(record: RunRecord) -> None:
        values = numbers(record)
        for name, logger in list(opened.items()):
            attempt(name, logger.log, record.step, values)

    try:
        _open(opened, [name for name in dict.fromkeys(names) if name in PACKAGES], folder, settings, done)
        yield send
    finally:
        for name, logger in list(opened.items()):
            attempt(name, logger.close)


def numbers(record: RunRecord) -> dict[str, float]:
    """The finite numbers of a record by name: "loss", "train/rmse_f", in a run with tasks "validation/rmse_e/TASK"."""
    values: dict[str, Any] = {"lr": record.learning_rate, "loss": record.loss, "grad_norm": record.grad_norm}
    values |= {"seconds": record.seconds, "structures_per_s": record.structures, "atoms_per_s": record.atoms}
    values |= {"wait_fraction": record.wait}
    for split, errors in (("train", record.train), ("validation", record.validation)):
        values |= {f"{split}/{name.replace(':', '/')}": x for name, x in errors.items()}
    return {name: float(x) for name, x in values.items() if _is_number(x) and np.isfinite(x)}


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.number) and not isinstance(x, bool)


def _open(
    opened: dict[str, Logger], names: Sequence[str], folder: Path, settings: Mapping[str, Any], done: int
) -> None:
    """Each logger, into `opened`; of a run that continues under the name that it had."""
    path = folder / IDS
    ids = json.loads(path.read_text()) if done and path.is_file() else {}
    for name in names:
        try:
            opened[name], ids[name] = OPENERS[name](Begun(folder, settings, done, ids.get(name)))
        except Exception as error:  # no network, no account, no server, another version
            raise ValueError(
                f"logger: {name} cannot begin ({type(error).__name__}: {error}). {REMEDIES[name]}, or take {name} out "
                "of `logger`."
            ) from error
    if any(ids.values()):
        write_atomically(path, json.dumps({name: one for name, one in ids.items() if one}).encode())


def _tensorboard(run: Begun) -> tuple[Logger, None]:
    """Event files in FOLDER/tensorboard; steps that are done again take the place of the old ones."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.done + 1 if run.done else None)

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, x in values.items():
            writer.add_scalar(name, x, step)
        writer.flush()

    return Logger(log, writer.close), None


def _wandb(run: Begun) -> tuple[Logger, str]:
    """A run of Weights & Biases; WANDB_MODE, WANDB_PROJECT and its other variables are respected."""
    import wandb

    name = run.name or uuid.uuid4().hex[:12]
    project = os.environ.get("WANDB_PROJECT", "lamjax")
    session = wandb.init(
        project=project, name=str(run.folder), id=name, resume="allow", dir=str(run.folder), config=dict(run.settings)
    )
    return Logger(lambda step, numbers: session.log(dict(numbers), step=step), session.finish), name


def _mlflow(run: Begun) -> tuple[Logger, str]:
    """A run of MLflow at MLFLOW_TRACKING_URI, without it in FOLDER/mlflow; MLFLOW_EXPERIMENT_NAME is respected."""
    import mlflow
    from mlflow.entities import Metric, Param

    (run.folder / "mlflow").mkdir(exist_ok=True)
    place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run.folder / 'mlflow' / 'mlflow.db').resolve()}"
    client = mlflow.MlflowClient(tracking_uri=place)
    name = run.name
    if name is None:
        kind = os.environ.get("MLFLOW_EXPERIMENT_NAME", "lamjax")
        known = client.get_experiment_by_name(kind)
        experiment = client.create_experiment(kind) if known is None else known.experiment_id
        name = client.create_run(experiment, run_name=str(run.folder)).info.run_id
        params = [Param(_mlflow_name(key), str(x)[:500]) for key, x in flat(run.settings).items()]
        for k in range(0, len(params), 100):  # its limit
            client.log_batch(name, params=params[k : k + 100])
    client.update_run(name, status="RUNNING")

    def log(step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        client.log_batch(name, metrics=[Metric(_mlflow_name(key), x, now, step) for key, x in values.items()])

    return Logger(log, lambda: client.set_terminated(name)), name


def _mlflow_name(name: str) -> str:
    """The name with no character that MLflow refuses."""
    return re.sub(r"[^\w\-. :/]", "_", name)


OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
