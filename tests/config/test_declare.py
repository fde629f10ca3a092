"""Configs are checked when they are made, whoever makes them, and say what their fields mean."""

import dataclasses
import pickle
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import Field

from lamjax.arguments import ArgumentError
from lamjax.config import configuration, or_own, to_json, validate


@configuration
class Inner:
    """A part."""

    widths: tuple[Annotated[int, Field(ge=1)], ...] = (2,)


@configuration
class Outer:
    """A whole."""

    kind: Literal["a", "b"]
    rate: Annotated[float, Field(gt=0, lt=1, description="a share of the whole")] = 0.5
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.kind == "b" and self.rate > 0.9:
            raise ValueError(f"rate is {self.rate}: b takes at most 0.9.")


def test_values_have_the_types_of_the_fields():
    config = Outer("a", inner={"widths": [1, 2]})
    assert config == Outer("a", 0.5, Inner((1, 2))) and hash(config) == hash(Outer("a", inner=Inner([1, 2])))
    assert Inner(3).widths == (3,) and Inner(np.int64(3)) == Inner(3) and type(Inner(np.int64(3)).widths[0]) is int
    assert (
        pickle.loads(pickle.dumps(config)) == config == validate({"kind": "a", "inner": {"widths": [1, 2]}}, "", Outer)
    )
    assert dataclasses.replace(config, rate=0.25).rate == 0.25 and '"rate": 0.5' in to_json(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "c"}, "Outer: kind: 'c' is not supported; supported: a, b"),
        ({"kind": "a", "rate": 1.0}, "Outer: rate must be below 1, got 1"),
        ({"kind": "a", "rate": 0}, "Outer: rate must be above 0, got 0"),
        ({"kind": "a", "rate": "fast"}, "Outer: rate: expected a number, got the text 'fast'"),
        ({"kind": "a", "inner": {"widths": [1, 0]}}, "inner.widths.1 must be at least 1, got 0"),
        ({"kind": "a", "innr": 1}, r"Outer: innr: unknown key. Did you mean inner\?"),
        ({}, "Outer: kind: is missing"),
        ({"kind": "b", "rate": 0.95}, "^rate is 0.95: b takes at most 0.9"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(values, message):
    with pytest.raises(ValueError, match=message):
        Outer(**values)
    with pytest.raises(ValueError, match=message.split(": ", 1)[-1].lstrip("^")):
        validate(values, "file", Outer)


def test_an_argument_of_another_kind_is_a_type_error_too():
    with pytest.raises(ArgumentError, match="rate"):
        Outer("a", None)
    with pytest.raises(ArgumentError):
        Outer("a", 0.5, Inner(), 1)


def test_help_documents_every_field():
    assert "A whole." in Outer.__doc__ and "rate: float = 0.5 -- a share of the whole" in Outer.__doc__
    assert "kind: Literal['a', 'b']" in Outer.__doc__


@configuration
class Common:
    """What several configs have."""

    _: dataclasses.KW_ONLY
    seed: Annotated[int, Field(ge=0)] = 0


def needs_run(value) -> None:
    if not hasattr(value, "run"):
        raise TypeError(f"{value!r} has no run.")


@configuration
class Special(Common):
    """One of them."""

    name: str
    how: Annotated[Inner, or_own(needs_run)] = Inner()


class Own:
    """Of the user: not a config of the library."""

    run = None


def test_inherited_fields_are_given_by_name_and_checked():
    assert Special("a", seed=np.int64(3)) == validate({"name": "a", "seed": 3}, "", Special)
    with pytest.raises(ValueError, match="Special: seed must be at least 0, got -1"):
        Special("a", seed=-1)
    with pytest.raises(ArgumentError):
        Special("a", Inner(), 3)


def test_an_object_of_ones_own_is_taken_where_a_config_would_be():
    own = Own()
    assert Special("a", own).how is own and Special("a", {"widths": 3}).how == Inner(3)
    with pytest.raises(TypeError, match="7 has no run"):
        Special("a", 7)
    with pytest.raises(ValueError, match="how.widths.0 must be at least 1"):
        Special("a", {"widths": [0]})
