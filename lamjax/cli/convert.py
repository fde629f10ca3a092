"""`lamjax convert`: models between lamjax and DeePMD-kit, with the heads and elements that are wanted; input files."""

from pathlib import Path
from typing import Annotated

import jax
import typer

from lamjax import checkpoints, edit, pytree
from lamjax.cli.convert_input import convert_input, is_input
from lamjax.interop import nequix
from lamjax.interop.deepmd.write import dp_bytes, yaml_bytes
from lamjax.potential import Params, Potential, build
from lamjax.reports import console, outputs

# of other codes, one head a file: (config, params, head, card) -> bytes
BUNDLE = ".lamjax"
NATIVE = {
    ".dp": lambda config, params, head, card: dp_bytes(config, params, head),
    ".yaml": lambda config, params, head, card: yaml_bytes(config, params, head),
    nequix.SUFFIX: lambda config, params, head, card: nequix.write(config, params, head, card.get("nequix")),
}


def convert(
    source: Annotated[
        Path, typer.Argument(help="A model (lamjax bundle; DeePMD-kit .pt, .pth, .dp ...; Nequix .nqx) or input.json.")
    ],
    target: Annotated[
        Path,
        typer.Argument(help="model.lamjax, model.dp, model.yaml (DeePMD-kit) or model.nqx: one head; or config.yaml."),
    ],
    heads: Annotated[str | None, typer.Option(help="Keep these heads, as in water,alloy. A .dp takes one.")] = None,
    elements: Annotated[str | None, typer.Option(help="Keep these elements, as in O,H: smaller, same numbers.")] = None,
    types: Annotated[
        str | None, typer.Option(help="The elements of DeePMD-kit types whose names are none, as in OW=O,HW=H.")
    ] = None,
    toward: Annotated[
        Path | None, typer.Option(help="A model that was fine-tuned from this one: write one between the two.")
    ] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="How far from SOURCE (0) to --toward (1).")] = 0.5,
    tabulate: Annotated[bool, typer.Option(help="Store the radial net as a table: faster, not for training.")] = False,
) -> None:
    """Write a model in another format, or turn a DeePMD-kit training input into a lamjax config.

    A model keeps its precision and, unless told otherwise, all its heads and elements. What of an input is not carried
    over is listed. The kind of the source is told by its content, that of the target by its ending.
    """
    if not checkpoints.is_function(source) and is_input(checkpoints.locate(source)):
        if heads or elements or types or toward or tabulate:
            raise ValueError(
                "--heads, --elements, --types, --toward and --tabulate are for models, not for a training input."
            )
        outputs.check_ending(target, (".yaml", ".yml"), "a training input becomes a config, which is")
        outputs.claim([target], [source], "TARGET")
        convert_input(source, target)
        return
    outputs.check_ending(
        target, (BUNDLE, *NATIVE), "a model (.dp, .yaml: one head, for DeePMD-kit; .nqx: for Nequix) is"
    )
    outputs.claim([target], [source, *([toward] if toward else [])], "TARGET")
    with jax.enable_x64(True):  # so that float64 parameters stay float64
        _convert(source, target, _names(heads), _names(elements), _pairs(types), toward, share, tabulate)


def _convert(
    source: Path,
    target: Path,
    heads: list[str],
    elements: list[str],
    types: dict[str, str],
    toward: Path | None,
    share: float,
    tabulate: bool,
) -> None:
    stored, potential, params = _read(source, heads, elements, types)
    if toward is not None:
        _, other, numbers = _read(toward, heads, elements, {} if checkpoints.is_bundle(toward) else types)
        if other.elements != potential.elements:
            raise ValueError(f"{source} and {toward} know other elements: name those of both with --elements.")
        potential, params = edit.interpolate(potential, params, numbers, share)
    names = potential.config.head_names
    if target.suffix == NATIVE and len(names) > 1:
        raise ValueError(f"A .dp holds one head. Choose it with --heads, one of {', '.join(names)}.")
    if tabulate:
        n = len(potential.elements)
        console.print(f"Making a table of the radial net for {n * n:,} pairs of {n} elements; of 89 in about a minute.")
        potential, params = edit.tabulate(potential, params)
    if target.suffix == BUNDLE:
        card = stored.card or {"converted_from": f"{source.name} ({stored.kind})"}
        if toward is not None:
            card = card | {"mixed": f"{1 - share:.4g} of {source.name}, {share:.4g} of {toward.name}"}
        checkpoints.save(target, potential, params, card)
    elif len(names) == 1:
        content = NATIVE[target.suffix](potential.config, params, names[0], stored.card)
        checkpoints.write_atomically(target, content)
    else:
        raise ValueError(f"A {target.suffix} holds one head. Choose it with --heads, one of {', '.join(names)}.")
    count = f"{pytree.n_parameters(params):,} parameters, heads {', '.join(names)}"
    console.print(f"{target}: {count}, {len(potential.elements)} elements", soft_wrap=True)


def _read(
    path: Path, heads: list[str], elements: list[str], types: dict[str, str]
) -> tuple[checkpoints.Stored, Potential, Params]:
    """A model with the heads and elements that are wanted."""
    stored = checkpoints.read(path, heads[0] if len(heads) == 1 else None, types)
    checkpoints.check_config(stored.config, path, "lamjax convert")
    potential, params = build(stored.config), stored.params
    if heads:
        potential, params = edit.select_heads(potential, params, heads)
    if elements:
        potential, params = edit.restrict_elements(potential, params, elements)
    return stored, potential, params


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def _pairs(text: str | None) -> dict[str, str]:
    """Names and elements of `OW=O,HW=H`."""
    pairs = [name.split("=") for name in _names(text)]
    if wrong := ["=".join(pair) for pair in pairs if len(pair) != 2 or not all(pair)]:
        raise ValueError(f"--types: {wrong[0]!r} is not NAME=ELEMENT, as in OW=O,HW=H.")
    return {name.strip(): symbol.strip() for name, symbol in pairs}
