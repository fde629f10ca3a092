"""Many structures in flight: what has converged leaves its slot, the next one enters, and the device never waits.

On the host: what is in which batch. What runs on the device is in `slots`, the shapes are chosen in `buckets`. A
processor works on several batches at once, each in a thread of its own, since one program does not keep its cores busy.
"""

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import numpy as np
from jaxtyping import PyTree

from lamjax.neighbors.types import round_up
from lamjax.potential import Potential
from lamjax.relaxation import buckets
from lamjax.relaxation.adjoints import UntilConverged
from lamjax.relaxation.buckets import HEADROOM, Shape
from lamjax.relaxation.relax import Relaxation, RelaxConfig
from lamjax.relaxation.slots import (
    Programs,
    Report,
    Traveller,
    empty_entry,
    entry,
    programs,
    relaxation_of,
    stack,
    state_of,
)
from lamjax.system import PARAMETERS, System, as_jax_casts, as_system, fixed_mask, kept_by_constraints
from lamjax.threads import same_settings, usable_cores

CHUNK = 32  # steps after which the host looks, at most
TRIES = 5  # times that the list of one structure is made wider
IN_FLIGHT = {"cpu": 1024}  # atoms
LIST = {"cpu": 128}  # atoms that the potential sees at once, the largest structure at least
MANY = 16_384  # of both elsewhere
BATCHES = 8  # side by side on a processor, at most
LEAVING = 1 / 8  # of the structures in flight: so many are done before the host is asked for the next ones


class Outcome(NamedTuple):
    """The result of relaxing one structure; numpy, without padding."""

    number: int  # in the sequence that was given
    relaxation: Relaxation | None  # None: it could not begin
    error: str | None = None  # why it could not begin, or failed on the way
    n_widened: int = 0  # times that it went on in wider arrays, with more neighbours


class Job(NamedTuple):
    """A structure that waits or is on its way."""

    number: int
    shape: Shape  # of the arrays that it needs
    traveller: Traveller | None = None  # None: it has not been read yet
    tries: int = 0


class Work(NamedTuple):
    """Potential, parameters and settings that all buckets share."""

    potential: Any
    params: Any
    systems: Sequence[System]
    fixed: Sequence | None
    config: RelaxConfig
    n_slots: int | None
    chunk: int
    like: System | None = None  # a structure with the frame and atomic parameters, if any, that all have


@dataclasses.dataclass(eq=False)
class WaitingBucket:
    """A shape, and the structures that wait to be relaxed in it, sorted by size."""

    shape: Shape
    queue: list[Job]
    programs: Programs
    n_slots: int  # of a batch
    warm: bool = False  # its programs are compiled

    @property
    def waiting(self) -> int:
        """Atoms."""
        return sum(job.shape.n_atoms for job in self.queue)


@dataclasses.dataclass
class ActiveBatch:
    """Slots of a bucket, and the structures in them."""

    bucket: WaitingBucket
    slots: Any  # `Slots`; None: no structure has entered yet
    jobs: list[Job | None]  # one a slot

    @property
    def occupied(self) -> int:
        return sum(job is not None for job in self.jobs)


def stream(
    potential: Potential,
    params: PyTree,
    systems: Iterable[System | ase.Atoms] | System | ase.Atoms,
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
    or a mask of the (n_atoms, 3) components, or of the atoms, that do not move; None is what the constraints of an
    ase.Atoms hold. `slots` structures are relaxed side by side in one batch (default: as many as keep the device
    busy), each with its own time step and end; after at most `chunk` steps the host replaces those that are done. A
    processor has a batch for each of its cores, up to `BATCHES`. Of the config all but the adjoint counts.

    A structure that cannot be read or relaxed fails alone, with an `error`. One that gains more neighbours than its
    arrays have slots continues from where it is in wider arrays, which is a further program.
    """
    config = RelaxConfig() if config is None else config
    systems, fixed = sequences(systems, fixed)
    work = Work(potential, params, systems, fixed, config, slots, chunk)
    waiting: list[Job] = []
    for number in range(len(systems)):
        try:
            system = _read(systems[number])
            buckets.check(potential, system, config)
            work = work._replace(like=_checked_like(system, work.like))
            waiting.append(Job(number, buckets.shape(potential, system, config)))
        except Exception as error:  # whatever the reader of a lazy sequence raises concerns this structure alone
            yield Outcome(number, None, _text_of(error))
    while waiting:
        shapes = buckets.plan([job.shape for job in waiting], max_programs, buckets.program(params))
        queues: list[list[Job]] = [[] for _ in shapes]
        for job in waiting:
            queues[buckets.assign(job.shape, shapes)].append(job)
        n_batches = min(BATCHES, usable_cores()) if jax.default_backend() == "cpu" else 1
        some = [_bucket(work, *both, n_batches) for both in zip(shapes, queues, strict=True) if both[1]]
        waiting, max_programs = (yield from _run(work, some, n_batches)), 1


def _run(work: Work, some: list[WaitingBucket], n_batches: int) -> Generator[Outcome, None, list[Job]]:
    """`n_batches` at a time until none is left in these buckets; those that outgrow them are returned."""
    outgrown: list[Job] = []
    finished: list[Outcome] = []
    turns: dict[Future[list[Outcome | Job]], ActiveBatch] = {}
    shapes, settings = [bucket.shape for bucket in some], same_settings()

    def begin(batch: ActiveBatch) -> None:
        new, failed = _taken(work, batch.bucket, len(batch.jobs) - batch.occupied)
        finished.extend(failed)
        if new or batch.occupied:
            turns[pool.submit(_turn, settings, work, batch, new)] = batch

    with ThreadPoolExecutor(n_batches) as pool:
        while True:
            while len(turns) < n_batches and (bucket := _next(some, [batch.bucket for batch in turns.values()])):
                begin(ActiveBatch(bucket, None, [None] * bucket.n_slots))
            yield from finished  # the caller treats results while the device works
            finished.clear()
            if not turns:
                return outgrown
            for future in wait(turns, return_when=FIRST_COMPLETED).done:
                batch = turns.pop(future)
                for one in future.result():
                    if isinstance(one, Outcome):
                        finished.append(one)
                    else:
                        place = buckets.assign(one.shape, shapes)
                        (outgrown if place is None else some[place].queue).append(one)
                batch.bucket.warm = True
                begin(batch)


def _next(some: list[WaitingBucket], running: list[WaitingBucket]) -> WaitingBucket | None:
    """The bucket with the most waiting atoms for one more batch; none has two before it is compiled."""
    free = [b for b in some if b.queue and (b.warm or b not in running)]
    return max(free, key=lambda b: (-running.count(b), b.waiting), default=None)


def _taken(work: Work, bucket: WaitingBucket, n: int) -> tuple[list[Job], list[Outcome]]:
    """The `n` largest that wait, read; those that cannot be read again are given up."""
    jobs: list[Job] = []
    failed: list[Outcome] = []
    while len(jobs) < n and bucket.queue:
        job = bucket.queue.pop()
        try:
            jobs.append(job._replace(traveller=job.traveller or _first(work, job.number)))
        except Exception as error:  # as in `stream`
            failed.append(Outcome(job.number, None, _text_of(error)))
    return jobs, failed


def _turn(settings, work: Work, batch: ActiveBatch, new: list[Job]) -> list[Outcome | Job]:
    """New structures into free slots, some steps, and those that have stopped out; Jobs of them need wider arrays."""
    with settings():
        failed = _enter(work, batch, new)
        if not batch.occupied:
            return failed
        report = jax.device_get(_advance(work, batch))
        return failed + [_leave(work, batch, report, row) for row in _stopped(batch, report)]


def _bucket(work: Work, shape: Shape, queue: list[Job], n_batches: int) -> WaitingBucket:
    """Slots of a shape, no more than are wanted. The queue is sorted, so that lists of equal sizes fill up."""
    queue.sort(key=lambda job: job.shape.n_atoms)
    backend, mean = jax.default_backend(), np.mean([job.shape.n_atoms for job in queue])
    n_slots = work.n_slots or max(1, round(IN_FLIGHT.get(backend, MANY) / mean))
    n_slots = min(n_slots, -(-len(queue) // n_batches))
    largest = sum(job.shape.n_atoms for job in queue[-n_slots:])
    n_flat = round_up(min(largest, max(shape.n_atoms, LIST.get(backend, MANY))))
    # configs that differ in other settings share programs
    config = dataclasses.replace(work.config, max_steps=0, adjoint=UntilConverged())
    return WaitingBucket(shape, queue, programs(work.potential, config, shape.capacities, n_flat), n_slots)


def _enter(work: Work, batch: ActiveBatch, new: list[Job]) -> list[Outcome | Job]:
    """Structures into free slots; those whose neighbours cannot be found are given up."""
    bucket, free = batch.bucket, [row for row, job in enumerate(batch.jobs) if job is None]
    failed, entries = [], []
    for job in new:
        try:
            entries.append((free[len(entries)], entry(work.potential, work.config, bucket.shape, job.traveller)))
        except Exception as error:  # as in `stream`
            failed.append(Outcome(job.number, None, _text_of(error)))
        else:
            batch.jobs[entries[-1][0]] = job
    n = len(batch.jobs)
    if batch.slots is None:
        empty = empty_entry(work.potential, work.config, bucket.shape, work.like)
        batch.slots = bucket.programs.begin(stack([empty], n))
    block = min(n, max(8, n // 8))
    for first in range(0, len(entries), block):
        rows, chosen = zip(*entries[first : first + block], strict=True)
        rows = np.array([*rows, *[n] * (block - len(rows))], np.int32)
        batch.slots = bucket.programs.enter(batch.slots, rows, stack(chosen, block))
    return failed


def _advance(work: Work, batch: ActiveBatch) -> Report:
    """Steps until enough structures have stopped."""
    leaving = max(1, int(LEAVING * len(batch.jobs)))
    most, keep = np.int32(work.chunk), np.int32(max(0, batch.occupied - leaving))
    batch.slots, report = batch.bucket.programs.steps(work.params, batch.slots, most, keep)
    return report


def _stopped(batch: ActiveBatch, report: Report) -> list[int]:
    """Slots whose structures take no further steps."""
    return [row for row, job in enumerate(batch.jobs) if job is not None and not report.running[row]]


def _leave(work: Work, batch: ActiveBatch, report: Report, row: int) -> Outcome | Job:
    """The slot made free; what became of its structure, or what it needs to go on."""
    job: Any = batch.jobs[row]  # that of a structure
    batch.jobs[row] = None
    n_atoms = job.traveller.system.n_atoms
    relaxation = relaxation_of(report, row, n_atoms)
    if not relaxation.finite:
        return Outcome(
            job.number,
            relaxation,
            f"Energy or forces became infinite or NaN after {int(relaxation.n_steps)} steps.",
            job.tries,
        )
    if not relaxation.overflow:
        return Outcome(job.number, relaxation, None, job.tries)
    if job.tries == TRIES:
        return Outcome(job.number, relaxation, f"Neighbours were missing even after {TRIES} wider lists.", job.tries)
    try:
        room = HEADROOM ** (job.tries + 1)
        shape = buckets.shape(work.potential, relaxation.system, work.config, relaxation.largest_counts.tolist(), room)
    except ValueError as error:
        return Outcome(job.number, relaxation, str(error), job.tries)
    traveller = job.traveller._replace(system=relaxation.system, state=state_of(batch.slots, row, n_atoms, work.config))
    return job._replace(shape=shape, traveller=traveller, tries=job.tries + 1)


def _first(work: Work, number: int) -> Traveller:
    """A structure at its start."""
    structure = work.systems[number]
    system = _read(structure)
    fixed = None if work.fixed is None else work.fixed[number]
    if fixed is None and isinstance(structure, ase.Atoms):
        fixed = kept_by_constraints(structure)
    fixed = np.zeros((system.n_atoms, 3), bool) if fixed is None else np.asarray(fixed_mask(fixed, system.numbers))
    return Traveller(system, fixed, system)


def _read(structure: System | ase.Atoms) -> System:
    return as_jax_casts(jax.tree.map(np.asarray, as_system(structure)))


def sequences(systems, fixed) -> tuple[Sequence, Sequence | None]:
    """Structures and what is fixed in them as sequences; those of an iterator, of a single structure.

    Raises ValueError for another number of the one than of the other.
    """
    if isinstance(systems, System | ase.Atoms):
        systems = [systems]
        fixed = [fixed] if fixed is not None and len(np.shape(fixed)) in (1, 2) else fixed
    if isinstance(systems, str | Path):
        raise TypeError(f"Structures are wanted, got the text {str(systems)!r}. lamjax.data.read reads files.")
    if not (hasattr(systems, "__len__") and hasattr(systems, "__getitem__")):
        systems = list(systems)
    if fixed is not None and len(fixed) != len(systems):
        raise ValueError(f"fixed has {len(fixed)} entries for {len(systems)} structures: give each a mask or None.")
    return systems, fixed


def _checked_like(system: System, like: System | None) -> System:
    """The first structure; ValueError for one that has other frame or atomic parameters."""
    if like is None:
        return system
    for name in PARAMETERS:
        mine, first = (None if x is None else x.shape[-1] for x in (getattr(system, name), getattr(like, name)))
        if mine != first:
            raise ValueError(f"{name} has width {mine}, that of the first structure {first}. Give all the same.")
    return like


def _text_of(error: Exception) -> str:
    return str(error) or type(error).__name__
