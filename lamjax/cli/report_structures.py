"""Pages of relaxations and simulations: their numbers, and structures to look at."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import h5py
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from ase.data.colors import jmol_colors
from ase.io.trajectory import Trajectory

from lamjax import dynamics, units
from lamjax.cli import md_report
from lamjax.cli import relax_records as records
from lamjax.dynamics import restart
from lamjax.reports import html, plots
from lamjax.reports.html import Element, PageSection, View
from lamjax.system import System, to_ase

MOST = 6  # structures that are drawn
MOST_ATOMS = 2000  # of one that is drawn
MOST_BYTES = 300_000_000  # of a file in which a start is looked for
NEAR = 0.4  # Å; an atom as near to a face of the cell is drawn on the opposite one as well
SETTINGS = {"timestep": "fs", "temperature": "K", "friction": "1/fs, of langevin", "pressure": "GPa"}
SETTINGS |= {"thermostat_time": "fs, of nose_hoover", "barostat_time": "fs", "model": "fingerprint", "every": "steps"}
COLUMNS = (
    "no.",
    "structure",
    "atoms",
    "steps",
    "converged",
    "fmax (eV/Å)",
    "energy (eV)",
    "moved (Å)",
    "volume (%)",
    "",
)


def relaxations(path: Path, starts: Mapping[str, System | ase.Atoms] | None, end: str) -> str:
    """The page of relaxed structures. Starts that are not given are read from the files they came from."""
    places = records.known(path)
    done = [place for place in places if not place.info.get("failed")]
    converged = sum(bool(place.info["converged"]) for place in done)
    lead = f"{len(places)} structures, {converged} converged, {len(places) - len(done)} could not be relaxed."
    usual = next((place.info for place in done), {})
    made = [("settings", usual.get("relaxed_to")), ("head and fingerprint of the model", usual.get("relaxed_by"))]
    steps = [place.info["n_steps"] for place in done]
    made += [("steps, median and most", f"{np.median(steps):.0f}, {max(steps)}")] if steps else []
    sections = [
        PageSection("Settings", html.facts([("file", path.name), *(one for one in made if one[1])])),
        PageSection("Structures before and after", _pairs(path, done, starts)),
        PageSection("Steps and changes", _relaxation_plots(done)),
        PageSection("All structures", _relaxation_table(path, places)),
    ]
    return html.page(f"Relaxations: {path.name}", lead, sections, end)


def simulation(path: Path, end: str) -> str:
    """The page of a simulation that was written to this trajectory."""
    paths = dynamics.paths(path)
    columns = md_report.read(paths.table)
    first, last = ends(path)
    n_atoms, last_time = len(first), columns["time_ps"][-1]
    named = path.with_suffix("").name
    lead = f"{first.get_chemical_formula()}, {last_time:g} ps in {int(columns['step'][-1])} steps."
    figures = [
        html.drawn(plots.series, _thin(columns["time_ps"]), "time (ps)", {name: _thinned(lines)}, "", says=name)
        for name, lines in md_report.panels(columns, n_atoms).items()
    ]
    views = side_by_side([("first frame", first), (f"last frame, {last_time:g} ps", last)])
    sections = [
        PageSection("Settings", html.facts(_simulation_settings(paths, first))),
        PageSection("Means", html.table(md_report.MEANS, md_report.means(columns, n_atoms))),
        PageSection("Over time", html.plot_grid(figures)),
        PageSection("Structures before and after", html.structures(*with_elements([(named, views)]))),
        PageSection("To look at the whole trajectory", html.paragraph(_elsewhere(path))),
    ]
    return html.page(f"Molecular dynamics: {path.name}", lead, sections, end)


def side_by_side(structures: Sequence[tuple[str, ase.Atoms]]) -> list[View]:
    """Views of one structure at several times; atoms keep the periodic image that is in the cell in the first one.

    Nothing for structures of other atoms, and for very large ones.
    """
    first = structures[0][1]
    if len(first) > MOST_ATOMS or any(not np.array_equal(a.numbers, first.numbers) for _, a in structures):
        return []
    periodic = np.array(first.pbc) & (np.linalg.norm(first.cell, axis=1) > 0)
    whole, copies = np.zeros((len(first), 3)), [(k, (0, 0, 0)) for k in range(len(first))]
    if periodic.any():
        cell = first.cell.complete()
        near = np.minimum(0.1, NEAR * np.linalg.norm(cell.reciprocal(), axis=1))
        fractions = cell.scaled_positions(first.positions)
        whole = -np.floor(fractions + near) * periodic
        at_face = (np.abs(fractions + whole) < near) & periodic
        copies = [(k, shift) for k in range(len(first)) for shift in _shifts(at_face[k])]
    return [_view(label, atoms, whole, copies, periodic) for label, atoms in structures]


def with_elements(
    pairs: Sequence[tuple[str, Sequence[View]]],
) -> tuple[list[tuple[str, Sequence[View]]], dict[str, Element]]:
    """Captions with views, without those that have none, and how their elements look."""
    kept = [(caption, views) for caption, views in pairs if views]
    symbols = sorted({symbol for _, views in kept for view in views for symbol in view.symbols})
    return kept, {symbol: _element(symbol) for symbol in symbols}


def ends(path: Path) -> tuple[ase.Atoms, ase.Atoms]:
    """The first and the last frame of a trajectory, without reading what lies between them."""
    match path.suffix:
        case ".traj":
            reader: Any = Trajectory(path)
            with reader as frames:
                return frames[0], frames[len(frames) - 1]
        case ".h5" | ".hdf5":
            return _hdf5_frame(path, 0), _hdf5_frame(path, -1)
    first: Any = next(iter(ase.io.iread(path, format="extxyz")))
    return first, _last_frame(path, len(first))


def _last_frame(path: Path, n_atoms: int) -> ase.Atoms:
    """The last whole frame of an extxyz file, looked for from its end."""
    size, length = path.stat().st_size, 1 << 16
    start = f"{n_atoms}\n".encode()
    while True:
        with open(path, "rb") as file:
            file.seek(max(0, size - length))
            tail = b"\n" + file.read() if length >= size else file.read()
        frames = tail.split(b"\n" + start)
        for k in range(len(frames) - 1, 0, -1):
            frame, is_last = frames[k], k == len(frames) - 1
            if frame.count(b"\n") >= n_atoms + is_last:  # the end of the line is part of what follows, if anything does
                last: Any = ase.io.read(io.StringIO((start + frame + b"\n").decode()), format="extxyz")
                return last
        if length >= size:
            raise ValueError(f"{path} holds no whole frame of {n_atoms} atoms.")
        length *= 4


def _hdf5_frame(path: Path, k: int) -> ase.Atoms:
    opened: Any = h5py.File(path, "r", swmr=True, locking=False)
    with opened as file:
        x = {name: file[name][k] for name in ("positions", "cell")}
        return ase.Atoms(file["numbers"][:], x["positions"], cell=x["cell"], pbc=file["pbc"][:])


def _view(label: str, atoms: ase.Atoms, whole: np.ndarray, copies, periodic: np.ndarray) -> View:
    cell = np.asarray(atoms.cell)
    positions = np.array([atoms.positions[k] + (whole[k] + shift) @ cell for k, shift in copies])
    shown = cell.round(4).tolist() if periodic.any() else None
    symbols = [atoms.symbols[k] for k, _ in copies]
    return View(label, symbols, positions.round(3).tolist(), shown, periodic.tolist())


def _shifts(at_face: np.ndarray) -> list[tuple[int, ...]]:
    """The images of an atom that lies on faces of the cell."""
    return [tuple(map(int, shift)) for shift in np.ndindex(*(1 + at_face.astype(int)))]


def _element(symbol: str) -> Element:
    number = atomic_numbers[symbol]
    radius = float(covalent_radii[number]) if number < len(covalent_radii) else 1.5
    color = jmol_colors[number] if number < len(jmol_colors) else np.full(3, 0.6)
    return Element(tuple(int(x) for x in np.round(255 * color)), round(radius, 2))


def _pairs(path: Path, done: Sequence[records.Place], starts: Mapping[str, Any] | None) -> str:
    """The structures that moved farthest, beside their starts."""
    finite = [place for place in done if place.info["finite"]]
    chosen = sorted(finite, key=lambda place: -float(place.info.get("moved", 0)))[:MOST]
    pairs = []
    for place in chosen:
        relaxed, info = records.atoms_of(place), place.info
        start = _start(path, str(info["source"]), starts, len(relaxed))
        label = f"relaxed, {info['n_steps']} steps" + ("" if info["converged"] else " (not converged)")
        shown = ([] if start is None else [("start", start)]) + [(label, relaxed)]
        moved = f": no atom moved farther than {info['moved']:.3g} Å" if "moved" in info else ""
        pairs.append((f"{info['source']}, {relaxed.get_chemical_formula()}{moved}", side_by_side(shown)))
    most = f"The {MOST} that moved farthest of {len(finite)}." if len(finite) > MOST else ""
    large = [caption for caption, views in pairs if not views]
    notes = [html.paragraph(most, "note")] if most else []
    notes += [html.paragraph(f"Too large to be drawn here: {', '.join(large)}", "note")] if large else []
    notes += [html.paragraph(_elsewhere(path), "note")] if pairs else []
    return "\n".join([*notes, html.structures(*with_elements(pairs))])


def _start(path: Path, source: str, starts: Mapping[str, Any] | None, n_atoms: int) -> ase.Atoms | None:
    """The start of this name, from what is given or from its file; None if it is not there any more."""
    if starts is not None:
        known = starts.get(source)
        return to_ase(known) if isinstance(known, System) else known
    name, _, number = source.rpartition("#")
    for place in (Path(name), path.parent / Path(name).name):
        with contextlib.suppress(Exception):  # moved, changed, or of a kind that takes more to be read
            if place.stat().st_size <= MOST_BYTES:
                start: Any = ase.io.read(place, index=int(number))
                return start if len(start) == n_atoms else None
    return None


def _relaxation_plots(done: Sequence[records.Place]) -> str:
    infos = [place.info for place in done if place.info["finite"]]
    if not infos:
        return ""
    steps, converged = ([info[key] for info in infos] for key in ("n_steps", "converged"))
    says = "structures that have converged against steps; how far atoms moved"
    drawn = html.drawn(plots.relaxations, steps, converged, records.panels(infos), "", says=says)
    return f'<div class="wide">{drawn}</div>'


def _relaxation_table(path: Path, places: Sequence[records.Place]) -> str:
    rows = []
    for place in places:
        info = place.info
        volume = 100 * float(info["volume_change"]) if "volume_change" in info else ""
        size = records.n_atoms(place)
        row = [info.get("number", ""), info["source"], size, info["n_steps"], "yes" if info["converged"] else "no"]
        numbers = [float(info[key]) if key in info else "" for key in ("fmax", "energy", "moved")]
        rows.append([*row, *numbers, volume, info.get("error", "")])
    return html.table(COLUMNS, rows, path.with_suffix(".csv").name)


def _simulation_settings(paths: dynamics.output.Paths, first: ase.Atoms) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("trajectory", paths.trajectory.name), ("atoms", len(first))]
    with contextlib.suppress(ValueError, OSError):  # it may have been removed
        _, settings = restart.described(paths.restart)
        settings = {key: value for key, value in settings.items() if key != "type" and value not in (None, [])}
        settings |= {"model": str(settings["model"])[:12]} | (
            {"pressure": settings["pressure"] / units.GPA} if "pressure" in settings else {}
        )
        rows += [(f"{key} ({SETTINGS[key]})" if key in SETTINGS else key, value) for key, value in settings.items()]
    return rows


def _elsewhere(path: Path) -> str:
    """Which programs open the file."""
    if path.suffix in (".h5", ".hdf5"):
        return (
            f"{path.name} is HDF5, one array a quantity: h5py reads it. .extxyz and .traj open in OVITO and ASE's GUI."
        )
    others = "" if path.suffix == ".traj" else "OVITO and "
    return f"{others}ASE's GUI open the file: ase gui {path.name}. For VESTA: ase convert -n -1 {path.name} last.cif"


def _thinned(lines: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: _thin(values) for name, values in lines.items()}


def _thin(values: np.ndarray) -> np.ndarray:
    """About a thousand of the values, evenly spread."""
    return values[:: max(1, len(values) // 1000)]
