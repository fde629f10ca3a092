"""Paths through the Brillouin zone along which bands are drawn. On the host."""

from typing import Literal, NamedTuple

import numpy as np
from ase.cell import Cell
from jaxtyping import Float

from lamjax.arguments import ArgumentError
from lamjax.system import System, check_single, real

MISSING = 'The path of seekpath needs that package: pip install "lamjax[properties]", or take by="ase".'


class Path(NamedTuple):
    """Wave vectors along a path through the Brillouin zone, and the positions of its special points."""

    qpoints: Float[np.ndarray, "n_q 3"]  # in reciprocal lattice vectors of the cell
    distances: Float[np.ndarray, " n_q"]  # 1/Å, along the way (without 2π)
    ticks: tuple[tuple[float, str], ...]  # distance and name of the special points


def path(system: System, n_points: int = 100, by: Literal["ase", "seekpath"] = "ase") -> Path:
    """The usual path of the crystal's Bravais lattice, for the cell as it is (not for its primitive cell).

    By ASE (Setyawan and Curtarolo 2010) or by seekpath (Hinuma et al. 2017, needs the extra `properties`).
    """
    check_single(system, "A path of wave vectors")
    match by:
        case "ase":
            return _by_ase(np.asarray(system.cell, np.float64), n_points)
        case "seekpath":
            return _by_seekpath(system, n_points)
    raise ArgumentError(f"by is {by!r}; known: ase, seekpath.")


def _by_ase(cell, n_points: int) -> Path:
    path = Cell(cell).bandpath(npoints=n_points, eps=1e-3)
    distances, places, names = path.get_linear_kpoint_axis()
    turn = 2 * np.pi
    return Path(path.kpts, distances / turn, _merged(zip(places / turn, names, strict=True)))


def _by_seekpath(system: System, n_points: int) -> Path:
    try:
        import seekpath
    except ImportError as error:
        raise ImportError(MISSING) from error
    kept = np.asarray(real(system))
    cell = np.asarray(system.cell, np.float64)
    scaled = np.asarray(system.positions, np.float64)[kept] @ np.linalg.inv(cell)
    path = seekpath.get_path_orig_cell((cell, scaled, np.asarray(system.numbers)[kept]), symprec=1e-3)
    points = {name: np.array(place) for name, place in path["point_coords"].items()}
    reciprocal = np.linalg.inv(cell).T
    lines = [(a, b, np.linalg.norm((points[b] - points[a]) @ reciprocal)) for a, b in path["path"]]
    step = sum(length for *_, length in lines) / max(n_points, 2)
    qpoints, distances, ticks, distance = [], [], [], 0.0
    for a, b, length in lines:
        t = np.linspace(0, 1, max(2, round(length / step)))
        qpoints.append(points[a] + t[:, None] * (points[b] - points[a]))
        distances.append(distance + t * length)
        ticks += [(distance, a), (distance + length, b)]
        distance += length
    names = [(place, name.replace("GAMMA", "G")) for place, name in ticks]
    return Path(np.concatenate(qpoints), np.concatenate(distances), _merged(names))


def _merged(ticks) -> tuple[tuple[float, str], ...]:
    """Names at one place become one: K|U."""
    merged: list[tuple[float, str]] = []
    for place, name in ticks:
        if merged and abs(merged[-1][0] - place) < 1e-9:
            if name not in merged[-1][1].split("|"):
                merged[-1] = (merged[-1][0], f"{merged[-1][1]}|{name}")
        else:
            merged.append((float(place), name))
    return tuple(merged)
