"""`lamjax relax`: structures from files, relaxed many at a time."""

import warnings
from pathlib import Path
from typing import Annotated

import ase
import ase.io
import jax
import numpy as np
import typer
from ase.calculators.singlepoint import SinglePointCalculator

from lamjax import checkpoints, data, system
from lamjax.relaxation import Relaxation, RelaxConfig, relax_structures
from lamjax.reports import console, progress, table


def relax(
    model: Annotated[Path, typer.Argument(help="A lamjax bundle or a DeePMD-kit model (.pt, .dp, .yaml).")],
    structures: Annotated[list[Path], typer.Argument(help="Files that ASE reads; every frame is relaxed.")],
    out: Annotated[Path, typer.Option(help="Relaxed structures, extxyz.")] = Path("relaxed.extxyz"),
    fmax: Annotated[float, typer.Option(help="Converged when no atom feels a larger force (eV/Å).")] = 0.02,
    max_steps: Annotated[int, typer.Option(help="FIRE steps at most.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Structures side by side.")] = 16,
    head: Annotated[str | None, typer.Option(help="Head of a model that has several.")] = None,
) -> None:
    """Relax every structure at fixed cell; writes energy, forces, converged and n_steps with each."""
    with jax.enable_x64(True):  # for positions and sums of energies; the network runs in float32
        potential, params = checkpoints.load(model, head, np.float32)
        frames = data.read(structures, elements=potential.elements)
        results = _relax(potential, params, frames, RelaxConfig(fmax=fmax, max_steps=max_steps), batch_size, out)
    console.print(_report(results, frames, out))


def _relax(potential, params, frames, config: RelaxConfig, batch_size: int, out: Path) -> list[Relaxation]:
    """Smallest structures first, each batch written as soon as it is done; results in the order of the frames."""
    order = np.argsort([frame.system.n_atoms for frame in frames], kind="stable")
    results: list[Relaxation | None] = [None] * len(frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    for first in progress(range(0, len(frames), batch_size), "relaxing", -(-len(frames) // batch_size)):
        chosen = order[first : first + batch_size]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what did not converge is in the file and in the table
            done = relax_structures(
                potential, params, [frames[k].system for k in chosen], config, batch_size=batch_size
            )
        for k, result in zip(chosen, done, strict=True):
            results[k] = result
            ase.io.write(out, labelled(result, frames[k].info | {"source": frames[k].source}), append=True)
    return results


def labelled(relaxed: Relaxation, info: dict) -> ase.Atoms:
    """The relaxed structure with its energy and forces, and `converged`, `finite`, `n_steps`, `fmax` in its info."""
    atoms = system.to_ase(relaxed.system)
    atoms.calc = SinglePointCalculator(atoms, energy=float(relaxed.energy), forces=np.asarray(relaxed.forces))
    plain = {key: value for key, value in info.items() if np.ndim(value) == 0}
    outcome = {name: np.asarray(getattr(relaxed, name)).item() for name in ("converged", "finite", "n_steps", "fmax")}
    atoms.info |= plain | outcome
    return atoms


def _report(results, frames, out: Path):
    steps = [int(r.n_steps) for r in results]
    missed = [f.source for r, f in zip(results, frames, strict=True) if not r.converged]
    rows = [
        ("structures", len(results)),
        ("converged", sum(bool(r.converged) for r in results)),
        ("not finite", sum(not bool(r.finite) for r in results)),
        ("steps, median and most", f"{np.median(steps):.0f}, {max(steps)}"),
        ("written to", str(out)),
    ]
    if missed:
        rows.append(("not converged", ", ".join(missed[:5]) + (" ..." if len(missed) > 5 else "")))
    return table("Relaxation at fixed cell", ("what", "value"), rows)
