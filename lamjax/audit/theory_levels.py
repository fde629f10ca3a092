"""Levels of theory of the labels of a set: one head should not learn two of them unawares."""

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lamjax.frames import Frame, Joined, Subset

KEY = "labelled_by"  # info of a labelled frame
UNKNOWN = ""  # of a frame that does not say


def level_of(frame: Frame) -> str:
    """The name of the labeller in the frame's info; empty without one."""
    return str(frame.info.get(KEY, UNKNOWN))


def levels(frames: Sequence[Frame]) -> Counter[str]:
    """{labeller: number of frames that it has labelled}; of a mapped set only the texts are read."""
    match frames:
        case Joined():
            return sum(map(levels, frames.parts), Counter())
        case Subset(frames=store, rows=rows) if hasattr(store, "info_texts"):
            return Counter(map(_level_in, store.info_texts(rows.tolist())))
        case _ if hasattr(frames, "info_texts"):
            store: Any = frames
            return Counter(map(_level_in, store.info_texts(range(len(frames)))))
    return Counter(map(level_of, frames))


def described(frames: Mapping[str, int]) -> str:
    """ "120 frames by CHGNet, 30 that do not say" """
    named = sorted(frames.items(), key=lambda item: (item[0] == UNKNOWN, -item[1]))
    return ", ".join(
        f"{n} frames that do not say" if level == UNKNOWN else f"{n} frames by {level}" for level, n in named
    )


def check(frames: Mapping[str, int], what: str, allowed: bool) -> None:
    """ValueError if what is learned together was labelled at several levels; a warning if some frames name no level.

    `what` learns it, and `allowed` says that the user knows.
    """
    named = [level for level in frames if level != UNKNOWN]
    if allowed or not named or len(frames) == 1:
        return
    fault = f"{what} would learn labels of several levels of theory: {described(frames)} (info {KEY})."
    if len(named) > 1:
        raise ValueError(
            f"{fault} Their energies lie apart and cannot all be learned by one head: give each its own (tasks, "
            "add_heads), or set mix_levels: true if they are of one level."
        )
    warnings.warn(
        f"{fault} If those that do not say are of another level, give them a head of their own; mix_levels: true ends "
        "this warning.",
        stacklevel=2,
    )


def _level_in(text: bytes) -> str:
    """As `level_of`, of a frame's info as JSON text."""
    return str(json.loads(text).get(KEY, UNKNOWN)) if KEY.encode() in text else UNKNOWN
