"""`lamjax md`: molecular dynamics of one structure, written while it goes on."""

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import typer
from jaxtyping import PyTree
from rich.markup import escape

from lamjax import checkpoints, data, dynamics, files, units
from lamjax.cli import md_report as report
from lamjax.cli import reading
from lamjax.cli.committee import Watch, identity, load_members
from lamjax.cli.final_report import at_end
from lamjax.cli.option_groups import with_groups
from lamjax.cli.options import Head, Model, Precision
from lamjax.cli.train import banner
from lamjax.data import Frame
from lamjax.domains import divide
from lamjax.dynamics import DynamicsError, Ensemble, NPTConfig, NVEConfig, NVTConfig, Output, Record, Scene, Simulation
from lamjax.dynamics.records import COLUMNS
from lamjax.reports import bar, console, outputs, warnings_as_text
from lamjax.system import MASSES

SECONDS = 5.0  # that a chunk takes, about; a killed run loses no more


class Kind(StrEnum):
    """The ensemble: what is kept constant."""

    NVE = "nve"
    NVT = "nvt"
    NPT = "npt"


class Thermostat(StrEnum):
    """The thermostat at constant volume and temperature."""

    LANGEVIN = "langevin"
    NOSE_HOOVER = "nose_hoover"


CONFIGS = {Kind.NVE: NVEConfig, Kind.NVT: NVTConfig, Kind.NPT: NPTConfig}


class PreparedSimulation(NamedTuple):
    """A simulation and where it is written."""

    ensemble: Ensemble
    params: Any
    simulation: Simulation
    output: Output
    watch: Watch | None  # over the forces of a committee


class Motion(NamedTuple):
    """Ensemble and length of a simulation."""

    config: Any  # of the ensemble
    n_steps: int
    temperature: float | None  # K, of velocities that are drawn whatever those of the structure are


def motion(
    ensemble: Annotated[Kind, typer.Option(help="Constant energy; volume and temperature; or pressure.")] = Kind.NVT,
    steps: Annotated[int | None, typer.Option(help="How many, those of an earlier part of the run included.")] = None,
    picoseconds: Annotated[float | None, typer.Option("--time", help="The same in ps, instead of --steps.")] = None,
    timestep: Annotated[float, typer.Option(help="fs.")] = NVTConfig.timestep,
    temperature: Annotated[float | None, typer.Option(help="K; 300 where not given. See above for nve.")] = None,
    pressure: Annotated[float | None, typer.Option(help="Of npt (GPa); 0 where not given.")] = None,
    thermostat: Annotated[Thermostat | None, typer.Option(help="Of nvt; langevin where not given.")] = None,
    friction: Annotated[float | None, typer.Option(help="Of langevin (1/fs); 0.01 where not given.")] = None,
    thermostat_time: Annotated[float | None, typer.Option(help="Period of Nosé-Hoover chains (fs): 50.")] = None,
    barostat_time: Annotated[float | None, typer.Option(help="Of npt (fs): 500.")] = None,
) -> Motion:
    """The ensemble of the options and the number of steps; ValueError for what does not fit together."""
    chosen_options = {"temperature": temperature, "thermostat": thermostat, "friction": friction}
    chosen_options |= {"pressure": None if pressure is None else pressure * units.GPA}
    chosen_options |= {"thermostat_time": thermostat_time, "barostat_time": barostat_time}
    config = _config(ensemble, timestep, chosen_options)
    draws = temperature if ensemble is Kind.NVE else None
    return Motion(config, _n_steps(steps, picoseconds, timestep), draws)


@with_groups(motion=motion)
def md(
    model: Model,
    structure: Annotated[Path, typer.Argument(help="A file that ASE reads.")],
    *,
    motion: Motion,
    every: Annotated[int, typer.Option(help="Steps between two frames, and two lines of the table.", min=1)] = 20,
    output: Annotated[Path, typer.Option("--output", "-o", help="Trajectory: .extxyz, .traj (ASE) or .h5.")] = Path(
        "traj.extxyz"
    ),
    seed: Annotated[int, typer.Option(help="Of velocities and the random forces of langevin.")] = 0,
    frame: Annotated[int | None, typer.Option(help="Which of several structures, from 0; -1 is the last.")] = None,
    head: Head = None,
    precision: Annotated[
        Precision, typer.Option("--precision", "--dtype", help="Of the network; positions are float64.")
    ] = Precision.FLOAT32,
    committee: Annotated[
        list[Path] | None,
        typer.Option(help="Another member of the model's committee; repeatable. Its deviation goes into the table."),
    ] = None,
    max_deviation: Annotated[
        float | None, typer.Option(help="Stop where the committee's force deviation (eV/Å, worst atom) is larger.")
    ] = None,
    domains: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Divide a large structure over devices: parts along each lattice vector, such as 2 2 1."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the output stops.")] = False,
    elements: reading.Elements = None,
) -> None:
    """Simulate: velocity Verlet, Langevin or Nosé-Hoover, with or without a barostat on the size of the cell.

    Beside the trajectory lie a table (traj.csv), a picture of it (traj.png), a page to look at (traj.html) and all that
    is needed to go on (traj.restart): a run that was killed goes on with --resume to the last digit, and one that is
    done goes on if --steps is larger. Ctrl-C stops after what is being done, with everything written.

    Velocities of the structure are used if it has any, less a drift of the centre of mass where nothing is fixed, and
    else drawn at --temperature; nve draws them whenever a temperature is given. FixAtoms and FixCartesian are
    respected. If the simulation explodes, the last good structure is in traj-last.extxyz.

    With --committee: sqrt(<|F - <F>|²>) over the model and these members, of the atom where it is largest, in every
    frame. What the members do not agree on, none of them has learned.
    """
    if max_deviation is not None and not (committee and max_deviation > 0):
        raise ValueError("--max-deviation is a limit (eV/Å, above 0) of the models that --committee names.")
    outputs.check_ending(output, dynamics.SUFFIXES, "a trajectory is")
    outputs.claim(dynamics.paths(output), [model, structure, *(committee or ())], "--output")
    with jax.enable_x64(True):  # for positions and sums of energies
        console.print(banner(precision.value))
        potential, params = checkpoints.load(model, head, np.dtype(precision.value))
        start = _read(structure, frame, potential.elements, reading.options(elements=elements))
        members = load_members(potential, params, committee) if committee else None
        others = identity(potential, members, committee) if committee else []
        settings = {"every": every, "seed": seed, "velocities": motion.temperature, "committee": others}
        with files.alone(output):
            kept = Ensemble(potential, motion.config, divide(domains) if domains else None)
            run = _prepare(kept, params, start, settings, output, resume, members)
            if run.simulation.step >= motion.n_steps:
                console.print(f"All of the {motion.n_steps} steps are done. For more raise --steps.")
            _go(run, motion.n_steps, every, max_deviation)


def _config(kind: Kind, timestep: float, chosen_options: dict[str, Any]) -> Any:
    """The config of an ensemble; ValueError for a setting that it does not have."""
    chosen_options = {key: value for key, value in chosen_options.items() if value is not None}
    known = {field.name for field in dataclasses.fields(CONFIGS[kind])} - {"type", "timestep"}
    which = kind.value
    if kind is Kind.NVE:
        chosen_options.pop("temperature", None)  # of the first velocities alone
    if kind is Kind.NVT:
        chosen = chosen_options.get("thermostat", Thermostat.LANGEVIN)
        known -= {"thermostat_time" if chosen is Thermostat.LANGEVIN else "friction"}
        which = f"nvt with {chosen.value}"
    if unknown := sorted("--" + key.replace("_", "-") for key in chosen_options.keys() - known):
        raise ValueError(f"{', '.join(unknown)} has no meaning for {which}. Leave it out, or choose another ensemble.")
    plain = {key: value.value if isinstance(value, StrEnum) else value for key, value in chosen_options.items()}
    return CONFIGS[kind](timestep=timestep, **plain)


def _n_steps(steps: int | None, picoseconds: float | None, timestep: float) -> int:
    if (steps is None) == (picoseconds is None):
        raise ValueError("Say how long: with --steps, or with --time (ps).")
    n = steps if picoseconds is None else round(1000 * picoseconds / timestep)
    if n < 1:
        raise ValueError(f"{n} steps of {timestep:g} fs is no simulation. Raise --steps or --time.")
    return n


def _read(path: Path, number: int | None, elements: Sequence[str] | None, options: data.ReadOptions) -> Frame:
    """The structure of a file; ValueError where it is not clear which."""
    frames = list(data.iterate(path, elements=elements, options=options, on_remark=reading.tell))
    if number is None and len(frames) > 1:
        raise ValueError(f"{path} holds {len(frames)} structures. Choose one: --frame 0, or --frame -1 for the last.")
    if not -len(frames) <= (number or 0) < len(frames):
        raise ValueError(f"{path} holds {len(frames)} structures, there is no --frame {number}.")
    frame = frames[number or 0]
    if (ignored := frame.info.get("other_constraints")) is not None:
        console.print(f"[yellow]Constraints that are not respected: {ignored}[/]")
    masses = frame.info.get("masses")
    if masses is not None and not np.allclose(masses, MASSES[frame.system.numbers], rtol=1e-3):
        raise ValueError(f"{path} has masses of its own (isotopes?); lamjax knows those of the elements. Remove them.")
    return frame


def _prepare(
    ensemble: Ensemble, params: PyTree, start: Frame, settings: dict[str, Any], path: Path, resume: bool, members: Any
) -> PreparedSimulation:
    """A simulation that begins, or goes on."""
    fixed = start.info.get("fixed", np.zeros((start.system.n_atoms, 3), bool))
    scene = Scene(start.system, fixed, ensemble.config.timestep)
    watch = None if members is None else Watch(ensemble.potential, members, scene)
    columns = (*COLUMNS, watch.column) if watch else COLUMNS
    output = Output(path, scene, dynamics.identity(ensemble, params) | settings, columns)
    existing = output.paths.written
    if resume and output.paths.restart in existing:
        simulation = output.resume(ensemble, params)
        console.print(f"Going on from step {simulation.step}.")
        return PreparedSimulation(ensemble, params, simulation, output, watch)
    if resume and existing:
        raise ValueError(f"{existing[0]} exists without {output.paths.restart}, so that nothing can go on. Remove it.")
    drawn = settings["velocities"]
    momenta = start.info.get("momenta") if drawn is None else None
    momenta = momenta if np.any(momenta) else None
    output.refuse()
    with warnings_as_text():
        simulation = dynamics.begin(
            ensemble, params, start.system, temperature=drawn, momenta=momenta, fixed=fixed, seed=settings["seed"]
        )
    output.begin(simulation)
    whence = "drawn" if momenta is None else "those of the structure"
    console.print(report.beginning(ensemble, start, fixed, whence), soft_wrap=True)
    return PreparedSimulation(ensemble, params, simulation, output, watch)


def _go(run: PreparedSimulation, n_steps: int, every: int, most: float | None) -> None:
    """Up to `n_steps`, or until it is interrupted; then a table and a picture of the records."""
    ensemble, params, simulation, output, watch = run
    left = n_steps - simulation.step
    dropped = False
    if left > 0 and not output.has_seen:
        first = dynamics.observe(ensemble, params, simulation)
        _write(output, simulation, first)
        dropped = report.dropped(first, ensemble.potential.shells)
    clock = report.Clock(simulation.step, ensemble.config.timestep)
    moving = dynamics.simulate(ensemble, params, simulation, max(0, left), every, seconds=SECONDS)
    with _stopping() as stopped, bar("steps", n_steps, simulation.step, 10.0) as advance:
        try:
            for now, record in moving:
                speed = clock.tick(now.step)
                _write(output, now, record)
                if now.n_grown > simulation.n_grown:
                    console.print(report.grown(simulation, now), soft_wrap=True)
                dropped = dropped or report.dropped(record, ensemble.potential.shells)
                simulation = now
                advance(now.step, report.note(record, speed))
                if stopped() or (most is not None and report.disagree(watch, record, most)):
                    break
        except DynamicsError as error:
            report.picture(output)
            at_end(output.paths.trajectory)
            output.write_last(dynamics.observe(ensemble, params, error.simulation))
            raise ValueError(f"{error} It is in {output.paths.last}.") from error
    report.picture(output)
    console.print(report.summary(output, simulation, n_steps, clock))
    paths = output.paths
    console.print(escape(f"{paths.trajectory}, {paths.table.name}, {paths.picture.name}"), soft_wrap=True)
    at_end(paths.trajectory)
    if simulation.step < n_steps:
        console.print(f"Stopped at step {simulation.step} of {n_steps}; --resume goes on.")


def _write(output: Output, simulation: Simulation, record: Record) -> None:
    """As `Output.write`, with a word on what is left if the disk is full."""
    try:
        output.write(simulation, record)
    except OSError as error:
        kept = f"{output.paths.restart} is whole: make room, and go on with --resume."
        raise OSError(f"{error}. Step {simulation.step} could not be written. {kept}") from error


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Tells whether SIGINT or SIGTERM has come. A second one has its usual effect."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])
        console.print("Stopping as soon as the present chunk is written.")

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
