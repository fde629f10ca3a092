"""Any potential as an ASE calculator."""

import contextlib
import functools
import math
import warnings
from pathlib import Path

import ase.calculators.calculator as base
import jax
import numpy as np

from lamjax import neighbors as neighbor_lists
from lamjax import units
from lamjax.arguments import ArgumentError, describe
from lamjax.checkpoints import load
from lamjax.neighbors import Neighbors
from lamjax.neighbors.host import pairs
from lamjax.neighbors.types import round_up
from lamjax.potential import cast_params, check_elements, predict, select
from lamjax.system import System, host_system


class Calculator(base.Calculator):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³, Voigt, positive in tension) of a model.

    `model` is a file that `lamjax.load` opens (`head` chooses among several heads), or a pair (potential, parameters).
    `dtype` is the precision of positions and parameters. "float64" works whether or not x64 is on: it is switched on
    by `jax.enable_x64` around the calculator's own computations, nowhere else. Neighbour lists are made on the host;
    their widths grow in steps and never shrink, so that a simulation compiles few programs.

    Raises ValueError for an element that the potential does not know, PropertyNotImplementedError for the stress of a
    structure that is not periodic in all three directions, and FloatingPointError for results that are not finite.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(self, model: str | Path | tuple, head: str | None = None, dtype="float64", **kwargs):
        super().__init__(**kwargs)
        self.dtype = np.dtype(dtype)
        with self._precision():
            potential, params = load(model, head, self.dtype) if isinstance(model, str | Path) else _pair(model)
            if head is not None and potential.head != head:
                potential = select(potential, head)
            self.potential, self.params = potential, cast_params(params, self.dtype)
        self._truncated = False
        self._capacities = tuple(0 for _ in self.potential.shells)
        self._predict = jax.jit(functools.partial(predict, self.potential))

    def __getstate__(self) -> dict:
        """For pickle: parameters as numpy arrays, which keep float64 wherever they are read; nothing compiled."""
        kept = {name: value for name, value in vars(self).items() if name != "_predict"}
        return kept | {"params": jax.tree.map(np.asarray, self.params)}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        with self._precision():
            self.params = cast_params(self.params, self.dtype)
        self._predict = jax.jit(functools.partial(predict, self.potential))

    def calculate(self, atoms=None, properties=("energy",), system_changes=base.all_changes):
        """Compute everything that the structure allows; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        periodic = bool(self.atoms.pbc.all())
        if "stress" in properties and not periodic:
            raise base.PropertyNotImplementedError(
                f"Stress needs a volume: the structure has pbc {self.atoms.pbc.tolist()}, all three must be True."
            )
        system = host_system(self.atoms, self.dtype)
        check_elements(self.potential, system)
        with self._precision():
            result = jax.tree.map(np.asarray, self._predict(self.params, system, self._neighbors(system)))
        if not all(np.isfinite(part).all() for part in result):
            raise FloatingPointError(self._not_finite(system, result))
        energy = float(result.energy)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": np.asarray(result.atomic_energies, np.float64),
            "forces": np.asarray(result.forces, np.float64),
        }
        if periodic:
            stress = units.virial_to_stress(np.asarray(result.virial, np.float64), self.atoms.get_volume())
            self.results["stress"] = units.to_voigt(stress)

    def _neighbors(self, system: System) -> Neighbors:
        """The list of this structure, in arrays at least as wide as any before."""
        lists = neighbor_lists.host_neighbors(system, self.potential.shells, self._capacities)
        if lists.overflow or not self._capacities[0]:
            self._capacities = grow(self._capacities, lists.found, self.potential.shells)
            lists = neighbor_lists.host_neighbors(system, self.potential.shells, self._capacities)
        if lists.truncated and not self._truncated:
            self._truncated = True
            warnings.warn(_TRUNCATED.format(lists.found.tolist(), list(self.potential.shells)), stacklevel=4)
        # only a rebuild on the device needs the images; their number would make a new shape of every new cell
        return lists._replace(offsets=np.zeros((0, 3), np.int32))

    def _not_finite(self, system: System, result) -> str:
        """What is known of the reason for a NaN."""
        distances = pairs(system, self.potential.cutoff)[3]
        closest = f"the closest atoms are {distances.min():.3g} Å apart" if len(distances) else "no atom has neighbours"
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.params))
        return (
            f"The energy is {float(result.energy):g} and not all results are finite: {closest}, and the parameters are "
            f"{'' if finite else 'not '}all finite. Separate atoms that coincide, or load parameters that are finite."
        )

    def _precision(self):
        """A context in which `dtype` exists."""
        return jax.enable_x64(True) if self.dtype == np.float64 else contextlib.nullcontext()


_TRUNCATED = (
    "An atom has {} neighbours within the model's shells {}, of which the model keeps the nearest `sel`, as DeePMD-kit "
    "does. Said once for this calculator."
)


def _pair(model) -> tuple:
    """A pair (potential, parameters); ArgumentError for anything else."""
    pair = tuple(model) if isinstance(model, list | tuple) and not hasattr(model, "_fields") else (model,)
    if len(pair) != 2 or not hasattr(pair[0], "atomic_energies"):
        raise ArgumentError(
            f"Calculator takes a model file or a pair (potential, params), got {describe(model)}. For example "
            "Calculator(lamjax.load('model.lamjax'))."
        )
    return pair


def grow(capacities: tuple[int, ...], found, shells, spare: float = 0.15) -> tuple[int, ...]:
    """Slots for each shell: what was found and `spare` more, in eights, never fewer than before, `sel` at most."""
    wanted = [round_up(math.ceil((1 + spare) * int(f)), 8) for f in found]
    limits = [w if s.sel is None else min(w, round_up(s.sel)) for w, s in zip(wanted, shells, strict=True)]
    grown = [max(old, new) for old, new in zip(capacities, limits, strict=True)]
    return tuple(min(width, grown[0]) for width in grown)
