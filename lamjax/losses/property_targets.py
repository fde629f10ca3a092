"""Targets of properties: quantities and their units, and what of the values in files cannot be right."""

from typing import Annotated, Any

import jax
import numpy as np
from pydantic import Field

from lamjax import properties, units
from lamjax.config import configuration
from lamjax.system import System, masses, real, volume

MODULI = {"GPa": 1.0, "kbar": 0.1, "eV/Å³": 1 / units.GPA}
JOULES = 96485.33212  # J/mol of one eV
HEAT = {"J/(mol K)": 1.0, "eV/K": JOULES}
UNITS = {  # of each quantity, and how much of the first one it is
    "volume": {"Å³": 1.0},
    "volume_per_atom": {"Å³": 1.0},
    "density": {"g/cm³": 1.0, "kg/m³": 1e-3},
    "lengths": {"Å": 1.0},
    "bulk_modulus": MODULI,
    "shear_modulus": MODULI,
    "young_modulus": MODULI,
    "elastic_tensor": MODULI,
    "heat_capacity": HEAT,  # of the cell as it is given, at constant volume, as phonopy has it
    "heat_capacity_per_atom": HEAT,
}
SHAPES = {"lengths": (3,), "elastic_tensor": (6, 6)}
LARGEST = {name: 3000.0 for name, unit in UNITS.items() if unit is MODULI}  # GPa; diamond has 1100
ELASTIC = {name for name, unit in UNITS.items() if unit is MODULI}
VIBRATIONAL = {name for name, unit in UNITS.items() if unit is HEAT}
SKEW = 0.05  # of the largest constant; the asymmetry of calculations is less
DULONG_PETIT = 3 * units.KB * JOULES  # J/(mol K) of an atom: no harmonic crystal holds more
AWAY = 2.0  # a target volume that many times that of the structure belongs to another cell or has another unit,
# and a crystal that becomes so much larger or smaller has fallen apart


@configuration
class TargetConfig:
    """One quantity that is compared with targets."""

    name: Annotated[str, Field(description="one of UNITS")]
    weight: Annotated[float, Field(ge=0)] = 1.0
    scale: Annotated[
        float | None,
        Field(
            gt=0,
            description="in the first unit of the quantity: an error of this size counts 1; None, in a run of "
            "fine-tuning: a tenth of the median target",
        ),
    ] = 1.0
    unit: Annotated[str | None, Field(description="of the targets; None: the first one of the quantity")] = None

    def __post_init__(self) -> None:
        if self.name not in UNITS:
            raise ValueError(f"Unknown property {self.name!r}; known: {', '.join(UNITS)}.")
        if self.unit is not None and self.unit not in UNITS[self.name]:
            raise ValueError(f"{self.name} has no unit {self.unit!r}; known: {', '.join(UNITS[self.name])}.")


def target_value(target: TargetConfig, value: Any, system: System, name: str) -> np.ndarray | None:
    """A target of a structure in the first unit of its quantity; None if there is none. ValueError for what is wrong.

    `name` is what messages call the structure.
    """
    if value is None:
        return None
    value, shape = np.asarray(value, np.float64), SHAPES.get(target.name, ())
    if value.shape != shape or not np.all(np.isfinite(value)):
        raise ValueError(
            f"{target.name} of structure {name} is {value.tolist()}: expected "
            f"{'a finite number' if not shape else f'finite numbers of shape {shape}'}."
        )
    known, n_atoms = UNITS[target.name], int(np.sum(np.asarray(real(system))))
    value = value * known[target.unit or next(iter(known))]
    problem = f"{target.name} of structure {name} is {np.abs(value).max():.4g} {next(iter(known))}"
    remedy = f"Say the unit of the targets (TargetConfig(unit=...)): {', '.join(known)}."
    if np.abs(value).max() > LARGEST.get(target.name, np.inf):
        raise ValueError(f"{problem}, which no crystal has. {remedy}")
    if target.name in ELASTIC:
        _check_stable(target.name, value, name)
    if target.name in VIBRATIONAL:
        most = DULONG_PETIT * (n_atoms if target.name == "heat_capacity" else 1)
        if not 0 <= value <= 1.01 * most:
            raise ValueError(
                f"{problem}; vibrations of its {n_atoms} atoms hold between 0 and {most:.4g} (3 k for each). Is it of "
                f"another cell, or at constant pressure? {remedy}"
            )
    own = _of_structure(target.name, system, n_atoms)
    if own is not None and np.any((value > AWAY * own) | (value < own / AWAY)):
        raise ValueError(
            f"{problem}, that of the structure as it is given {np.array2string(np.asarray(own), precision=4)}. Is the "
            f"target of another cell (primitive, conventional, per atom), or in another unit? {remedy}"
        )
    return value


def _check_stable(quantity: str, value: np.ndarray, name: str) -> None:
    """ValueError for moduli that no crystal at a minimum has: not positive, or a tensor that is not symmetric."""
    remedy = "Leave out the target; data bases write such values where there is none, and for unstable crystals."
    if not value.ndim and value <= 0:
        raise ValueError(f"{quantity} of structure {name} is {value:.4g} GPa, which is not above 0. {remedy}")
    if value.ndim and (skew := np.abs(value - value.T)).max() > SKEW * np.abs(value).max():
        i, j = np.unravel_index(np.argmax(skew), skew.shape)
        raise ValueError(
            f"{quantity} of structure {name} is not symmetric: C{i + 1}{j + 1} is {value[i, j]:.4g} GPa and "
            f"C{j + 1}{i + 1} {value[j, i]:.4g}. Write all 36 numbers, row by row, in the order xx yy zz yz xz xy."
        )


def _of_structure(name: str, system: System, n_atoms: int):
    """The quantity of the structure as it is given; None for what its geometry alone does not say."""
    size = float(volume(jax.tree.map(np.asarray, system)))
    match name:
        case "volume":
            return size
        case "volume_per_atom":
            return size / n_atoms
        case "density":
            return properties.DENSITY * float(np.sum(masses(system))) / size
        case "lengths":
            return np.linalg.norm(np.asarray(system.cell), axis=-1)
    return None
