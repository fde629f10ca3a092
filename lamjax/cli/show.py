"""`lamjax show`: what a model file holds."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import numpy as np
import typer

from lamjax import checkpoints, nn, pytree
from lamjax.checkpoints import Stored
from lamjax.cli.options import Model
from lamjax.evaluation.errors import seen_elements
from lamjax.imported import FactoryConfig, potential_of
from lamjax.potential import build
from lamjax.reports import console, table

MOST = 30  # parameters that are listed
ENTRIES = 8  # numbers of one fact of a card that are shown


def show(
    model: Model,
    head: Annotated[
        str | None, typer.Option(help="Read only this head, where heads do not share a descriptor.")
    ] = None,
) -> None:
    """Print what a model file holds: heads, elements, descriptor settings, parameters, precision, card."""
    stored = checkpoints.read(model, head)
    if head is not None and head not in stored.config.head_names:
        raise ValueError(f"{model} has no head {head!r}; it has {', '.join(stored.config.head_names)}.")
    if isinstance(stored.config, FactoryConfig):
        console.print(table(str(model), ("what", "value"), _facts_of_factory(stored)))
        _print_card(stored)
        return
    console.print(table(str(model), ("what", "value"), _summary(stored)))
    console.print(table("Heads", ("head", "parameters", "net", "inputs", "elements with an energy"), _heads(stored)))
    console.print(table("Descriptor", ("option", "value"), _options(stored.config.descriptor)))
    _print_card(stored)


def _print_card(stored: Stored) -> None:
    if stored.card:
        console.print(table("Card", ("what", "value"), list(_facts(stored.card))))


def _facts(card: dict, indent: str = "") -> Iterator[tuple[str, str]]:
    """A line for each fact of a card; those of a part of it below its name, long rows of numbers cut."""
    for name, value in card.items():
        if isinstance(value, dict) and not all(map(_is_number, value.values())):
            yield f"{indent}{name}", ""
            yield from _facts(value, f"{indent}  ")
        else:
            yield f"{indent}{name}", _in_words(value)


def _in_words(value: Any) -> str:
    """A value of a card as text: numbers with their names, no more than `ENTRIES` of them."""
    if not isinstance(value, dict | list):
        return str(value)
    entries = [f"{name} {x:.6g}" for name, x in value.items()] if isinstance(value, dict) else list(map(str, value))
    most = ENTRIES if isinstance(value, dict) or all(map(_is_number, value)) else len(entries)
    more = [f"... ({len(entries)})"] if len(entries) > most else []
    return ", ".join(entries[:most] + more)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _facts_of_factory(stored: Stored) -> list[tuple]:
    """Function, elements, cutoffs and single parameters of a potential of the user's own."""
    potential = potential_of(stored.config)
    named = jax.tree_util.tree_flatten_with_path(stored.params.descriptor)[0]
    values = [(pytree.path_name(path), f"{x:.6g}" if np.ndim(x) == 0 else f"shape {np.shape(x)}") for path, x in named]
    return [
        ("kind", f"{stored.kind} of a potential of one's own"),
        ("made by", str(stored.config)),
        ("elements", "all" if potential.elements is None else " ".join(potential.elements)),
        ("cutoffs (Å)", ", ".join(f"{shell.cutoff:g} (sel {shell.sel or 'all'})" for shell in potential.shells)),
        ("parameters", f"{pytree.n_parameters(stored.params):,}"),
        *((f"  {name}", value) for name, value in values[:MOST]),
        *([("  others", len(values) - MOST)] if len(values) > MOST else []),
    ]


def _summary(stored: Stored) -> list[tuple]:
    config, params = stored.config, stored.params
    dtypes = sorted({str(np.asarray(leaf).dtype) for leaf in jax.tree.leaves(params)})
    shells = build(config, config.head_names[0]).shells
    rows = [
        ("kind", stored.kind),
        ("heads", ", ".join(config.head_names)),
        ("elements", f"{len(config.elements)}: {' '.join(config.elements)}"),
        ("elements in the statistics", _trained_elements(stored)),
        ("descriptor", config.descriptor.type),
        ("cutoffs (Å)", ", ".join(f"{shell.cutoff:g} (sel {shell.sel or 'all'})" for shell in shells)),
        ("parameters", f"{pytree.n_parameters(params):,}"),
        ("  of the descriptor", f"{pytree.n_parameters(params.descriptor):,}"),
        ("stored as", ", ".join(dtypes)),
    ]
    rows += [(f"  {name}", kink) for name, kink in _kinks(stored)]
    if config.pair_exclude_types:
        rows += [
            ("excluded pairs", ", ".join("-".join(config.elements[t] for t in p) for p in config.pair_exclude_types))
        ]
    return rows


def _heads(stored: Stored) -> list[tuple]:
    rows, potential = [], build(stored.config, stored.config.head_names[0])
    for name, head in stored.config.heads:
        params = stored.params.heads[name]
        known = seen_elements(potential, stored.params, name) or ()
        inputs = {"fparam": head.numb_fparam, "aparam": head.numb_aparam, "case": head.dim_case_embd}
        widths = ", ".join(f"{n} {width}" for n, width in inputs.items() if width)
        net = "-".join(map(str, head.neuron))
        rows.append((name, f"{pytree.n_parameters(params):,}", net, widths or "descriptor", " ".join(known) or "none"))
    return rows


def _options(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Every setting, those of a block under its name."""
    rows = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            rows += _options(value, f"{prefix}{field.name}.")
        else:
            rows.append((f"{prefix}{field.name}", str(value)))
    return rows


def _trained_elements(stored: Stored) -> str:
    """Which elements the statistics of the environment are of."""
    config = stored.config
    if not config.descriptor.blocks:
        return "none are taken: nothing is normalised by them"
    block = config.descriptor.blocks[0]
    if block.stddev is not None:
        return f"none are taken: the standard deviation is {block.stddev:g}"
    observed = _observed(stored.params.descriptor[block.name]["statistics"], config.elements)
    return "all" if len(observed) == len(config.elements) else " ".join(observed) or "none"


def _kinks(stored: Stored) -> list[tuple[str, str]]:
    """Activation functions that are not smooth to second order, which Hessians and implicit gradients need."""
    parts = (stored.config.descriptor, *(head for _, head in stored.config.heads))
    names = {value for part in parts for name, value in _options(part) if name.endswith("activation_function")}
    return [(name, kink) for name in sorted(names) if (kink := nn.kinks(name))]


def _observed(statistics: dict, elements: tuple[str, ...]) -> list[str]:
    """Elements whose environment was seen: an element without data has mean 0 and one deviation for all components."""
    observed = np.any(statistics["mean"], axis=1) | (statistics["stddev"][:, 0] != statistics["stddev"][:, 1])
    return [e for e, s in zip(elements, observed, strict=True) if s]
