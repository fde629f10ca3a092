"""Types of DeePMD-kit are names; those of lamjax are chemical elements, by which a structure gives its atoms."""

from collections.abc import Mapping, Sequence
from typing import Any

from lamjax.data.symbols import ISOTOPES, is_symbol, likely
from lamjax.potential import CheckpointError


def with_elements(tree: Any, type_names: Mapping[str, str] | None = None) -> Any:
    """The tree with every `type_map` as chemical symbols; `type_names` says which element a type of another name is.

    Deuterium and tritium (D, T) are H if nothing else is. Raises CheckpointError for names that say no element, and
    for two types of one element, which atoms of a structure could not be told apart by.
    """
    used: set[str] = set()
    replaced = _replaced(tree, dict(type_names or {}), used)
    if unused := sorted(set(type_names or {}) - used):
        raise CheckpointError(f"elements names the type {', '.join(unused)}, which is not in the model's type map.")
    return replaced


def _replaced(node: Any, type_names: dict[str, str], used: set[str]) -> Any:
    if isinstance(node, dict):
        return {key: _replaced(_value(key, value, type_names, used), type_names, used) for key, value in node.items()}
    return [_replaced(value, type_names, used) for value in node] if isinstance(node, list) else node


def _value(key: Any, value: Any, type_names: dict[str, str], used: set[str]) -> Any:
    if key != "type_map" or not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return value
    used.update(value)
    return _elements(list(value), type_names)


def _elements(names: Sequence[str], type_names: dict[str, str]) -> list[str]:
    """The chemical symbol of every type, all of them different."""
    if wrong := sorted(name for name in type_names if is_symbol(name) and type_names[name] != name):
        raise CheckpointError(f"the type {wrong[0]} is that element already; elements says {type_names[wrong[0]]}.")
    if wrong := sorted(symbol for symbol in type_names.values() if not is_symbol(symbol)):
        raise CheckpointError(f"elements says {wrong[0]!r}, which is no chemical symbol.")
    symbols = [type_names.get(name, ISOTOPES.get(name, name)) for name in names]
    if unknown := [name for name, symbol in zip(names, symbols, strict=True) if not is_symbol(symbol)]:
        guess = {name: likely(name) for name in unknown[:4]}
        raise CheckpointError(
            f"the type map holds {', '.join(unknown[:12])}, which are no chemical symbols. Say which element each is: "
            f"lamjax.load(file, elements={guess}), or once for all commands: lamjax convert FILE model.lamjax "
            f"--types {','.join(f'{name}={symbol}' for name, symbol in guess.items())}"
        )
    for symbol in symbols:
        if len(same := [name for name, other in zip(names, symbols, strict=True) if other == symbol]) > 1:
            raise CheckpointError(
                f"the types {' and '.join(same)} are all {symbol}: a structure names its atoms' elements alone, so "
                f"that it cannot say which of them an atom is. Let an element that your structures lack stand for all "
                f"but one of them, there and in elements={{{same[-1]!r}: 'Og'}} (masses are then wrong)."
            )
    return symbols
