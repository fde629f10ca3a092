"""Rounds of explore, select, label and train. All that a stage finds is on disk before the next one begins."""

import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lamjax import checkpoints
from lamjax.committee import stack_members
from lamjax.data import Frame, from_atoms
from lamjax.distillation import exploration as exploring
from lamjax.distillation import files
from lamjax.distillation.answers import Failed
from lamjax.distillation.config import DistillConfig
from lamjax.distillation.explored import is_usable
from lamjax.distillation.label import Labeller
from lamjax.distillation.labelling import FAILED, append_answers, keep_whole, together
from lamjax.distillation.selection import ASKED, deviations, quantiles, select
from lamjax.distillation.shapes import LastingShapes
from lamjax.distillation.train import Trainer, first_members, measured, unstack
from lamjax.potential import Params, Potential
from lamjax.training.records import RunRecord

NAMED = 5  # reasons that are kept of a kind of failure


class Distillation(NamedTuple):
    """A distillation that is ready to begin, or to go on."""

    config: DistillConfig
    potential: Potential  # of the students
    starts: Sequence[Frame]
    initial: Sequence[Frame]  # labelled
    labeller: Labeller
    trainer: Trainer
    asked: LastingShapes  # of the frames that a committee is asked about

    def folder(self, number: int) -> Path:
        """The folder of a round."""
        return Path(self.config.output) / f"round-{number:03d}"


class Stage(NamedTuple):
    """Progress within a stage of a round: `done` of `total` steps or frames."""

    round: int
    name: str
    done: int
    total: int
    detail: str = ""  # errors of the training step


class Round(NamedTuple):
    """A round is over; its facts are those of its round.json."""

    facts: dict[str, Any]


Events = Generator[Stage | Round, None, Any]


def events(run: Distillation) -> Iterator[Stage | Round]:
    """All rounds up to the first that is enough; rounds and stages that are on disk are taken from there.

    Raises Waiting where labels are to come from files that are not there yet.
    """
    for number in range(run.config.rounds):
        facts = yield from _round(run, number)
        yield Round(facts)
        if facts["enough"]:
            return


def last_members(run: Distillation) -> tuple[int, Params]:
    """The number of the last round that trained, and its members, stacked."""
    n = run.config.members
    trained = [k for k in range(run.config.rounds) if all(files.student(run.folder(k), m).exists() for m in range(n))]
    if not trained:
        raise ValueError(f"{run.config.output} holds no trained students yet.")
    return trained[-1], _members(run, trained[-1])


def frames_of(run: Distillation, use: str, until: int | None = None) -> list[Frame]:
    """The labelled frames of all rounds (up to `until`) for a use: "train" or "fresh"."""
    frames = list(run.initial) if use == "train" else []
    for number in range(run.config.rounds if until is None else until + 1):
        path = run.folder(number) / files.LABELLED
        if path.exists():
            atoms = files.read_frames(path)
            frames += [from_atoms(a, source=f"{path} frame {k}") for k, a in enumerate(atoms) if a.info["use"] == use]
    return frames


def _round(run: Distillation, number: int) -> Events:
    """Run a round, or read its facts if it is complete."""
    folder = run.folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    facts = files.read_facts(folder / files.ROUND)
    if facts.get("finished"):
        return facts
    stacked = _members(run, number - 1) if number else None
    for stage, mark in ((_explore, files.EXPLORED), (_select, files.SELECTED), (_label, files.LABELLED)):
        if not (folder / mark).exists():
            facts |= {"round": number}
            yield from stage(run, number, stacked, facts)
    facts |= _measure(run, number, stacked)
    facts["enough"] = _is_enough(run.config, facts)
    if not facts["enough"]:
        yield from _train(run, number, stacked, facts)
    facts["finished"] = True
    files.write_facts(folder / files.ROUND, facts)
    return facts


def _explore(run: Distillation, number: int, stacked: Params | None, facts: dict[str, Any]) -> Events:
    """explored.extxyz: in round 0 the starts and their perturbations, else what a member finds, each in its turn."""
    config, seed, frames, failures = run.config.explore, _seed(run, number), [], []
    began, dropped = time.monotonic(), 0
    if stacked is None:
        total = len(run.starts)
        walks = exploring.perturb(config, run.starts, seed)
        frames = exploring.beginnings(run.starts)
    else:
        total = exploring.n_walks(config, len(run.starts))
        members = unstack(stacked)
        walks = exploring.explore(config, run.potential, members[number % len(members)], run.starts, seed)
    for done, walk in enumerate(walks, start=1):
        usable = [atoms for atoms in walk.frames if is_usable(atoms)]
        dropped += len(walk.frames) - len(usable)
        frames += usable
        failures += [walk.failure] if walk.failure else []
        yield Stage(number, "explore", done, total, walk.failure or "")
    facts |= {"explored": len(frames), "ended_early": len(failures), "unusable": dropped, "why": failures[:NAMED]}
    _keep(run, number, facts, "explore", began)
    files.write_frames(run.folder(number) / files.EXPLORED, frames)


def _select(run: Distillation, number: int, stacked: Params | None, facts: dict[str, Any]) -> Events:
    """selected.extxyz: frames that the committee does not agree on, and random ones to measure with."""
    folder, config, began = run.folder(number), run.config, time.monotonic()
    frames = files.read_frames(folder / files.EXPLORED)
    yield Stage(number, "select", 0, len(frames))
    if stacked is None:  # no committee yet: all are as good
        deviation = np.full(len(frames), config.trust.lower)
    else:
        packed = run.asked.pack([from_atoms(atoms) for atoms in frames])
        deviation = deviations(run.potential, stacked, packed, ASKED)
        facts |= {"deviation": quantiles(deviation)}
    chosen = select(deviation, config.trust, config.label, _seed(run, number))
    facts |= {"below": chosen.below, "within": chosen.within, "above": chosen.above}
    selected = []
    for use, rows in (("train", chosen.train), ("fresh", chosen.fresh)):
        for k in rows:
            frames[k].info |= {
                "number": len(selected),
                "use": use,
                **({} if stacked is None else {"deviation": float(deviation[k])}),
            }
            selected.append(frames[k])
    _keep(run, number, facts, "select", began)
    files.write_frames(folder / files.SELECTED, selected)
    yield Stage(number, "select", len(frames), len(frames))


def _label(run: Distillation, number: int, stacked: Params | None, facts: dict[str, Any]) -> Events:
    """labelled.extxyz; every answer is appended to labelled.partial as it comes, so that none is asked for twice."""
    folder, began = run.folder(number), time.monotonic()
    frames, partial = files.read_frames(folder / files.SELECTED), folder / files.PARTIAL
    done = keep_whole(partial, "lamjax distill", together(run.labeller))
    with open(partial, "a") as file:
        for answer in append_answers(file, run.labeller, frames[done:], folder):
            done += 1
            yield Stage(number, "label", done, len(frames), answer.reason if isinstance(answer, Failed) else "")
    answers = files.read_frames(partial)
    failures = [str(atoms.info[FAILED]) for atoms in answers if FAILED in atoms.info]
    kept = [atoms for atoms in answers if FAILED not in atoms.info]
    if frames and not kept:
        partial.unlink()
        raise ValueError(f"Round {number}: no frame could be labelled. {failures[0]}")
    facts |= {use: sum(atoms.info["use"] == use for atoms in kept) for use in ("train", "fresh")}
    facts |= {"not_labelled": len(failures), "why_not": failures[:NAMED]}
    _keep(run, number, facts, "label", began)
    files.write_frames(folder / files.LABELLED, kept)
    partial.unlink()


def _measure(run: Distillation, number: int, stacked: Params | None) -> dict[str, Any]:
    """RMSE of the students that explored, on the fresh frames of their round: mean over the members."""
    path = run.folder(number) / files.LABELLED
    fresh = [from_atoms(atoms) for atoms in files.read_frames(path) if atoms.info["use"] == "fresh"]
    if stacked is None or not fresh:
        return {"energy": None, "force": None}
    errors = measured(run.potential, unstack(stacked), fresh, run.asked.pack(fresh), ASKED)
    return {"energy": float(np.mean([e.energy for e in errors])), "force": float(np.mean([e.force for e in errors]))}


def _train(run: Distillation, number: int, stacked: Params | None, facts: dict[str, Any]) -> Events:
    """student-0.lamjax and so on: the members, trained on all that is labelled."""
    folder, config, began = run.folder(number), run.config, time.monotonic()
    frames = frames_of(run, "train", number)
    if not frames:
        raise ValueError(
            f"Round {number}: there is no labelled frame to learn from. Raise label.most, or give `initial`."
        )
    if stacked is None:
        stacked = first_members(config.student, run.potential, config.members, frames, config.seed)
    training = run.trainer.train(stacked, frames, folder)
    while True:
        try:
            event = next(training)
        except StopIteration as end:
            stacked = end.value
            break
        if isinstance(event, RunRecord):
            errors = [1000 * event.train.get(key, np.nan) for key in ("rmse_e", "rmse_f")]
            loss = event.loss / config.members
            numbers = "loss {:.3e}  E {:.3g} meV/atom  F {:.3g} meV/Å".format(loss, *errors)
            yield Stage(number, "train", event.step, config.student.steps, numbers)
    for member, params in enumerate(unstack(stacked)):
        card = {"round": number, "member": member, "frames": len(frames), "seed": config.seed}
        checkpoints.save(files.student(folder, member), run.potential, params, card)
    facts |= {"learned_from": len(frames)}
    _keep(run, number, facts, "train", began)
    files.remove(folder / files.STATES)
    (folder / files.LEARNING).unlink(missing_ok=True)


def _members(run: Distillation, number: int) -> Params:
    """The members that a round has trained, stacked."""
    dtype = np.dtype(run.config.student.precision)
    paths = [files.student(run.folder(number), member) for member in range(run.config.members)]
    return stack_members([checkpoints.load(path, dtype=dtype)[1] for path in paths])


def _is_enough(config: DistillConfig, facts: dict[str, Any]) -> bool:
    """Whether deviation and errors are below the thresholds; never in a round without students or fresh frames."""
    measures = {"deviation": facts.get("deviation", {}).get("95 %"), "force": facts["force"], "energy": facts["energy"]}
    return all(value is not None and value <= getattr(config.enough, name) for name, value in measures.items())


def _keep(run: Distillation, number: int, facts: dict[str, Any], stage: str, began: float) -> None:
    """The facts so far, on disk before the file that says that the stage is over."""
    facts["seconds"] = facts.get("seconds", {}) | {stage: round(time.monotonic() - began, 1)}
    files.write_facts(run.folder(number) / files.ROUND, facts)


def _seed(run: Distillation, number: int) -> int:
    return 100_003 * run.config.seed + number
