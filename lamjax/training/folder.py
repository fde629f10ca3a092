"""The output folder of a run: config and facts on disk, and checks whether a run may start or resume in it."""

import json
import platform
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lamjax import checkpoints, pytree
from lamjax.potential import Params
from lamjax.reports import outputs
from lamjax.training import loggers
from lamjax.training.checkpoints import saved_steps
from lamjax.training.config import differences, to_json, validate
from lamjax.training.schedules import ScheduleConfig, schedule
from lamjax.training.step import unknown_names

STATES, MODEL, BEST = "states", "model.lamjax", "best.lamjax"
CONFIG, FACTS, REPORT = "config.json", "facts.json", "report.html"
WRITTEN = (CONFIG, FACTS, BEST, MODEL, f"{STATES}/*", *loggers.WRITTEN, REPORT)  # by every run


def check_sources(config: Any, written: Sequence[str], sources: Iterable[str | Path], resume: bool) -> None:
    """ValueError if the run of a config would write over one of these files, of which it was made.

    A run that continues may be started with the config.json that it has written itself.
    """
    own = (CONFIG,) if resume else ()
    outputs.claim_folder(config.output, [name for name in written if name not in own], sources)


def begun(config: Any, resume: bool, accumulate: int = 1) -> list[int]:
    """The steps of the states in the output folder of a config; ValueError unless the run may begin or go on there."""
    output = Path(config.output)
    if output.is_file():
        raise ValueError(f"output: {output} is a file. Name a folder: states, tables and models are written into it.")
    saved = saved_steps(output / STATES)
    if saved and not resume:
        raise ValueError(
            f"{output} holds the states of a run (up to step {saved[-1] // accumulate}). Add --resume to go on, "
            "or choose another output folder."
        )
    if saved:
        check_config(output, config)
    return saved


def write_settings(output: Path, config: Any, data: dict[str, dict[str, Any]], **more: Any) -> None:
    """config.json and facts.json, with `more` facts; `data` is what `check_data` will compare."""
    output.mkdir(parents=True, exist_ok=True)
    checkpoints.write_atomically(output / CONFIG, to_json(config).encode())
    facts = {**environment(), "data": data, **more}
    checkpoints.write_atomically(output / FACTS, json.dumps(facts, indent=1, ensure_ascii=False).encode())


def environment() -> dict[str, Any]:
    """The `versions` of what numbers depend on, and the `devices`."""
    packages = ("lamjax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "flax", "ase")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "devices": sorted(f"{d.platform} {d.device_kind}" for d in jax.devices()),
    }


def check_names(config: Any, params: Any) -> None:
    """ValueError for parts to freeze or to scale that the model does not have."""
    for key, names in (("freeze", config.freeze), ("rates", tuple(config.rates))):
        if unknown := unknown_names(params, names):
            raise ValueError(f"{key}: no parameter is called {', '.join(unknown)}. Known: {', '.join(_parts(params))}.")


def _parts(params: Params) -> list[str]:
    """The first names in the paths of the parameters."""
    names = [pytree.path_name(path).split("/") for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return sorted({"/".join(name[:2]) for name in names})


def check_config(output: Path, config: Any) -> None:
    """ValueError naming what differs from the config that the run began with; of the length `check_length` judges."""
    old = begun_with(output, config)
    changed = [] if old is None else differences(old, config)
    if [one for one in changed if not one.startswith(f"{length_key(config)}: ")]:
        raise ValueError(
            f"{output} was begun with another config: {'; '.join(changed)}. An exact continuation needs the same. "
            f"Change them back, or begin a new run in another output folder with `base: {output / MODEL}`."
        )


def length_key(config: Any) -> str:
    """The key of a config that says how long the run is."""
    return "epochs" if hasattr(config, "epochs") else "steps"


def check_length(config: Any, schedule_config: ScheduleConfig, n_steps: int, done: int) -> None:
    """ValueError if a run of now `n_steps` would have taken the steps that are done in another way from its beginning.

    That is if the learning rate was another one in any of them, because it was begun with another length.
    """
    output, key = Path(config.output), length_key(config)
    old = getattr(begun_with(output, config) or config, key)
    now = getattr(config, key)
    if old == now:
        return
    changed = f"{output} was begun with another config: {key}: {old} -> {now}"
    if n_steps < done:
        raise ValueError(f"{changed}, but {done} steps are done already. Give a larger number.")
    steps = np.arange(done)
    was, would_be = (np.asarray(schedule(schedule_config, n)(steps)) for n in (old * n_steps // now, n_steps))
    if other := np.flatnonzero(was != would_be).tolist():
        k = other[0]
        raise ValueError(
            f"{changed}. It cannot go on to the new length, since the learning rate falls towards the end of a run "
            f"(schedule.type {schedule_config.type}): it would have been {would_be[k]:.3g} in step {k + 1}, which was "
            f"done with {was[k]:.3g}. Train on in another output folder, with `base: {output / MODEL}`. Runs that can "
            "be lengthened are those whose rate does not depend on their end: schedule.type constant, exp with "
            "decay_rate, or wsd before its decay begins."
        )


def begun_with(output: Path, config: Any) -> Any:
    """The config that the last part of the run had; None if it is not known."""
    file = output / CONFIG
    return validate(json.loads(file.read_text()), str(file), type(config)) if file.is_file() else None


def check_data(output: Path, new: dict[str, dict[str, Any]]) -> None:
    """ValueError naming what of the data is not as it was when the run began; a warning if little is known of that."""
    file = output / FACTS
    if not file.is_file():
        return
    old = json.loads(file.read_text())["data"]
    changed = [f"{name or 'the run'}: {what}" for name in new for what in _changes(old.get(name, {}), new[name])]
    if changed:
        raise ValueError(
            f"{output} was begun with other data ({'; '.join(changed)}). An exact continuation needs the same files, "
            "with their frames in the same order. Put them back, or begin a new run in another output folder with "
            f"`base: {output / MODEL}`."
        )
    if any("digests" in one and "digests" not in old.get(name, {}) for name, one in new.items()):
        warnings.warn(
            f"{file} was written by an older lamjax, which kept numbers of frames and sums alone: whether labels, "
            "positions and order are those of the run's beginning is not known. From now on it will be.",
            stacklevel=3,
        )


def _changes(old: dict[str, Any], new: dict[str, Any], above: str = "") -> list[str]:
    """Differences such as "train: 10 -> 12 frames" or "the forces of train"; keys that only one has are left out."""
    changes: list[str] = []
    for key, value in new.items():
        if isinstance(value, dict):
            changes += _changes(old.get(key, {}), value, key)
        elif old and key in old and old[key] != value:
            changes.append(f"other {key} ({above})" if isinstance(value, str) else f"{key} {old[key]} -> {value}")
    return changes
