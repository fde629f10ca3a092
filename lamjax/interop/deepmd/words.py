"""Values of a file as words of a message: never longer than a line."""

import reprlib
from typing import Any

import numpy as np

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 6
_SHORT.maxlevel = 2


def short(value: Any) -> str:
    """A value as text: arrays by their shape, nested dicts by their keys, long ones shortened."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}"
    if isinstance(value, dict) and any(isinstance(v, dict | list | np.ndarray) for v in value.values()):
        return f"entries {_SHORT.repr(sorted(map(str, value)))}"
    if isinstance(value, list | tuple) and any(isinstance(v, dict | np.ndarray) for v in value):
        return f"a list of {len(value)} entries"
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
