"""Functions that remember how they were made: they can be pickled, and compare equal where their makings do."""

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any


class Made:
    """A function that a factory made of its arguments: called as it is, pickled as factory and arguments."""

    def __init__(self, function: Callable, factory: Callable, args: tuple, named: tuple, field: str | None) -> None:
        functools.update_wrapper(self, function)
        self._function, self._making = function, (factory, args, named, field)
        try:
            self._hash = hash(self._making)
        except TypeError:  # arguments such as a dict
            self._hash = hash((factory, field))

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._function(*args, **named)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Made) and self._making == other._making)

    def __hash__(self) -> int:
        return self._hash

    @property
    def is_plain(self) -> bool:
        """True if it was made of no other function, which could hold anything."""
        return not any(callable(arg) for arg in self._making[1])

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _made_again, self._making

    def __repr__(self) -> str:
        factory, args, named, field = self._making
        given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in named)])
        return f"{factory.__qualname__}({given})" + ("" if field is None else f".{field}")


def factory(make: Callable) -> Callable:
    """Decorates a function of the module that makes a function, or a NamedTuple of functions: these become `Made`.

    Equal (hashable) arguments give the same object, so that jit does not compile twice.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def wrapped(*args: Any, **named: Any) -> Any:
        given = signature.bind(*args, **named)
        given.apply_defaults()
        key = given.args, tuple(sorted(given.kwargs.items()))
        try:
            hash(key)
        except TypeError:
            return fresh(*key)
        return cached(*key)

    def fresh(args: tuple, named: tuple) -> Any:
        product = make(*args, **dict(named))
        if isinstance(product, FunctionType):
            return Made(product, wrapped, args, named, None)
        made = {
            name: Made(part, wrapped, args, named, name)
            for name, part in product._asdict().items()
            if isinstance(part, FunctionType)
        }
        return product._replace(**made)

    cached = functools.lru_cache(maxsize=128)(fresh)
    return wrapped


def _made_again(factory: Callable, args: tuple, named: tuple, field: str | None) -> Any:
    product = factory(*args, **dict(named))
    return product if field is None else getattr(product, field)
