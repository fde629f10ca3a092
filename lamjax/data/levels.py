"""Who labelled the frames of a set: labels of two levels of theory are not to be learned by one head unawares."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from lamjax.data.frames import Frame, Joined, Subset
from lamjax.data.store import Store

KEY = "labelled_by"  # info of a labelled frame
UNKNOWN = ""  # of a frame that does not say


def level_of(frame: Frame) -> str:
    """Who labelled the frame; empty if it does not say."""
    return str(frame.info.get(KEY, UNKNOWN))


def levels(frames: Sequence[Frame]) -> Counter[str]:
    """How many frames each labeller has labelled; of a mapped set only the texts are read."""
    match frames:
        case Store():
            return _stored(frames, range(len(frames)))
        case Subset(frames=Store() as whole, rows=rows):
            return _stored(whole, rows.tolist())
        case Joined():
            return sum(map(levels, frames.parts), Counter())
    return Counter(map(level_of, frames))


def described(found: Mapping[str, int]) -> str:
    """ "120 frames by CHGNet, 30 that do not say" """
    named = sorted(found.items(), key=lambda item: (item[0] == UNKNOWN, -item[1]))
    return ", ".join(f"{n} frames that do not say" if who == UNKNOWN else f"{n} frames by {who}" for who, n in named)


def _stored(store: Store, rows: Sequence[int]) -> Counter[str]:
    """As `level_of` of every row, from the texts alone."""
    texts, ends = store.arrays["info"], store.arrays["info_offsets"]
    if not len(texts):
        return Counter({UNKNOWN: len(rows)} if len(rows) else {})
    found: Counter[str] = Counter()
    for k in rows:
        text = texts[ends[k] : ends[k + 1]].tobytes()
        found[str(json.loads(text).get(KEY, UNKNOWN)) if KEY.encode() in text else UNKNOWN] += 1
    return found
