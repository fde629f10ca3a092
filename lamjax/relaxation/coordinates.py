"""Generalised coordinates of the relaxation of one structure: its atoms and a symmetric logarithmic strain of its cell.

Generalised coordinates z are one array of n_atoms + 3 rows (Å): undeformed positions q, then s·u, u the symmetric
logarithmic strain and s = sqrt(number of atoms) Å, which makes cell and atoms about equally stiff. Positions are
q exp(u) and the cell is h₀ exp(u), as in ASE's FrechetCellFilter (which scales by the number of atoms).
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from pydantic import Field

from lamjax import numerics, units
from lamjax.config import configuration
from lamjax.lattice import projector
from lamjax.system import System, real, volume

Rows = Float[Array, "rows 3"]  # one for each atom, and three for the strain of the cell
BatchRows = Float[Array, "n_batch rows 3"]


@configuration
class CellConfig:
    """Settings of a variable cell: the strain components that may change, and an external pressure.

    A structure that is not periodic in all directions is strained within its periodic ones only.
    """

    pressure: Annotated[float, Field(description="eV/Å³; 1 GPa is units.GPA of it")] = 0.0
    components: Annotated[
        tuple[bool, bool, bool, bool, bool, bool], Field(description="Voigt xx yy zz yz xz xy that may change")
    ] = (True, True, True, True, True, True)
    keep: Annotated[
        Literal["nothing", "shape", "volume"],
        Field(description="what stays as it is: shape is a purely isotropic strain"),
    ] = "nothing"

    def __post_init__(self) -> None:
        if not any(self.components):
            raise ValueError("No strain component may change. Leave `cell` out to relax at fixed cell.")
        if self.keep != "nothing" and not all(self.components):
            raise ValueError(f'keep="{self.keep}" is about the whole strain, got components={self.components}.')


def start(system: System) -> Rows:
    """The coordinates of a structure that is its own reference: its positions and no strain."""
    return jnp.concatenate([system.positions, jnp.zeros((3, 3), system.positions.dtype)])


def place(z: Rows, reference: System) -> System:
    """The structure at z; `reference` gives everything that does not move, and the cell before the strain."""
    deformation = _deformation(z, reference)
    return reference._replace(positions=z[:-3] @ deformation, cell=reference.cell @ deformation)


def forces(
    z: Rows,
    reference: System,
    free: Bool[Array, "rows 3"],
    cell: CellConfig | None,
    atomic_forces: Float[Array, "n_atoms 3"],
    virial: Float[Array, "3 3"],
) -> Rows:
    """-∂(E + PV)/∂z (eV/Å) from forces and virial at `place(z, reference)`; 0 on what is not free."""
    if cell is None:
        return jnp.where(free, jnp.concatenate([atomic_forces, jnp.zeros((3, 3), atomic_forces.dtype)]), 0)
    system = place(z, reference)
    total = virial - pressure(cell) * volume(system) * jnp.eye(3, dtype=virial.dtype)  # -d(E + PV)/dε, x -> x(1 + ε)
    deformation, back = jax.vjp(lambda z: _deformation(z, reference), z)
    (on_strain,) = back(jnp.linalg.inv(deformation).T @ total)
    on_atoms = jnp.concatenate([atomic_forces @ deformation.T, jnp.zeros((3, 3), z.dtype)])
    return project(on_atoms + on_strain, reference, free, cell)


def atomic_forces(z: Rows, force: Rows, reference: System) -> Float[Array, "n_atoms 3"]:
    """-∂E/∂x (eV/Å) of the force on z; 0 where an atom is fixed."""
    return force[:-3] @ jnp.linalg.inv(_deformation(z, reference)).T


def free(system: System, fixed: Bool[Array, "n_atoms 3"] | None, cell: CellConfig | None) -> Bool[Array, "rows 3"]:
    """The mask of generalised coordinates that may change."""
    atoms = jnp.broadcast_to(real(system)[:, None], system.positions.shape)
    atoms = atoms if fixed is None else atoms & ~fixed
    if cell is None:
        return jnp.concatenate([atoms, jnp.zeros((3, 3), bool)])
    strain = units.from_voigt(jnp.asarray(cell.components)) & jnp.any(system.pbc) & jnp.any(real(system))
    return jnp.concatenate([atoms, strain])


def project(v: Rows, reference: System, free: Bool[Array, "rows 3"], cell: CellConfig | None) -> Rows:
    """A change (or a slope) restricted to what may change: what is free, and a symmetric strain of periodic directions.

    A symmetric operator.
    """
    v = jnp.where(free, v, 0)
    if cell is None:
        return v
    within = projector(jax.lax.stop_gradient(reference.cell), reference.pbc)
    strain = within @ (v[-3:] + v[-3:].T) @ within / 2
    isotropic = jnp.trace(strain) / 3 * jnp.eye(3, dtype=v.dtype)
    strain = {"nothing": strain, "shape": isotropic, "volume": strain - isotropic}[cell.keep]
    return jnp.where(free, jnp.concatenate([v[:-3], strain]), 0)


def pressure(cell: CellConfig | None) -> float:
    """The pressure (eV/Å³); 0 for a fixed cell."""
    return 0.0 if cell is None else cell.pressure


def largest(force: Rows, reference: System) -> Float[Array, ""]:
    """The largest row (eV/Å), with rows of the strain as ASE scales them, -dE/du per atom; no gradient."""
    force = jax.lax.stop_gradient(force)
    as_ase = jnp.concatenate([force[:-3], force[-3:] / scale(reference)])
    return jnp.sqrt(jnp.max(jnp.sum(as_ase * as_ase, axis=-1), initial=0))


def scale(reference: System) -> Float[Array, ""]:
    """s in z = s u (Å)."""
    return jnp.sqrt(jnp.maximum(jnp.sum(real(reference)), 1).astype(reference.positions.dtype))


def _deformation(z: Rows, reference: System) -> Float[Array, "3 3"]:
    return numerics.expm(z[-3:] / scale(reference))
