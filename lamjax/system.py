"""Atoms in a cell, their labels, and the way from and to ASE."""

import warnings
from typing import Any, NamedTuple

import ase
import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lamjax import lattice, summaries, units
from lamjax.lattice import face_distances, home_shift

PARAMETERS = ("fparam", "aparam", "charge_spin")  # fields of a System that a model may take beside the atoms
CHARGE_SPIN = ((-100, 99), (0, 99))  # the least and the largest charge (e) and spin multiplicity
MASSES = np.where(np.arange(119) > 0, np.nan_to_num(ase.data.atomic_masses, nan=1.0), 0.0)  # amu, 0 for padding


class System(NamedTuple):
    """One structure, or several; each of them may have a leading axis of a batch. Padded atoms come last, number 0.

    Several structures are one list of atoms: `structure` says whose an atom is, and cell, pbc, fparam and charge_spin
    have an axis of structures before their own.
    """

    positions: Float[Array, "*batch n_atoms 3"]  # Å, Cartesian, unwrapped
    numbers: Int[Array, "*batch n_atoms"]  # atomic number, 0 = padding
    cell: Float[Array, "*batch 3 3"]  # Å, rows are lattice vectors; zero rows allowed where not periodic
    pbc: Bool[Array, "*batch 3"]
    fparam: Float[Array, "*batch n_fparam"] | None = None  # frame parameters, for heads that take them
    aparam: Float[Array, "*batch n_atoms n_aparam"] | None = None  # atomic parameters, likewise
    structure: Int[Array, "*batch n_atoms"] | None = None  # None: there is one
    charge_spin: Int[Array, "*batch 2"] | None = None  # charge (e) and spin multiplicity, for models that take them

    def __repr__(self) -> str:
        return summaries.of_system(self)

    @property
    def n_atoms(self) -> int:
        """Width of the atom axis, padding included."""
        return self.numbers.shape[-1]


class Labels(NamedTuple):
    """Reference values of a structure from quantum chemistry. A missing label is 0 with weight 0."""

    energy: Float[Array, "*batch"]  # eV
    forces: Float[Array, "*batch n_atoms 3"]  # eV/Å
    virial: Float[Array, "*batch 3 3"]  # eV, -dE/dstrain
    weights: Float[Array, "*batch 3"]  # of energy, forces, virial; 0 = label missing


def from_ase(atoms: ase.Atoms, dtype: DTypeLike | None = None) -> System:
    """The System of an ASE structure, positions and cell in `dtype` (default: jax's default float).

    Frame and atomic parameters (DeePMD-kit's fparam, aparam) are taken from `info["fparam"]` and `arrays["aparam"]`,
    charge and spin multiplicity from `info["charge_spin"]`.
    In float32, atoms that are farther than a cell from the home cell are moved back by lattice vectors (see `cast`).
    Raises ValueError for NaN or infinite positions, a site without an element, and a periodic direction without a
    lattice vector; `allocate` raises for two atoms on one place.
    """
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    return jax.tree.map(jnp.asarray, host_system(atoms, dtype))


def host_system(atoms: ase.Atoms, dtype: DTypeLike | None = np.float64) -> System:
    """As `from_ase`, with numpy arrays that stay on the host."""
    check_atoms(atoms)
    system = System(
        positions=np.asarray(atoms.get_positions(), np.float64),
        numbers=np.asarray(atoms.get_atomic_numbers(), np.int32),
        cell=np.asarray(atoms.cell.array, np.float64),
        pbc=np.asarray(atoms.pbc, bool),
        **parameters(
            len(atoms), atoms.info.get("fparam"), atoms.arrays.get("aparam"), atoms.info.get("charge_spin"), dtype
        ),
    )
    return cast(system, dtype)


def parameters(
    n_atoms: int,
    fparam: Array | None = None,
    aparam: Array | None = None,
    charge_spin: Array | None = None,
    dtype: DTypeLike | None = np.float64,
) -> dict[str, np.ndarray]:
    """The fields `PARAMETERS` of a structure, checked, as numpy arrays; what is None is left out."""
    given = {
        "fparam": _parameters(fparam, (-1,), "fparam", dtype),
        "aparam": _parameters(aparam, (n_atoms, -1), "aparam", dtype),
        "charge_spin": _charge_spin(charge_spin),
    }
    return {name: value for name, value in given.items() if value is not None}


def cast(system: System, dtype: DTypeLike | None) -> System:
    """One structure (numpy) with its floats in `dtype`; where that is less than float64, near home before.

    A coordinate of thousands of Å has few digits left in float32 for the distances to its neighbours, whose images may
    be as near as one likes. So atoms of an unwrapped trajectory are moved by `home_shift`: the same crystal.
    """
    if np.dtype(dtype).itemsize < system.positions.dtype.itemsize:
        system = moved_by(system, home_shift(system.positions, system.cell, system.pbc))
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" and x.dtype != dtype else x, system)


def as_jax_casts(system: System) -> System:
    """One structure (numpy) in the floats that jax makes of it, which are float32 where x64 is off; see `cast`."""
    return cast(system, jax.dtypes.canonicalize_dtype(system.positions.dtype))


def lost_digits(system: System) -> str:
    """A warning for one structure with atoms far from the home cell, of which jax makes float32; else nothing."""
    dtype = jax.dtypes.canonicalize_dtype(system.positions.dtype)
    single = np.ndim(system.numbers) == 1 and system.structure is None
    if dtype.itemsize >= 8 or not single or not np.any(shift := home_shift(system.positions, system.cell, system.pbc)):
        return ""
    rounding = np.finfo(dtype).eps * np.abs(np.asarray(system.positions)).max()
    return (
        f"An atom is {np.abs(shift).max()} lattice vectors away from the home cell; jax makes {dtype} of its position, "
        f"which is rounded to {rounding:.1g} Å. Move such atoms home before: lamjax.from_ase(atoms) and "
        f"lamjax.data.read(file, '{dtype}') do it, of a System lamjax.system.as_jax_casts(system) does. Or compute in "
        "float64: with jax.enable_x64(True)."
    )


def moved_by(system: System, shift: Array) -> System:
    """The structure (numpy) with its atoms moved by whole numbers (n_atoms, 3) of lattice vectors."""
    if not np.any(shift):
        return system
    return system._replace(positions=system.positions + shift @ np.asarray(system.cell, np.float64))


def as_system(structure: System | ase.Atoms) -> System:
    """A System as it is, but for whole-numbered positions or cell, which become floating; that of an ASE structure.

    Raises TypeError for anything else.
    """
    if isinstance(structure, ase.Atoms):
        return host_system(structure, jax.dtypes.canonicalize_dtype(float))
    if not isinstance(structure, System):
        raise TypeError(
            f"A structure is a lamjax.System or an ase.Atoms, got {type(structure).__name__}. "
            "lamjax.data.read reads files; relaxation.relax_structures takes many structures."
        )
    arrays = ("positions", "numbers", "cell", "pbc")
    listed = {name: np.asarray(x) for name in arrays if isinstance(x := getattr(structure, name), list | tuple)}
    structure = structure._replace(**listed)
    kinds = {name: np.dtype(getattr(structure, name).dtype) for name in ("positions", "cell")}
    whole = [name for name, kind in kinds.items() if not jnp.issubdtype(kind, jnp.floating)]
    floats = [kind for name, kind in kinds.items() if name not in whole]
    dtype = floats[0] if floats else jax.dtypes.canonicalize_dtype(float)
    return structure._replace(**{name: getattr(structure, name).astype(dtype) for name in whole})


def to_ase(system: System, prediction: Any = None) -> ase.Atoms:
    """The ASE structure of one System, or of one `Relaxation` with its energy, forces and stress.

    With a `prediction`, or whatever else has energy, forces and virial of the system, these are ASE's results; so are
    `atomic_energies` where there are any. A stress needs three periodic directions. Padded atoms are left out.
    """
    if not isinstance(system, System) and isinstance(getattr(system, "system", None), System):
        atoms = to_ase(system.system, system)
        atoms.calc.results["free_energy"] = atoms.calc.results["energy"]
        return atoms
    if prediction is not None:
        return _with_results(to_ase(system), np.asarray(system.numbers) > 0, prediction)
    if not isinstance(system, System):
        raise TypeError(f"to_ase takes a System or a Relaxation, got {type(system).__name__}.")
    check_single(system, "to_ase")
    numbers = np.asarray(system.numbers)
    real = numbers > 0
    atoms = ase.Atoms(
        numbers=numbers[real],
        positions=np.asarray(system.positions, np.float64)[real],
        cell=np.asarray(system.cell, np.float64),
        pbc=np.asarray(system.pbc),
    )
    if system.fparam is not None:
        atoms.info["fparam"] = np.asarray(system.fparam, np.float64)
    if system.aparam is not None:
        atoms.arrays["aparam"] = np.asarray(system.aparam, np.float64)[real]
    if system.charge_spin is not None:
        atoms.info["charge_spin"] = np.asarray(system.charge_spin, int)
    return atoms


def _with_results(atoms: ase.Atoms, real: np.ndarray, prediction: Any) -> ase.Atoms:
    """The structure with energy, forces and stress of its `real` atoms as results of a single-point calculator."""
    results: dict[str, Any] = {"energy": float(prediction.energy)}
    results["forces"] = np.asarray(prediction.forces, np.float64)[real]
    if getattr(prediction, "atomic_energies", None) is not None:
        results["energies"] = np.asarray(prediction.atomic_energies, np.float64)[real]
    if atoms.pbc.all():
        stress = units.virial_to_stress(np.asarray(prediction.virial, np.float64), atoms.get_volume())
        results["stress"] = units.to_voigt(stress)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def fixed_components(atoms: ase.Atoms) -> Bool[np.ndarray, "n_atoms 3"]:
    """True where FixAtoms or FixCartesian hold a Cartesian component; `other_constraints` names what does not count."""
    from ase.constraints import FixAtoms, FixCartesian

    fixed = np.zeros((len(atoms), 3), bool)
    for constraint in atoms.constraints:
        match constraint:
            case FixAtoms():
                fixed[constraint.index] = True
            case FixCartesian():
                fixed[constraint.index] |= constraint.mask
    return fixed


def fixed_mask(fixed: Array | None, numbers: Int[Array, "*batch n_atoms"]) -> Bool[Array, "*batch n_atoms 3"]:
    """`fixed` as one flag a Cartesian component; one flag an atom stands for its three. numpy stays numpy.

    Raises ValueError for another shape, and for numbers where flags are meant.
    """
    if not isinstance(fixed, jax.Array):
        fixed = np.asarray(fixed)
    shape = np.shape(numbers)
    if fixed.shape not in (shape, (*shape, 3)):
        raise ValueError(
            f"fixed has shape {fixed.shape}; expected {(*shape, 3)}, a flag a component, or {shape}, a flag an atom."
        )
    if fixed.dtype != bool and (fixed.shape == shape or fixed.dtype == object):
        raise ValueError(
            f"fixed has numbers of type {fixed.dtype}; expected True where an atom does not move. "
            "For numbers of atoms: numpy.isin(numpy.arange(n_atoms), the_numbers)."
        )
    fixed = fixed != 0
    return fixed if fixed.ndim > len(shape) else fixed[..., None] & np.ones(3, bool)


def constraints(fixed: Bool[np.ndarray, "n_atoms 3"]) -> list:
    """ASE's constraints that hold these components: the inverse of `fixed_components`."""
    from ase.constraints import FixAtoms, FixCartesian

    whole = fixed.all(axis=1)
    held: list = [FixAtoms(np.flatnonzero(whole))] if whole.any() else []
    return held + [FixCartesian([int(k)], fixed[k]) for k in np.flatnonzero(fixed.any(axis=1) & ~whole)]


def other_constraints(atoms: ase.Atoms) -> tuple[str, ...]:
    """Kinds of the constraints that `fixed_components` does not express, for a warning."""
    from ase.constraints import FixAtoms, FixCartesian

    return tuple(sorted({type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms | FixCartesian)}))


def kept_by_constraints(atoms: ase.Atoms) -> Bool[np.ndarray, "n_atoms 3"]:
    """`fixed_components`; warns of constraints that it does not express."""
    if others := other_constraints(atoms):
        warnings.warn(
            f"The constraints {', '.join(others)} do not count: only FixAtoms and FixCartesian.", stacklevel=3
        )
    return fixed_components(atoms)


def check_single(system: System, what: str) -> None:
    """Raise ValueError for several structures where `what` is meant for one."""
    if np.ndim(system.numbers) != 1 or system.structure is not None:
        raise ValueError(
            f"{what} takes one structure, got several in arrays of shape {np.shape(system.numbers)}. Take one of a "
            "batch with pytree.take; a row of data.batches is taken apart by its `structure`."
        )


def check_atoms(atoms: ase.Atoms) -> None:
    """Raise ValueError, saying which atom, for anything that no potential can evaluate."""
    positions, numbers, cell = atoms.get_positions(), atoms.get_atomic_numbers(), atoms.cell.array
    if len(atoms) == 0:
        raise ValueError("The structure has no atoms.")
    if bad := np.flatnonzero(~np.isfinite(positions).all(axis=1)).tolist():
        raise ValueError(f"Position of atom {bad[0]} is {positions[bad[0]]}: not finite. Remove or repair the frame.")
    if not np.isfinite(cell).all():
        raise ValueError(f"The cell holds a value that is not finite: {cell.tolist()}.")
    if bad := np.flatnonzero((numbers <= 0) | (numbers > 118)).tolist():
        raise ValueError(f"Atom {bad[0]} has atomic number {numbers[bad[0]]}; expected an element, 1 to 118.")
    for axis in np.flatnonzero(atoms.pbc):
        if np.linalg.norm(cell[axis]) < 1e-8:
            raise ValueError(
                f"The structure is periodic along axis {axis} but lattice vector {axis} is zero. Set pbc or cell."
            )
    if atoms.pbc.any() and face_distances(cell, atoms.pbc)[atoms.pbc].min() < 1e-3:
        raise ValueError(f"The lattice vectors of the periodic directions are linearly dependent: {cell.tolist()}.")


def _parameters(value: Any, shape: tuple[int, ...], name: str, dtype: DTypeLike | None) -> Any:
    """Frame or atomic parameters as a finite array of `shape`; None stays None."""
    if value is None:
        return None
    value = np.asarray(value, dtype)
    if shape[0] > 0 and value.size % shape[0]:
        raise ValueError(f"{name} has {value.size} numbers for {shape[0]} atoms; expected as many for each of them.")
    value = value.reshape(shape)
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds a value that is not finite: {value.tolist()}.")
    return value


def _charge_spin(value: Any) -> np.ndarray | None:
    """Charge and spin multiplicity as two int32; None stays None."""
    if value is None:
        return None
    numbers = np.asarray(value, np.float64).reshape(-1)
    (least, most), (fewest, largest) = CHARGE_SPIN
    ranges = CHARGE_SPIN if len(numbers) == 2 else ()
    if not ranges or any(x != np.round(x) or not a <= x <= b for x, (a, b) in zip(numbers, ranges, strict=True)):
        raise ValueError(
            f"charge_spin is {numbers.tolist()}; expected two whole numbers, the charge of the structure ({least} to "
            f"{most} e) and its spin multiplicity ({fewest} to {largest})."
        )
    return numbers.astype(np.int32)


def pad(system: System, n_atoms: int) -> System:
    """The system with atoms of number 0 appended up to `n_atoms` (numpy stays numpy)."""
    missing = n_atoms - system.n_atoms
    if missing < 0:
        raise ValueError(
            f"The structure has {system.n_atoms} atoms, the bucket {n_atoms}. Choose n_atoms >= {system.n_atoms}."
        )
    xp = np if isinstance(system.positions, np.ndarray) else jnp
    return system._replace(
        positions=xp.pad(system.positions, ((0, missing), (0, 0))),
        numbers=xp.pad(system.numbers, (0, missing)),
        aparam=None if system.aparam is None else xp.pad(system.aparam, ((0, missing), (0, 0))),
    )


def pad_labels(labels: Labels, n_atoms: int) -> Labels:
    """The labels with zero forces appended up to `n_atoms` (numpy)."""
    return labels._replace(forces=np.pad(labels.forces, ((0, n_atoms - labels.forces.shape[-2]), (0, 0))))


def strain(system: System, epsilon: Float[Array, "*n_structures 3 3"]) -> System:
    """The system after the homogeneous deformation x -> x (1 + ε_sym) of positions and cell, one ε a structure."""
    symmetric = (epsilon + jnp.swapaxes(epsilon, -1, -2)) / 2
    return system._replace(
        positions=system.positions + transform(system.positions, of_atoms(system, symmetric)),
        cell=system.cell + system.cell @ symmetric,
    )


def scaled(system: System, factor: float | Array) -> System:
    """The system with all lengths multiplied by a factor."""
    return system._replace(positions=factor * system.positions, cell=factor * system.cell)


def of_atoms(system: System, values: Any) -> Any:
    """Values of structures (n_structures, ...) for each atom; the value itself where there is one structure."""
    return values if system.structure is None else values[system.structure]


def of_structures(system: System, values: Float[Array, " n_atoms"]) -> Float[Array, "*n_structures"]:
    """The sum over the atoms of each structure."""
    if system.structure is None:
        return jnp.sum(values)
    return jax.ops.segment_sum(values, system.structure, len(system.cell), indices_are_sorted=True)


def first_atoms(system: System) -> int:
    """The first atom of the structure, for each atom; 0 where there is one structure."""
    if system.structure is None:
        return 0
    atoms = jnp.arange(system.n_atoms)
    first = jax.ops.segment_min(atoms, system.structure, len(system.cell), indices_are_sorted=True)
    return of_atoms(system, first)


def transform(vectors: Float[Array, "n_atoms *slots 3"], matrices: Float[Array, "*n_atoms 3 3"]) -> Array:
    """vectors @ matrix, with one matrix for all or one for each atom."""
    if matrices.ndim == 2:
        return vectors @ matrices
    matrices = matrices.reshape(len(matrices), *[1] * (vectors.ndim - 2), 3, 3)
    return sum(vectors[..., k, None] * matrices[..., k, :] for k in range(3))  # elementwise: a product of 3 x 3 is slow


def real(system: System) -> Bool[Array, "*batch n_atoms"]:
    """True for atoms, False for padding."""
    return system.numbers > 0


def masses(system: System) -> Float[Array, "*batch n_atoms"]:
    """amu; 0 for padding."""
    return jnp.asarray(MASSES, system.positions.dtype)[system.numbers]


def volume(system: System) -> Float[Array, "*batch"]:
    """|det cell| in Å³; 0 for a structure without a three-dimensional cell."""
    return lattice.volume(system.cell)
