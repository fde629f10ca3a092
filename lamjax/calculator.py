"""Any potential as an ASE calculator."""

import contextlib
import difflib
import functools
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ase
import ase.calculators.calculator as base
import jax
import numpy as np
from jax.typing import DTypeLike

from lamjax import neighbors as neighbor_lists
from lamjax import units
from lamjax.arguments import ArgumentError, describe
from lamjax.checkpoints import load
from lamjax.neighbors import Neighbors
from lamjax.neighbors.host import pairs
from lamjax.potential import Params, Potential, cast_params, check_elements, predict, select
from lamjax.shapes import grow
from lamjax.system import System, host_system


class Calculator(base.Calculator):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³, Voigt, positive in tension) of a model.

    `model` is a file that `lamjax.load` opens (`head` chooses among several heads; `elements`, as in {"OW": "O"}, says
    which element a type of another name is), or a pair (potential, parameters).
    `dtype` is the precision of positions and parameters. "float64" works whether or not x64 is on: it is switched on
    by `jax.enable_x64` around the calculator's own computations, nowhere else. Neighbour lists are made on the host;
    their widths grow in steps and never shrink, so that a simulation compiles few programs.

    Results are computed anew whenever anything has changed that they depend on: also `info["fparam"]`,
    `arrays["aparam"]`, and `params`, which may be replaced. Of ASE's own options `atoms`, `label` and `directory` are
    known; TypeError for any other one.

    Raises ValueError for an element that the potential does not know, PropertyNotImplementedError for the stress of a
    structure that is not periodic in all three directions, and FloatingPointError for results that are not finite.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(
        self,
        model: str | Path | tuple,
        head: str | None = None,
        dtype: DTypeLike | None = "float64",
        elements: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_options(kwargs)
        if elements is not None and not isinstance(model, str | Path):
            raise TypeError(
                "elements says what types of a file are; a pair (potential, params) knows them. Leave `elements` out."
            )
        super().__init__(**kwargs)
        self.dtype = _precision_of(dtype)
        with self._precision():
            potential, params = (
                load(model, head, self.dtype, elements) if isinstance(model, str | Path) else _pair(model)
            )
            if head is not None and potential.head != head:
                potential = select(potential, head)
        self._potential, self.params = potential, params
        self._system: System | None = None  # of the last calculation
        self._truncated = False
        self._capacities = tuple(0 for _ in self.potential.shells)
        self._predict = jax.jit(functools.partial(predict, self.potential))

    def __getstate__(self) -> dict:
        """For pickle: parameters as numpy arrays, which keep float64 wherever they are read; nothing compiled."""
        kept = {name: value for name, value in vars(self).items() if name != "_predict"}
        return kept | {"_params": jax.tree.map(np.asarray, self.params)}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        with self._precision():
            self._params = cast_params(self._params, self.dtype)
        self._predict = jax.jit(functools.partial(predict, self.potential))

    @property
    def potential(self) -> Potential:
        """The potential that is evaluated; it cannot be exchanged."""
        return self._potential

    @property
    def params(self) -> Params:
        """Its parameters, in the precision of the calculator. What was computed with others is forgotten."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        with self._precision():
            self._params = cast_params(params, self.dtype)
        self.reset()

    def set(self, **kwargs: Any) -> dict:
        """Nothing can be set: TypeError for any option."""
        if fixed := [name for name in kwargs if name in (*OWN, *ASES)]:
            raise TypeError(
                f"{', '.join(fixed)} cannot be set later. Make another lamjax.Calculator(model, ...) with it."
            )
        _check_options(kwargs)
        return super().set()

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """The names of the properties that differ from the last calculation: ASE's, and all others of a `System`."""
        changes = super().check_state(atoms, tol)
        if changes or self._system is None:
            return changes or list(base.all_changes)
        both = zip(System._fields, self._system, host_system(atoms, self.dtype), strict=True)
        return [name for name, before, now in both if not _equal(before, now)]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] | None = ("energy",),
        system_changes: Sequence[str] = base.all_changes,
    ) -> None:
        """Compute everything that the structure allows; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        self._system = None
        structure: Any = self.atoms  # a copy that ASE has made
        periodic = bool(structure.pbc.all())
        if "stress" in (properties or ()) and not periodic:
            raise base.PropertyNotImplementedError(
                f"Stress needs a volume: the structure has pbc {structure.pbc.tolist()}, all three must be True."
            )
        system = host_system(structure, self.dtype)
        check_elements(self.potential, system)
        self._system = jax.tree.map(np.array, system)  # copies: arrays in `info` may be changed in place
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
            stress = units.virial_to_stress(np.asarray(result.virial, np.float64), structure.get_volume())
            self.results["stress"] = units.to_voigt(stress)

    def _neighbors(self, system: System) -> Neighbors:
        """The list of this structure, in arrays at least as wide as any before."""
        lists = neighbor_lists.host_neighbors(system, self.potential.shells, self._capacities)
        if lists.overflow or not self._capacities[0]:
            self._capacities = grow(self._capacities, lists.largest_counts, self.potential.shells)
            lists = neighbor_lists.host_neighbors(system, self.potential.shells, self._capacities)
        if lists.truncated and not self._truncated:
            self._truncated = True
            warnings.warn(_TRUNCATED.format(lists.largest_counts.tolist(), list(self.potential.shells)), stacklevel=4)
        # only a rebuild on the device needs the images; their number would make a new shape of every new cell
        return lists._replace(offsets=np.zeros((0, 3), np.int32))

    def _not_finite(self, system: System, result: Any) -> str:
        """The probable reason for energies or forces that are not finite, in words."""
        distances = pairs(system, self.potential.cutoff)[3]
        closest = f"the closest atoms are {distances.min():.3g} Å apart" if len(distances) else "no atom has neighbours"
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.params))
        return (
            f"The energy is {float(result.energy):g} and not all results are finite: {closest}, and the parameters are "
            f"{'' if finite else 'not '}all finite. Separate atoms that coincide, or load parameters that are finite."
        )

    def _precision(self) -> AbstractContextManager[Any]:
        """A context in which `dtype` exists."""
        return jax.enable_x64(True) if self.dtype == np.float64 else contextlib.nullcontext()


OWN = ("model", "head", "dtype", "elements")
ASES = ("restart", "ignore_bad_restart_file", "label", "atoms", "directory")  # options of any calculator
INSTEAD = {  # names in other calculators: the remedy here
    "default_dtype": "dtype",
    "precision": "dtype",
    "model_path": "model",
    "model_paths": "model",
    "path": "model",
    "potential": "model",
    "checkpoint": "model",
    "task": "head",
    "task_name": "head",
    "branch": "head",
    "modal": "head",
    "type_map": "elements",
    "types": "elements",
}


def _check_options(options: dict) -> None:
    """TypeError that names each option that there is not, with the one that is meant."""
    if options.get("restart") is not None:
        raise TypeError("restart: a lamjax calculator keeps no files from which it could start again. Leave it out.")
    if strange := [name for name in options if name not in ASES]:
        raise TypeError(f"lamjax.Calculator: {' '.join(_meant(name, options[name]) for name in strange)}")


def _meant(name: str, value: Any) -> str:
    """One sentence on an option that does not exist, and on what to use instead."""
    if "device" in name:
        return (
            f"There is no option {name}: JAX computes on the first device it finds. Choose with the environment "
            "variable JAX_PLATFORMS (cpu, cuda), or around the calls with jax.default_device(jax.devices('cpu')[0])."
        )
    close = INSTEAD.get(name) or next(iter(difflib.get_close_matches(name, OWN, n=1)), None)
    if close is not None:
        return f"There is no option {name}: use {close}={value!r}."
    return f"There is no option {name}; there are {', '.join((*OWN, *ASES[2:]))}."


def _precision_of(dtype: DTypeLike | None) -> np.dtype:
    """float32 or float64; ValueError for anything else."""
    try:
        precision = np.dtype(dtype)
    except TypeError:
        precision = None
    if precision not in (np.float32, np.float64):
        raise ValueError(f"dtype is {dtype!r}; positions and parameters are computed in float32 or float64.")
    return precision


def _equal(before: Any, now: Any) -> bool:
    """Whether two values, or the lack of them, are the same."""
    return before is now if before is None or now is None else np.array_equal(before, now)


_TRUNCATED = (
    "An atom has {} neighbours within the model's shells {}, of which the model keeps the nearest `sel`, as DeePMD-kit "
    "does. Said once for this calculator."
)


def _pair(model: Any) -> tuple:
    """A pair (potential, parameters); ArgumentError for anything else."""
    pair = tuple(model) if isinstance(model, list | tuple) and not hasattr(model, "_fields") else (model,)
    if len(pair) != 2 or not hasattr(pair[0], "atomic_energies"):
        raise ArgumentError(
            f"Calculator takes a model file or a pair (potential, params), got {describe(model)}. For example "
            "Calculator(lamjax.load('model.lamjax'))."
        )
    return pair
