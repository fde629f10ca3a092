"""A set of structures labelled into a file: one that is killed goes on, and ends as if it had not been."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import ase
import numpy as np
from jax.typing import DTypeLike

from lamjax import data
from lamjax.data import Frame, from_atoms, records, write_store
from lamjax.data.store import SUFFIXES, is_store
from lamjax.distillation import files
from lamjax.distillation.answers import Failed
from lamjax.distillation.label import Labeller, PotentialLabeller
from lamjax.distillation.labelling import FAILED, append_answers, keep_whole, together
from lamjax.system import to_ase

WRITER = "lamjax label"
PIECE = 256  # structures that are held as ASE's at a time
KILLED = "left out: the process was killed while this structure was labelled"


class Step(NamedTuple):
    """One more frame has been dealt with: labelled, or failed for a `reason`."""

    done: int
    total: int
    reason: str | None  # why it has no label


class Written(NamedTuple):
    """A set is labelled and written."""

    n_frames: int  # with labels
    n_stress: int  # with a stress as well
    n_periodic: int  # that could have one
    failures: Counter[str]  # how many frames have no label, by reason
    failed: Path | None  # the file of these frames


def read_structures(paths: Sequence[str | Path]) -> tuple[Sequence[Frame], list[str]]:
    """The structures of files, labelled or not, and what is wrong with those that cannot be used."""
    wrong: list[str] = []

    def one(path: Path) -> Sequence[Frame]:
        if is_store(path):
            return data.open_frames(path)
        return list(data.iterate(path, on_error=lambda error: wrong.append(str(error))))

    return data.join([one(Path(path)) for path in paths]), wrong


def label_set(
    labeller: Labeller,
    frames: Sequence[Frame],
    out: Path,
    resume: bool = False,
    skip: bool = False,
    dtype: DTypeLike | None = np.float64,
) -> Iterator[Step | Written]:
    """Label every frame into a store (.h5) or an extxyz file, in their order; who labelled is in each frame's info.

    A frame that gets no label is written to OUT.failed.extxyz with the reason. Answers are kept in OUT.partial until
    the set is whole; with `resume` those of an earlier run are taken up, and the result is the same to the last bit.
    With `skip` the frame that the earlier run was killed in gets no label: a calculator may end the whole process.
    Raises ValueError for an output that exists, a partial one without `resume`, or one of other frames or labels.
    """
    done = _begin(labeller, frames, out, resume)
    piece = max(PIECE // together(labeller), 1) * together(labeller)
    if isinstance(labeller, PotentialLabeller):
        labeller.cover(frames)
    with open(files.partial(out), "a") as file:
        if skip and done < len(frames):
            _leave_out(file, labeller, frames[done])
            done += 1
            yield Step(done, len(frames), KILLED)
        while done < len(frames):
            stop = min((done // piece + 1) * piece, len(frames))
            part = [as_written(frames[k]) for k in range(done, stop)]
            for answer in append_answers(file, labeller, part, out.parent):
                done += 1
                yield Step(done, len(frames), answer.reason if isinstance(answer, Failed) else None)
    yield _finish(frames, out, dtype)


def as_written(frame: Frame) -> ase.Atoms:
    """The structure with the digits that extxyz keeps, which are those that are labelled, and without old labels."""
    import ase.io

    atoms = to_ase(frame.system)
    kept = {key: value for key, value in records.plain_info(frame.info).items() if key != FAILED}
    atoms.info |= {"source": frame.source} | kept
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return ase.io.read(io.StringIO(text.getvalue()), format="extxyz")


def _begin(labeller: Labeller, frames: Sequence[Frame], out: Path, resume: bool) -> int:
    """The number of frames that are labelled already; ValueError where the run may not begin or be resumed."""
    if not len(frames):
        raise ValueError("There are no structures to label.")
    partial, settings = files.partial(out), _settings(labeller, frames)
    facts = files.read_facts(files.partial_facts(out))
    if facts and not resume:
        raise ValueError(
            f"{partial} holds the labels of a run that was not finished. Go on with --resume, choose another output, "
            f"or remove {partial} and {files.partial_facts(out)}."
        )
    if changed := [f"{k}: {facts.get(k)} -> {v}" for k, v in settings.items() if facts and facts.get(k) != v]:
        raise ValueError(
            f"{partial} was begun with other structures or another labeller ({'; '.join(changed)}). Give those again "
            "to go on, or choose another output."
        )
    done = keep_whole(partial, WRITER, together(labeller)) if facts else 0
    if out.exists() and not (facts and done == len(frames)):  # else it was killed when all was written
        raise ValueError(f"{out} exists: it would be lost. Choose another output, or remove it.")
    if not facts:
        partial.unlink(missing_ok=True)  # of a run that was killed before its settings were written
        files.write_facts(files.partial_facts(out), settings)
    return done


def _leave_out(file: TextIO, labeller: Labeller, frame: Frame) -> None:
    if together(labeller) > 1:
        raise ValueError(
            "Only a calculator's frame can be left out: a potential labels many at once, and ends on none."
        )
    atoms = as_written(frame)
    atoms.info[FAILED] = KILLED
    records.append(file, atoms)


def _settings(labeller: Labeller, frames: Sequence[Frame]) -> dict[str, Any]:
    """The settings that must not change when a run is resumed."""
    digest = hashlib.sha256()
    for k in range(len(frames)):
        system = frames[k].system
        for array in (system.numbers, system.positions, system.cell, system.pbc):
            digest.update(np.ascontiguousarray(array).tobytes())
    settings = {
        "labeller": str(getattr(labeller, "level", None)),
        "frames": len(frames),
        "structures": digest.hexdigest(),
    }
    if isinstance(labeller, PotentialLabeller):
        settings |= {"precision": labeller.shapes.dtype.name, "batch_size": labeller.batch_size}
    return settings


def _finish(frames: Sequence[Frame], out: Path, dtype: DTypeLike | None) -> Written:
    """The labelled frames in the output and the others beside it; then the partial file goes."""
    partial, failed = files.partial(out), out.with_name(f"{out.name}.failed.extxyz")
    answers = list(_failures(partial))
    failures = Counter(reason for reason in answers if reason is not None)
    if len(failures) and not any(reason is None for reason in answers):
        raise ValueError(
            f"No frame could be labelled: {failures.most_common(1)[0][0].rstrip('.')}. The reasons are in {partial}; "
            f"remove it and {files.partial_facts(out)} to begin anew."
        )
    if failures:
        files_of = (atoms for atoms, reason in zip(_records(partial), answers, strict=True) if reason is not None)
        records.write(failed, files_of)
    counted = Counter(_facts_of(partial))
    if out.suffix in SUFFIXES:
        write_store(out, _labelled(frames, partial), dtype)
    else:
        records.write(out, (atoms for atoms in _records(partial) if FAILED not in atoms.info))
    partial.unlink()
    files.partial_facts(out).unlink()
    return Written(counted["labelled"], counted["stress"], counted["periodic"], failures, failed if failures else None)


def _failures(partial: Path) -> Iterator[str | None]:
    """Why each frame has no label; None if it has."""
    for info, _ in records.whole_records(partial, WRITER):
        yield str(info[FAILED]) if FAILED in info else None


def _facts_of(partial: Path) -> Iterator[str]:
    """ "labelled" of every frame that is, and "stress" or "periodic" if it has one or could have one."""
    for info, _ in records.whole_records(partial, WRITER):
        if FAILED not in info:
            yield from (
                ["labelled"] + ["stress"] * ("stress" in info) + ["periodic"] * bool(np.all(info.get("pbc", False)))
            )


def _records(partial: Path) -> Iterator[ase.Atoms]:
    import ase.io

    return ase.io.iread(partial, ":", format="extxyz")


def _labelled(frames: Sequence[Frame], partial: Path) -> Iterator[Frame]:
    for k, atoms in enumerate(_records(partial)):
        if FAILED not in atoms.info:
            yield from_atoms(atoms, source=data.source(frames, k))
