"""Every config of the library is declared and checked in the same way, those that it holds too."""

import dataclasses
import importlib
import math
import pkgutil
from typing import Annotated, get_args, get_origin, get_type_hints

import annotated_types
import pytest

import lamjax
from lamjax.interop.jax_md import EnergyFnConfig
from lamjax.relaxation import DimerConfig, FireConfig, NebConfig, RelaxConfig


def _classes() -> list[type]:
    """The dataclasses that modules of lamjax define."""
    modules = [m.name for m in pkgutil.walk_packages(lamjax.__path__, "lamjax.") if not m.name.endswith("__main__")]
    classes = {}
    for module in map(importlib.import_module, modules):
        for kind in vars(module).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__:
                classes[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return [classes[name] for name in sorted(classes)]


CLASSES = _classes()
CONFIGS = [kind for kind in CLASSES if hasattr(kind, "__pydantic_fields__")]


def nested(hint) -> list[type]:
    """The configs that a field of this type may hold, outside containers."""
    if get_origin(hint) in (tuple, dict):
        return []
    own = [hint] if hint in CONFIGS else []
    return own + [kind for part in get_args(hint) if isinstance(part, type) or get_args(part) for kind in nested(part)]


HOLDERS = [
    (kind, name, inner)
    for kind in CONFIGS
    for name, hint in get_type_hints(kind, include_extras=True).items()
    for inner in nested(hint)[:1]
]


def out_of_range(kind: type) -> dict | None:
    """Keys of a config, one of which is below its least value; None where no field has one."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        for bound in (bound for note in notes for bound in getattr(note, "metadata", ())):
            if isinstance(bound, annotated_types.Ge | annotated_types.Gt):
                return {name: getattr(bound, "ge", getattr(bound, "gt", 0)) - 1}
    return None


def test_what_is_called_a_config_is_checked():
    unchecked = [kind for kind in CLASSES if kind.__name__.endswith(("Config", "Options")) and kind not in CONFIGS]
    assert not unchecked and len(CONFIGS) > 50 and len(HOLDERS) > 20
    assert {NebConfig, DimerConfig, RelaxConfig} <= {kind for kind, _, _ in HOLDERS}


@pytest.mark.parametrize(("kind", "name", "inner"), HOLDERS, ids=lambda x: getattr(x, "__name__", x))
def test_a_config_refuses_by_name_what_its_own_configs_refuse(kind, name, inner):
    tag = {"type": inner.type} if hasattr(inner, "type") else {}
    for keys in (None, {"no_such_key": 1}, out_of_range(inner) or {"no_such_key": None}):
        with pytest.raises(ValueError) as error:
            kind(**{name: object() if keys is None else tag | keys})
        lines = str(error.value).removeprefix(f"{kind.__name__}: ").splitlines()
        assert any(line.startswith(name) and all(key in line for key in keys or ()) for line in lines), lines


@pytest.mark.parametrize("kind", [NebConfig, DimerConfig, RelaxConfig])
@pytest.mark.parametrize("value", ["fire", 3, None, FireConfig, EnergyFnConfig(min, 1.0)])
def test_a_minimiser_of_another_kind_is_refused_by_name(kind, value):
    with pytest.raises(TypeError, match=f"{kind.__name__}: minimiser: A minimiser is a FireConfig, LBFGSConfig"):
        kind(minimiser=value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_are_finite_as_json_has_no_others(value):
    with pytest.raises(ValueError, match="RelaxConfig: skin: expected a finite number"):
        RelaxConfig(skin=value)
    with pytest.raises(ValueError, match="NebConfig: minimiser.FireConfig.dt_max: expected a finite number"):
        NebConfig(minimiser={"type": "fire", "dt_max": value})


@pytest.mark.parametrize("wrong", [{"alpha_start": -0.1}, {"alpha_start": 1.1}, {"f_alpha": 0}, {"f_alpha": 1.01}])
def test_shares_of_fire_lie_between_0_and_1(wrong):
    with pytest.raises(ValueError, match=f"FireConfig: {next(iter(wrong))} must be"):
        FireConfig(**wrong)


def test_an_energy_function_is_checked_as_other_configs_are():
    assert EnergyFnConfig(min, 5).cutoff == 5.0 and EnergyFnConfig(min, 5, ["Si"]).elements == ("Si",)
    for wrong, message in (
        ((3, 5.0), "energy_fn: expected a function, got 3"),
        ((min, 0), "cutoff must be above 0, got 0"),
        ((min, 5.0, None, None, "coo"), "format: 'coo' is not supported; supported: sparse, dense"),
    ):
        with pytest.raises(ValueError, match=f"EnergyFnConfig: {message}"):
            EnergyFnConfig(*wrong)
