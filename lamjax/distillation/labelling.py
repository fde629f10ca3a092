"""Frames labelled one after another: each answer is on disk before the next is asked for, and none is lost."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import ase

from lamjax.audit import theory_levels as levels
from lamjax.data import records
from lamjax.distillation.answers import Failed
from lamjax.distillation.label import Labeller
from lamjax.files import cut

FAILED = "failed"  # info of a frame that has no label: why


def append_answers(
    file: TextIO, labeller: Labeller, frames: Sequence[ase.Atoms], folder: Path
) -> Iterator[ase.Atoms | Failed]:
    """Label the frames one by one and append each to a file, with the labeller's name or the reason of a failure."""
    level = getattr(labeller, "level", None)
    for atoms, answer in zip(frames, labeller.label(frames, folder), strict=True):
        record = atoms.copy() if isinstance(answer, Failed) else answer
        if isinstance(answer, Failed):
            record.info[FAILED] = records.one_line(answer.reason)
        elif level:
            record.info[levels.KEY] = level
        records.append(file, record)
        yield answer


def keep_whole(partial: Path, writer: str, together: int = 1) -> int:
    """The number of answers in a file, which is first cut to whole records and to a multiple of `together`."""
    if not partial.exists():
        return 0
    n = kept = end = 0
    for _, place in records.whole_records(partial, writer):
        n += 1
        if n % together == 0:
            kept, end = n, place
    cut(partial, end)
    return kept


def together(labeller: Labeller) -> int:
    """The number of frames that are evaluated together, and whose labels depend on it in the last digits."""
    return getattr(labeller, "together", 1)
