"""`lamjax properties`: crystals from files, relaxed many at a time, and what is computed of them."""

import csv
import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ase
import jax
import numpy as np
import typer
from ase.calculators.singlepoint import SinglePointCalculator
from jaxtyping import PyTree
from rich.markup import escape

from lamjax import checkpoints, data, files, units
from lamjax.cli import reading, relax_records
from lamjax.cli.failure import no_memory
from lamjax.cli.option_groups import with_groups
from lamjax.cli.options import Head, Model, NetworkPrecision, Precision
from lamjax.cli.reading import Start
from lamjax.data import records
from lamjax.data.pairs import listed
from lamjax.potential import Potential
from lamjax.properties import PropertyConfig, check_phonopy, survey, write_phonopy
from lamjax.properties.volumes import EquationOfStateConfig
from lamjax.relaxation import CellConfig, RelaxConfig, stream
from lamjax.reports import console, crystals, outputs, plots, progress, table
from lamjax.system import System, to_ase

RECORDS, CSV, JSON, RELAXED = "records.jsonl", "properties.csv", "properties.json", "relaxed.extxyz"
FIGURES, MODULI, PHONOPY = "figures", "moduli.png", "phonopy"
REFERENCES = {"bulk_modulus": "bulk modulus (GPa)", "shear_modulus": "shear modulus (GPa)"}
KEYS = ("{}", "{}_GPa", "{}_vrh", "REF_{}", "k_vrh", "g_vrh")  # of references in the files
STRUCTURE = ("numbers", "positions", "cell", "pbc", "energy", "forces", "virial")
FLAGS = ("converged", "broken_up", "symmetry_changed", "elastic_stable", "phonons_stable")


class SurveySettings(NamedTuple):
    """The properties that are asked for, and their settings."""

    elastic: bool
    eos: EquationOfStateConfig | None
    phonons: survey.PhononSurvey | None
    relax: RelaxConfig
    figures: bool
    phonopy: bool


def survey_settings(
    elastic: Annotated[bool, typer.Option("--elastic", help="Elastic tensor, moduli, B'.")] = False,
    eos: Annotated[bool, typer.Option("--eos", help="Equation of state at 7 volumes.")] = False,
    phonons: Annotated[bool, typer.Option("--phonons", help="Bands, density of states, heat capacity.")] = False,
    fmax: Annotated[float, typer.Option(help="Relaxed when no atom nor the cell feels more (eV/Å).")] = 1e-4,
    max_steps: Annotated[int, typer.Option(help="FIRE steps at most.")] = 2000,
    supercell: Annotated[float, typer.Option(help="Å between faces of the supercell of phonons, at least.")] = 10.0,
    temperature: Annotated[list[float] | None, typer.Option(help="K, of the heat capacity; again for more.")] = None,
    phonopy: Annotated[bool, typer.Option("--phonopy", help="Force constants for phonopy too (needs it).")] = False,
    figures: Annotated[bool, typer.Option(help="A figure of each crystal's bands and equation of state.")] = True,
) -> SurveySettings:
    """The properties to compute and their settings; ValueError for options that do not fit together."""
    if phonopy and not phonons:
        raise ValueError("--phonopy writes force constants: add --phonons.")
    if phonopy:
        check_phonopy()
    return SurveySettings(
        elastic,
        EquationOfStateConfig() if eos else None,
        survey.PhononSurvey(supercell, temperatures=tuple(temperature or (300.0,))) if phonons else None,
        RelaxConfig(fmax=fmax, max_steps=max_steps, cell=CellConfig()),
        figures,
        phonopy,
    )


@with_groups(settings=survey_settings)
def properties(
    model: Model,
    structures: Annotated[list[Path], typer.Argument(help="Files that ASE reads; every frame is a crystal.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of tables and figures.")] = Path("properties"),
    *,
    settings: SurveySettings,
    head: Head = None,
    precision: NetworkPrecision = Precision.FLOAT64,
    chunk: Annotated[int, typer.Option(help="Crystals that are relaxed before their properties follow.", min=1)] = 64,
    resume: Annotated[bool, typer.Option("--resume", help="Only what is not yet in the output.")] = False,
    elements: reading.Elements = None,
) -> None:
    """Relax every crystal with its cell, and compute lattice constants, elastic constants, equation of state, phonons.

    The folder holds properties.csv, a line for each structure with numbers and flags; properties.json, with tensors,
    energies and heat capacities too; relaxed.extxyz; figures of bands, densities of states and equations of state; and
    moduli.png, against references where the files have bulk_modulus or shear_modulus (GPa) in their info.

    A structure that did not converge, broke up, lost its symmetry, is elastically unstable or has imaginary frequencies
    is flagged in its line. What could not be computed is said there; the others go on. A molecule has none of these
    properties, a slab its stiffness in N/m. Each line is written as it is done: --resume goes on.
    """
    names = [RECORDS, CSV, JSON, RELAXED, MODULI, f"{FIGURES}/*", f"{PHONOPY}/*"]
    outputs.claim_folder(output, names, [model, *data.files_of(structures)], "--output")
    began = time.monotonic()
    with files.alone(output / RECORDS), jax.enable_x64(True):
        done = _done(output, resume)
        potential, params = checkpoints.load(model, head, np.dtype(precision.value))
        crystals, unread = reading.structures(structures, potential.elements, reading.options(elements=elements))
        made = {"model": relax_records.model_name(potential, params), "settings": _settings(settings, precision)}
        for crystal in crystals:
            _check_made(done.get(crystal.source), made | _start(crystal), output)
        left = [crystal for crystal in crystals if crystal.source not in done]
        for first in range(0, len(left), chunk):
            part = left[first : first + chunk]
            computed = _computed(potential, params, part, settings, output)
            for record in progress(computed, "properties", len(part)):
                record["made"] = made | _start(crystals[record["number"]])
                files.append(output / RECORDS, (json.dumps(record) + "\n").encode())
                done[record["source"]] = record
        rows = [done[crystal.source] for crystal in crystals if crystal.source in done]
        _write(output, rows, settings)
    if not rows:
        raise ValueError(listed("Nothing was computed", unread or ["There are no structures."]))
    console.print(_report(rows, len(left), time.monotonic() - began, output))
    if remarks := [f"{row['source']}: {row['remark']}" for row in rows if "remark" in row]:
        console.print(escape(listed("Look at these", remarks)), soft_wrap=True)
    failures = unread + [f"{row['source']}: {row[key]}" for row in rows for key in row if key.endswith("error")]
    if failures:
        console.print(escape(listed("Not computed", failures)), soft_wrap=True)


def _done(output: Path, resume: bool) -> dict[str, dict]:
    """The records of an earlier run; a last line that was not written to its end is cut off."""
    file = output / RECORDS
    if not resume:
        if files.size(file):
            raise ValueError(f"{file} exists. Go on with --resume, name another --output, or remove it.")
        return {}
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    try:
        records = [json.loads(line) for line in whole]
        is_ours = all({"source", "number", "made"} <= record.keys() for record in records)
    except (ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"{file} was not written by `lamjax properties`. Name another --output, or remove it.")
    if lines:
        files.cut(file, sum(map(len, whole)))
    return {record["source"]: record for record in records}


def _settings(settings: SurveySettings, precision: Precision) -> str:
    """The settings that the results depend on, beside model and structure."""
    phonons = "no" if settings.phonons is None else f"{settings.phonons.length:g} Å"
    heat = () if settings.phonons is None else settings.phonons.temperatures
    return (
        f"elastic {settings.elastic}; eos {settings.eos is not None}; phonons {phonons}; temperatures "
        f"{' '.join(f'{t:g}' for t in heat)}; fmax {settings.relax.fmax:g}; max_steps {settings.relax.max_steps}; "
        f"precision {precision.value}"
    )


def _start(crystal: Start) -> dict[str, str]:
    """A name for a structure as it was read."""
    unusable = crystal.error is not None
    return {"start": "unusable" if unusable else relax_records.start_name(crystal.start, None)}


def _check_made(record: dict | None, made: dict[str, str], output: Path) -> None:
    """ValueError, with what differs, for a record of another model, structure or settings."""
    if record is None:
        return
    for name, now in made.items():
        before = record["made"][name]
        if before != now:
            pairs = zip(before.split("; "), now.split("; "), strict=False)
            change = "; ".join(f"{old}, now {new}" for old, new in pairs if old != new)
            raise ValueError(
                f"{output}: {record['source']} was computed with another {name} ({change}). Give the same again, or "
                "name another --output."
            )


def _computed(
    potential: Potential, params: PyTree, part: Sequence[Start], settings: SurveySettings, output: Path
) -> Iterator[dict]:
    """The record of each crystal of a part: all relaxed in flight, then their properties one after another."""
    usable = [crystal for crystal in part if crystal.error is None]
    for crystal in part:
        if crystal.error is not None:
            yield _named(crystal) | {"converged": False, "error": crystal.error}
    ends: dict[int, Any] = {}
    for outcome in stream(potential, params, [c.start for c in usable], settings.relax) if usable else ():
        crystal = usable[outcome.number]
        if outcome.error is not None or outcome.relaxation is None:
            yield _named(crystal) | {"converged": False, "error": outcome.error}
        else:
            ends[outcome.number] = outcome.relaxation
    volumes = _at_volumes(potential, params, ends, settings)
    for number, relaxed in sorted(ends.items()):
        yield _record(potential, params, usable[number], relaxed, volumes.get(number, []), settings, output)


def _at_volumes(
    potential: Potential, params: PyTree, ends: dict[int, Any], settings: SurveySettings
) -> dict[int, list]:
    """Relaxations of the converged crystals at the volumes of their equations of state, all in flight."""
    if settings.eos is None:
        return {}
    jobs = [
        (number, system)
        for number, relaxed in ends.items()
        if relaxed.converged and np.all(relaxed.system.pbc)
        for system in survey.strained(relaxed.system, settings.eos)
    ]
    relaxation = RelaxConfig(settings.relax.fmax, settings.relax.max_steps, CellConfig(keep="volume"))
    relaxations: dict[int, list] = {number: [] for number, _ in jobs}
    for outcome in stream(potential, params, [system for _, system in jobs], relaxation) if jobs else ():
        if outcome.relaxation is not None:
            relaxations[jobs[outcome.number][0]].append(outcome.relaxation)
    return relaxations


def _record(
    potential: Potential,
    params: PyTree,
    crystal: Start,
    relaxed: Any,
    volumes: Any,
    settings: SurveySettings,
    output: Path,
) -> dict:
    """The record of one relaxed crystal, and its files."""
    record = _named(crystal) | survey.state(crystal.start, relaxed, potential, True)
    record["relaxed"] = _plain(relaxed)
    if not record["converged"]:
        return record | {"error": survey.ATTEMPTED}
    name = f"{crystal.number:05d}_{record['formula']}"
    if settings.elastic:
        config = PropertyConfig(fmax=10 * settings.relax.fmax)
        record |= _tried("elastic", lambda: survey.elastic(potential, params, relaxed.system, config))
    if settings.eos is not None:
        record |= _tried("eos", lambda: _equation(relaxed, volumes, name, settings, output))
    if settings.phonons is not None:
        record |= _tried("phonons", lambda: _waves(potential, params, relaxed.system, name, settings, output))
    return record


def _plain(relaxed: Any) -> dict:
    """A relaxed structure as lists of numbers."""
    arrays = relaxed.system._asdict() | {"energy": relaxed.energy, "forces": relaxed.forces, "virial": relaxed.virial}
    return {name: np.asarray(arrays[name]).tolist() for name in STRUCTURE}


def _atoms(row: dict) -> ase.Atoms:
    """The structure of a record with its energy, forces and stress, and what became of it."""
    relaxed = row["relaxed"]
    atoms = ase.Atoms(relaxed["numbers"], relaxed["positions"], cell=relaxed["cell"], pbc=relaxed["pbc"])
    results = {"energy": relaxed["energy"], "forces": np.asarray(relaxed["forces"])}
    if atoms.pbc.all():
        results["stress"] = units.to_voigt(units.virial_to_stress(np.asarray(relaxed["virial"]), atoms.get_volume()))
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info |= {key: row[key] for key in ("source", "number", "converged", "fmax", "n_steps")}
    return atoms


def _tried(what: str, compute: Any) -> dict:
    """The result of a computation, or the reason why it failed."""
    try:
        return compute()
    except Exception as error:
        reason = no_memory(error) or (str(error) if isinstance(error, ValueError | FloatingPointError) else None)
        if reason is None:
            raise
        return {f"{what}_error": reason}


def _equation(relaxed: Any, volumes: Any, name: str, settings: SurveySettings, output: Path) -> dict:
    survey.check_crystal(relaxed.system, "An equation of state")
    record = survey.equation_of_state(volumes)
    if settings.figures:
        x, y = record["eos_volumes"], record["eos_energies"]
        grid = np.linspace(min(x), max(x), 200)
        power = np.polynomial.Polynomial.fit(np.array(x) ** (-2 / 3), y, 3)
        title = f"{name}: B = {record['eos_bulk_modulus']:.1f} GPa, B' = {record['eos_derivative']:.2f}"
        file = _figure(output, f"{name}_eos.png")
        crystals.energy_of_volume(file, x, y, (grid, power(grid ** (-2 / 3))), title)
    return record


def _waves(
    potential: Potential, params: PyTree, system: System, name: str, settings: SurveySettings, output: Path
) -> dict:
    wanted: Any = settings.phonons  # they are asked for
    record, waves = survey.waves(potential, params, system, wanted)
    if settings.figures:
        path = waves.path
        times = "x".join(map(str, record["supercell"]))
        least = round(record["least_frequency"], 2) + 0.0  # no -0.00
        title = f"{name}, supercell {times}: lowest frequency {least:.2f} THz"
        file = _figure(output, f"{name}_phonons.png")
        crystals.bands(file, path.distances, waves.bands, path.ticks, waves.mesh, title)
    if settings.phonopy:
        write_phonopy(output / PHONOPY / name, system, waves.cells, waves.constants)
    return record


def _figure(output: Path, name: str) -> Path:
    (output / FIGURES).mkdir(exist_ok=True)
    return output / FIGURES / name


def _named(crystal: Start) -> dict:
    """The columns of a crystal before anything is computed: its references too."""
    facts = {"source": crystal.source, "number": crystal.number}
    if crystal.error is None:
        atoms = to_ase(crystal.start)
        facts |= {"formula": atoms.get_chemical_formula(), "n_atoms": len(atoms)}
    for name in REFERENCES:
        for key in (key.format(name) for key in KEYS if "{}" in key or key[0] == {"b": "k", "s": "g"}[name[0]]):
            value = crystal.info.get(key)
            if isinstance(value, int | float | np.number) and np.isfinite(value):
                facts[f"reference_{name}"] = float(value)
                break
    return facts


def _write(output: Path, rows: list[dict], settings: SurveySettings) -> None:
    """Table, tree and figure of all records."""
    text = io.StringIO()
    for row in rows:
        if "relaxed" in row:
            records.append(text, _atoms(row))
    files.write_atomically(output / RELAXED, text.getvalue().encode())
    rows = [{key: value for key, value in row.items() if key not in ("relaxed", "made")} for row in rows]
    plain = lambda value: not isinstance(value, list | dict)  # noqa: E731
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if plain(value)))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    files.write_atomically(output / CSV, text.getvalue().encode())
    files.write_atomically(output / JSON, json.dumps(_without_nan(rows), indent=1, allow_nan=False).encode())
    if settings.elastic:
        _moduli(output / MODULI, rows)


def _without_nan(tree: Any) -> Any:
    """Numbers that are not finite as None, `null` in JSON, which has no NaN."""
    match tree:
        case dict():
            return {key: _without_nan(value) for key, value in tree.items()}
        case list():
            return [_without_nan(value) for value in tree]
        case float() if not np.isfinite(tree):
            return None
    return tree


def _moduli(path: Path, rows: list[dict]) -> None:
    """Moduli of the stable crystals against their references, or how they are distributed."""
    sound = [row for row in rows if row.get("elastic_stable") and np.isfinite(row.get("bulk_modulus", np.nan))]
    known: dict[str, tuple] = {}
    for name, label in REFERENCES.items():
        pairs = [(row[f"reference_{name}"], row[name]) for row in sound if f"reference_{name}" in row]
        known[label] = tuple(zip(*pairs, strict=True))
    if any(known.values()):
        panels = {label: pair for label, pair in known.items() if pair}
        plots.parity(path, panels, f"moduli of {len(sound)} elastically stable crystals")
    elif sound:
        panels = {label: [row[name] for row in sound] for name, label in REFERENCES.items()}
        crystals.histograms(path, panels, f"moduli of {len(sound)} elastically stable crystals")


def _report(rows: list[dict], n_new: int, seconds: float, output: Path) -> Any:
    shown = [("structures", len(rows)), ("computed now", n_new)]
    for flag in FLAGS:
        known = [row[flag] for row in rows if flag in row]
        if known:
            shown.append((flag.replace("_", " "), f"{sum(map(bool, known))} of {len(known)}"))
    for name, label in REFERENCES.items():
        pairs = [(row[name], row[f"reference_{name}"]) for row in rows if f"reference_{name}" in row and name in row]
        if pairs:
            shown.append((f"mean error of the {label}", float(np.mean([abs(a - b) for a, b in pairs]))))
    if n_new:
        shown.append(("time per structure", f"{seconds / n_new:.2g} s"))
    return table("Properties", ("what", "value"), [*shown, ("written to", str(output))])
