"""The interface of heads: a function from descriptors to one number per atom."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Head(NamedTuple):
    """Pure functions of a head; made by a factory from a frozen config."""

    config: Any
    init: Callable  # (key, dtype) -> params
    # (params, features (n_atoms, width), types (n_atoms,), fparam=None, aparam=None) -> (n_atoms,) eV
    apply: Callable
