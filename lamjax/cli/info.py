"""`lamjax info` and `lamjax show`: what is installed, and what a model file holds."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import typer

from lamjax import checkpoints, pytree
from lamjax.reports import console, table

PACKAGES = ("lamjax", "jax", "jaxlib", "jax-md", "optax", "orbax-checkpoint", "flax", "ase", "vesin", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, lamjax and what its numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def info() -> None:
    """Print versions, devices and precision: what to put into a bug report."""
    rows = list(versions().items())
    rows += [("devices", ", ".join(map(str, jax.devices())))]
    x64 = "" if jax.config.jax_enable_x64 else " (x64 is off)"
    rows += [("default float", f"{jnp.zeros((), float).dtype}{x64}")]
    rows += [("matmul precision", str(jax.config.jax_default_matmul_precision or "backend default"))]
    console.print(table("lamjax", ("what", "value"), rows))


def show(model: Annotated[Path, typer.Argument(help="A lamjax bundle or a DeePMD-kit .dp file.")]) -> None:
    """Print what a model file holds: heads, elements, descriptor settings, parameters, card."""
    potential, params = checkpoints.load(model)
    config = potential.config
    dtypes = sorted({str(np.asarray(leaf).dtype) for leaf in _stored(model, params)})
    rows = [
        ("heads", ", ".join(config.head_names)),
        ("elements", " ".join(config.elements)),
        ("descriptor", config.descriptor.type),
        ("cutoffs (Å)", ", ".join(f"{shell.cutoff:g} (sel {shell.sel})" for shell in potential.shells)),
        ("parameters", f"{pytree.n_parameters(params):,}"),
        ("  of the descriptor", f"{pytree.n_parameters(params.descriptor):,}"),
        ("stored as", ", ".join(dtypes)),
    ]
    for name, block in (("repinit", config.descriptor.repinit), ("repformer", config.descriptor.repformer)):
        rows += [(f"{name}.{key}", str(value)) for key, value in vars(block).items()]
    console.print(table(str(model), ("what", "value"), rows))
    if checkpoints.is_bundle(model):
        card = checkpoints.read_bundle(model)[2]
        if card:
            console.print(table("card", ("what", "value"), [(k, str(v)) for k, v in card.items()]))


def _stored(model: Path, params):
    """The leaves in the precision of the file."""
    return jax.tree.leaves(checkpoints.read_bundle(model)[1] if checkpoints.is_bundle(model) else params)
