"""`lamjax explore`: many structures out of some, by perturbations, substitutions, relaxations and simulations."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import ase.data
import jax
import typer
from rich.markup import escape

from lamjax import distillation, files
from lamjax.cli.label import SECONDS, claim
from lamjax.cli.labeller import HELP, OPTION_HELP, labeller_config
from lamjax.cli.options import Head, LabellerPrecision, Structures
from lamjax.data.pairs import listed
from lamjax.distillation import CalculatorLabeller, Engine, ExploreConfig, Labeller
from lamjax.distillation.substitute import USUAL
from lamjax.reports import bar, console, table
from lamjax.training.config import apply, validate

ENDINGS = (".extxyz", ".xyz")
NAMED = 5  # failures that are printed


Mover = Annotated[str | None, typer.Option(help=f"What moves atoms in relaxations and simulations. {HELP}")]
Substitutes = Annotated[
    str | None, typer.Option(help="Those that substitutions may bring in: O,S,Se. Default: those of the model.")
]


def explore(
    structures: Structures,
    out: Annotated[Path, typer.Option("--output", "-o", "--out", help="The structures, extxyz.")],
    potential: Mover = None,
    option: Annotated[list[str] | None, typer.Option(help=OPTION_HELP)] = None,
    head: Head = None,
    precision: LabellerPrecision = None,
    perturbed: Annotated[int | None, typer.Option(help="Random displacements and strains of each start: 10.")] = None,
    substitutions: Annotated[
        int | None, typer.Option(help="Further starts for each: elements replaced by similar ones: 0.")
    ] = None,
    relaxations: Annotated[int | None, typer.Option(help="Perturbed structures of each start, relaxed: 0.")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="K; a simulation of each start at each; repeatable. None: no simulation.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key, see above: --set strain=0.05.")] = None,
    elements: Substitutes = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn at random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was killed.")] = False,
) -> None:
    """Make a set of structures from some, as `lamjax distill` explores: for `lamjax label`, or any other code.

    The starts, and substitutions of them: elements replaced by neighbours in their group (d and f elements: or their
    row), all lengths scaled by covalent radii. Of each of these: random displacements and strains; structures along
    the first steps of relaxations; frames of simulations, at constant volume or pressure.

    Keys of --set, with their defaults: displacement=0.05 (Å) strain=0.02 (standard deviations) similar=1 (places in
    group or row); relax_steps=20 relax_every=null (steps between frames; null: the last alone) relax_cell=false;
    pressures=[] (GPa) timestep=1.0 (fs) steps=1000 every=20 simulations=null (drawn among all; null: all).

    Every frame says how it was made: origin, start, seed, draw, step. The same command makes the same set. What is
    done is kept in OUT.partial; a run that was killed goes on with --resume. A relaxation or simulation that fails
    keeps its frames until then, and is counted.
    """
    given = {"perturbed": perturbed, "substitutions": substitutions, "relaxations": relaxations}
    content: dict[str, Any] = {"temperatures": list(temperature or ())}
    content |= {key: value for key, value in given.items() if value is not None}
    for change in set_ or ():
        apply(content, change)
    config = validate(content, "options", ExploreConfig)
    if potential is None and (option or head or precision):
        raise ValueError("--option, --head and --precision are about a --potential: name one.")
    claim(out, [*structures, potential], ENDINGS, "structures are")
    began = time.monotonic()
    with files.alone(out), jax.enable_x64(True):  # for positions and sums of energies
        starts, wrong = distillation.read_structures(structures)
        if not len(starts):
            raise ValueError(listed("No structure could be read", wrong or ["The files are empty."]))
        moved = None
        if potential is not None:
            words = potential, option or (), head, None if precision is None else precision.value
            moved = distillation.open_labeller(labeller_config(*words))
        allowed = _elements(elements, moved)
        steps = distillation.explore_set(
            config, _engine(moved), starts, out, seed, allowed, resume, getattr(moved, "level", None) or ""
        )
        numbers = _run(steps)
    _report(*numbers, wrong, out, time.monotonic() - began)


def _engine(labeller: Labeller | None) -> Engine | None:
    """The engine that moves atoms with the potential or calculator of a labeller."""
    if labeller is None:
        return None
    if isinstance(labeller, CalculatorLabeller):
        return distillation.calculator_engine(labeller.instance)
    return distillation.potential_engine(labeller.potential, labeller.params)


def _elements(named: str | None, labeller: Labeller | None) -> tuple[str, ...]:
    """The elements that may be brought in; ValueError for a name that is none."""
    known = getattr(getattr(labeller, "potential", None), "elements", None)
    if named is None:
        return USUAL if known is None else tuple(known)
    elements = tuple(name.strip() for name in named.split(",") if name.strip())
    if wrong := [name for name in elements if name not in ase.data.chemical_symbols[1:]]:
        raise ValueError(f"--elements: {', '.join(wrong)}: no element. Write symbols with commas: O,S,Se.")
    if known is not None and (wrong := [name for name in elements if name not in known]):
        raise ValueError(f"--elements: the model does not know {', '.join(wrong)}; it knows {', '.join(known)}.")
    return elements


def _run(steps: Any) -> tuple[Any, list[str], int]:
    """Show the progress; returns the last event, all failures, and the number of unusable frames."""
    failures, unusable, last = [], 0, None
    with bar("exploring", 0, interval=SECONDS) as advance:
        for last in steps:
            failures += last.failures
            unusable += last.unusable
            note = f"{sum(last.origins.values())} structures" + (f", {len(failures)} ended early" if failures else "")
            advance(last.done, note, last.total)
    return last, failures, unusable


def _report(last: Any, failures: Sequence[str], unusable: int, wrong: Sequence[str], out: Path, seconds: float) -> None:
    rows = [
        *sorted(last.origins.items()),
        ("all", sum(last.origins.values())),
        *([("left out: atoms on one place, or a flat cell", unusable)] if unusable else []),
        *([("relaxations and simulations that ended early", len(failures))] if failures else []),
        *([("starts that are not readable", len(wrong))] if wrong else []),
        ("time (s)", seconds),
        ("written to", f"{out}"),
    ]
    console.print(table("Structures", ("what", "value"), rows))
    for failure in failures[:NAMED]:
        console.print(f"  ended early: {escape(failure)}", soft_wrap=True, style="dim")
    if wrong:
        console.print(escape(listed("Not readable, left out", list(wrong))), soft_wrap=True)
