"""Many structures in flight: what has converged leaves its slot, the next one enters, and the device never waits.

On the host: which structure goes where. What runs on the device is in `slots`, the shapes are chosen in `buckets`.
"""

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax.neighbors.types import round_up
from lamjax.relaxation import buckets
from lamjax.relaxation.adjoints import UntilConverged
from lamjax.relaxation.buckets import HEADROOM, Shape
from lamjax.relaxation.relax import Relaxation, RelaxConfig
from lamjax.relaxation.slots import (
    Programs,
    Report,
    Slots,
    Traveller,
    entry,
    nobody,
    programs,
    relaxation_of,
    stack,
    state_of,
)
from lamjax.system import System

CHUNK = 32  # steps after which the host looks, at most
TRIES = 5  # times that the list of one structure is made wider
IN_FLIGHT = {"cpu": 1024}  # atoms
LIST = {"cpu": 128}  # atoms that the potential sees at once, the largest structure at least
MANY = 16_384  # of both elsewhere
LEAVING = 1 / 8  # of the structures in flight: so many are done before the host is asked for the next ones


class Outcome(NamedTuple):
    """What has become of one structure; numpy, without padding."""

    number: int  # in the sequence that was given
    relaxation: Relaxation | None  # None: it could not begin
    error: str | None = None  # why it could not begin, or failed on the way
    n_widened: int = 0  # times that it went on in wider arrays, with more neighbours


class Job(NamedTuple):
    """A structure that waits or is on its way."""

    number: int
    shape: Shape  # what it needs
    traveller: Traveller | None = None  # None: it has not been read yet
    tries: int = 0


class Work(NamedTuple):
    """What all buckets share."""

    potential: Any
    params: Any
    systems: Sequence[System]
    fixed: Sequence | None
    config: RelaxConfig
    n_slots: int | None
    chunk: int
    like: System | None = None  # what all structures have: frame and atomic parameters, if any


@dataclasses.dataclass
class Bucket:
    """Slots of one shape, who is in them, and who wants to be, sorted by size."""

    shape: Shape
    queue: list[Job]
    programs: Programs
    slots: Slots
    jobs: list[Job | None]  # one a slot

    @property
    def occupied(self) -> int:
        return sum(job is not None for job in self.jobs)


def stream(
    potential,
    params,
    systems: Sequence[System],
    config: RelaxConfig | None = None,
    *,
    fixed: Sequence | None = None,
    slots: int | None = None,
    max_programs: int = 4,
    chunk: int = CHUNK,
) -> Iterator[Outcome]:
    """Every structure relaxed as by `relax`, in the order in which they finish; results are numpy, without padding.

    `systems` may be a sequence that reads its items from files: each is read twice, once to choose at most
    `max_programs` shapes of arrays, which are compiled, and once when it begins. `fixed` has for every structure None
    or a mask of the (n_atoms, 3) components that do not move. `slots` structures are relaxed side by side (default: as
    many as keep the device busy), each with its own time step and end; after at most `chunk` steps the host looks who
    is done. Of the config all but the adjoint counts.

    A structure that cannot be read or relaxed fails alone, with an `error`. One that gains more neighbours than its
    arrays have slots goes on from where it is in wider arrays, which is a further program.
    """
    config = RelaxConfig() if config is None else config
    work = Work(potential, params, systems, fixed, config, slots, chunk)
    waiting: list[Job] = []
    for number in range(len(systems)):
        try:
            system = _read(work, number)
            buckets.check(potential, system, config)
            work = work._replace(like=_checked_like(system, work.like))
            waiting.append(Job(number, buckets.shape(potential, system, config)))
        except Exception as error:  # whatever the reader of a lazy sequence raises concerns this structure alone
            yield Outcome(number, None, _said(error))
    while waiting:
        shapes = buckets.plan([job.shape for job in waiting], max_programs)
        queues: list[list[Job]] = [[] for _ in shapes]
        for job in waiting:
            queues[buckets.assign(job.shape, shapes)].append(job)
        waiting, max_programs = [], 1
        for k, queue in enumerate(queues):
            if queue:
                waiting += yield from _run(work, _bucket(work, shapes[k], queue), shapes[k + 1 :], queues[k + 1 :])


def _run(
    work: Work, bucket: Bucket, shapes: list[Shape], queues: list[list[Job]]
) -> Generator[Outcome, None, list[Job]]:
    """One shape until nobody is left; those that outgrow it go into the queues of later ones, or are returned."""
    done: list[Outcome] = []
    outgrown: list[Job] = []
    while bucket.queue or bucket.occupied:
        yield from _enter(work, bucket)
        report = _advance(work, bucket)
        yield from done  # what is done with the results is done while the device works
        done, report = [], jax.device_get(report)
        for row in _stopped(bucket, report):
            match _leave(work, bucket, report, row):
                case Outcome() as outcome:
                    done.append(outcome)
                case Job() as job if bucket.shape.holds(job.shape):
                    bucket.queue.append(job)
                case job if (place := buckets.assign(job.shape, shapes)) is not None:
                    queues[place].append(job)
                case job:
                    outgrown.append(job)
    yield from done
    return outgrown


def _bucket(work: Work, shape: Shape, queue: list[Job]) -> Bucket:
    """Empty slots of a shape, no more than are wanted. The queue is sorted, so that lists of equal sizes fill up."""
    queue.sort(key=lambda job: job.shape.n_atoms)
    backend, mean = jax.default_backend(), np.mean([job.shape.n_atoms for job in queue])
    n_slots = min(len(queue), work.n_slots or max(1, round(IN_FLIGHT.get(backend, MANY) / mean)))
    largest = sum(job.shape.n_atoms for job in queue[-n_slots:])
    n_flat = round_up(min(largest, max(shape.n_atoms, LIST.get(backend, MANY))))
    # two configs that differ in what the programs do not see share them
    config = dataclasses.replace(work.config, max_steps=0, adjoint=UntilConverged())
    made = programs(work.potential, config, shape.capacities, n_flat)
    nobodies = stack([nobody(work.potential, config, shape, work.like)], n_slots)
    return Bucket(shape, queue, made, made.begin(nobodies), [None] * n_slots)


def _enter(work: Work, bucket: Bucket) -> Iterator[Outcome]:
    """Structures into free slots, the largest first; those that cannot be read again are given up."""
    free, new = [row for row, job in enumerate(bucket.jobs) if job is None], []
    while free and bucket.queue:
        job = bucket.queue.pop()
        try:
            traveller = job.traveller or _first(work, job.number)
            new.append((free[0], entry(work.potential, work.config, bucket.shape, traveller)))
        except Exception as error:  # as in `stream`
            yield Outcome(job.number, None, _said(error))
            continue
        bucket.jobs[free.pop(0)] = job._replace(traveller=traveller)
    n = len(bucket.jobs)
    block = min(n, max(8, n // 8))
    for first in range(0, len(new), block):
        rows, entries = zip(*new[first : first + block], strict=True)
        rows = np.array([*rows, *[n] * (block - len(rows))], np.int32)
        bucket.slots = bucket.programs.enter(bucket.slots, rows, stack(entries, block))


def _advance(work: Work, bucket: Bucket) -> Report:
    """Steps until enough structures have stopped; the device may still be at work when this returns."""
    leaving = max(1, int(LEAVING * len(bucket.jobs)))
    most, keep = np.int32(work.chunk), np.int32(max(0, bucket.occupied - leaving))
    bucket.slots, report = bucket.programs.steps(work.params, bucket.slots, most, keep)
    return report


def _stopped(bucket: Bucket, report: Report) -> list[int]:
    """Slots whose structures take no further steps."""
    return [row for row, job in enumerate(bucket.jobs) if job is not None and not report.running[row]]


def _leave(work: Work, bucket: Bucket, report: Report, row: int) -> Outcome | Job:
    """The slot made free; what became of its structure, or what it needs to go on."""
    job = bucket.jobs[row]
    bucket.jobs[row] = None
    n_atoms = job.traveller.here.n_atoms
    found = relaxation_of(report, row, n_atoms)
    if not found.finite:
        return Outcome(
            job.number, found, f"Energy or forces became infinite or NaN after {int(found.n_steps)} steps.", job.tries
        )
    if not found.overflow:
        return Outcome(job.number, found, None, job.tries)
    if job.tries == TRIES:
        return Outcome(job.number, found, f"Neighbours were missing even after {TRIES} wider lists.", job.tries)
    try:
        room = HEADROOM ** (job.tries + 1)
        shape = buckets.shape(work.potential, found.system, work.config, found.found.tolist(), room)
    except ValueError as error:
        return Outcome(job.number, found, str(error), job.tries)
    traveller = job.traveller._replace(here=found.system, state=state_of(bucket.slots, row, n_atoms))
    return job._replace(shape=shape, traveller=traveller, tries=job.tries + 1)


def _first(work: Work, number: int) -> Traveller:
    """A structure at its start."""
    system = _read(work, number)
    fixed = None if work.fixed is None else work.fixed[number]
    fixed = np.zeros((system.n_atoms, 3), bool) if fixed is None else np.asarray(fixed, bool)
    if fixed.shape != (system.n_atoms, 3):
        raise ValueError(f"fixed has shape {fixed.shape}; expected {(system.n_atoms, 3)}, a flag a component.")
    return Traveller(system, fixed, system)


def _read(work: Work, number: int) -> System:
    return jax.tree.map(np.asarray, work.systems[number])


def _checked_like(system: System, like: System | None) -> System:
    """The first structure; ValueError for one that has other frame or atomic parameters."""
    if like is None:
        return system
    for name in ("fparam", "aparam"):
        mine, first = (None if x is None else x.shape[-1] for x in (getattr(system, name), getattr(like, name)))
        if mine != first:
            raise ValueError(f"{name} has width {mine}, that of the first structure {first}. Give all the same.")
    return like


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
