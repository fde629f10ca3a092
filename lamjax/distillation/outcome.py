"""Results of a distillation: the student in a file, its errors, speed and size beside the teacher's."""

import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax import checkpoints, edit, pytree
from lamjax.data import Frame
from lamjax.distillation import files
from lamjax.distillation.config import TeacherConfig
from lamjax.distillation.label import FileLabeller, PotentialLabeller
from lamjax.distillation.rounds import ASKED, Distillation, frames_of, last_members
from lamjax.distillation.shapes import LastingShapes
from lamjax.distillation.train import Errors, measured, unstack
from lamjax.numerics import compiler_options
from lamjax.potential import Params, Potential, allocate, predict
from lamjax.reports import plots
from lamjax.system import System

STUDENT, TABLE, PLOT = "student.lamjax", "student-tabulated.lamjax", "rounds.png"
RESULT = "result.json"  # the final table
SECONDS = 0.5  # for which a model is timed
LEAST = 200  # atoms of the structure on which it is timed, if a periodic start can be repeated


class Model(NamedTuple):
    """Errors, speed and size of a model, a line of the final table; None where unknown."""

    name: str
    errors: Errors | None  # on all fresh frames; None for the labeller itself
    microseconds: float | None  # per atom, energy and forces
    parameters: int | None = None
    megabytes: float | None = None  # of the file


def finish(run: Distillation) -> list[Model]:
    """The best member of the last committee as student.lamjax, and with its radial net as a table, which is faster.

    Returned are the lines of the final table, which result.json keeps. Best is the least force RMSE on the fresh
    frames of all rounds, which no round has learned from.
    """
    number, stacked = last_members(run)
    members, fresh = unstack(stacked), frames_of(run, "fresh")
    errors = measured(run.potential, members, fresh, run.asked.pack(fresh), ASKED) if fresh else []
    best = int(np.argmin([e.force for e in errors])) if errors else 0
    output = Path(run.config.output)
    card = {"round": number, "member": best, "labelled": len(frames_of(run, "train")), "seed": run.config.seed}
    checkpoints.save(output / STUDENT, run.potential, members[best], card)
    system = _timed_on(run.starts)
    lines = [_line(STUDENT, (run.potential, members[best]), errors[best] if errors else None, system, output / STUDENT)]
    try:
        table = edit.tabulate(run.potential, members[best])
    except ValueError as error:  # a net that splines do not follow
        lines.append(Model(f"no table: {error}", None, None))
    else:
        checkpoints.save(output / TABLE, *table, card)
        lines.append(_line(TABLE, table, _errors(run, table, fresh), system, output / TABLE))
    lines.append(_labeller(run, system))
    plain = [line._asdict() | {"errors": line.errors and line.errors._asdict()} for line in lines]
    checkpoints.write_atomically(output / RESULT, (json.dumps(plain, indent=1) + "\n").encode())
    return lines


def write_plot(run: Distillation, rounds: Sequence[dict[str, Any]]) -> Path | None:
    """Deviation and errors over the rounds; nothing before the first round with students."""
    rows = [facts for facts in rounds if facts.get("deviation")]
    if not rows:
        return None
    numbers = [facts["round"] for facts in rows]

    def line(quantity: Any) -> tuple[list[Any], list[float]]:
        values = [quantity(facts) for facts in rows]
        return numbers, [np.nan if value is None else value for value in values]

    trust, enough = run.config.trust, run.config.enough
    asked, force, energy = (
        "largest force deviation (eV/Å)",
        "force RMSE on fresh frames (meV/Å)",
        "energy RMSE on fresh frames (meV/atom)",
    )
    panels = {
        asked: {
            "median": line(lambda facts: facts["deviation"]["50 %"]),
            "95 % of the frames": line(lambda facts: facts["deviation"]["95 %"]),
        },
        force: {"students": line(lambda facts: _milli(facts["force"]))},
        energy: {"students": line(lambda facts: _milli(facts["energy"]))},
    }
    levels = {
        asked: {"trusted": trust.lower, "not labelled": trust.upper, "enough": enough.deviation},
        force: {"enough": 1000 * enough.force},
        energy: {"enough": 1000 * enough.energy},
    }
    path = Path(run.config.output) / PLOT
    plots.learning_curve(path, panels, f"Distillation, round 0 to {numbers[-1]}", "round", levels)
    return path


def _milli(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def _is_file(name: str) -> bool:
    return not checkpoints.is_function(name)


def _errors(run: Distillation, model: tuple[Potential, Params], fresh: Sequence[Frame]) -> Errors | None:
    if not fresh:
        return None
    shapes = LastingShapes(model[0].shells, 1, ASKED, run.config.student.precision)
    return measured(model[0], [model[1]], fresh, shapes.pack(fresh), ASKED)[0]


def _line(name: str, model: tuple[Potential, Params], errors: Errors | None, system: System, path: Path) -> Model:
    size = path.stat().st_size / 1e6
    return Model(name, errors, _microseconds(*model, system), pytree.n_parameters(model[1]), size)


def _labeller(run: Distillation, system: System) -> Model:
    """The teacher in the same terms; of another labeller the time that its labels took."""
    match run.labeller, run.config.labeller:
        case PotentialLabeller(potential=potential, params=params), TeacherConfig(model=name) if _is_file(name):
            return _line("teacher", (potential, params), None, system, checkpoints.locate(name))
        case PotentialLabeller(potential=potential, params=params), _:
            return Model("teacher", None, _microseconds(potential, params, system), pytree.n_parameters(params))
    atoms = seconds = 0.0
    for number in range(run.config.rounds):
        if (path := run.folder(number) / files.LABELLED).exists():
            atoms += sum(map(len, files.read_frames(path)))
            seconds += files.read_facts(path.with_name(files.ROUND))["seconds"]["label"]
    known = atoms and not isinstance(run.labeller, FileLabeller)
    return Model("labels", None, 1e6 * seconds / atoms if known else None)


def _timed_on(starts: Sequence[Frame]) -> System:
    """The largest start, repeated to at least so many atoms if it is periodic."""
    system = max((frame.system for frame in starts), key=lambda system: system.n_atoms)
    while system.pbc.any() and system.n_atoms < LEAST:
        lengths = np.where(system.pbc, np.linalg.norm(system.cell, axis=1), np.inf)
        system = _doubled(system, int(np.argmin(lengths)))
    return system


def _doubled(system: System, axis: int) -> System:
    """Two copies side by side along a lattice vector."""
    cell = system.cell.copy()
    positions = np.concatenate([system.positions, system.positions + cell[axis]])
    cell[axis] = 2 * cell[axis]
    twice = None if system.aparam is None else np.concatenate([system.aparam] * 2)
    return system._replace(positions=positions, numbers=np.tile(system.numbers, 2), cell=cell, aparam=twice)


def _microseconds(potential: Potential, params: Params, system: System) -> float:
    """Time per atom of energy, forces and virial: the best of several calls, without compilation."""
    run = jax.jit(functools.partial(predict, potential), compiler_options=compiler_options())
    arguments = jax.device_put(
        (params, pytree.cast(system, jax.tree.leaves(params)[0].dtype), allocate(potential, system))
    )
    jax.block_until_ready(run(*arguments))
    times, end = [], time.monotonic() + SECONDS
    while len(times) < 3 or time.monotonic() < end:
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - began)
    return 1e6 * min(times) / system.n_atoms
