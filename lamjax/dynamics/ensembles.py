"""Ensembles: jax-md's integrators in chemists' units, over Cartesian, unwrapped positions."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from pydantic import Field

from lamjax import numerics, pytree, units
from lamjax.config import configuration
from lamjax.domains.division import Domains
from lamjax.domains.moving import Evaluator, evaluator
from lamjax.imports import jax_md
from lamjax.potential import Potential
from lamjax.system import System, masses, volume


@configuration
class NVEConfig:
    """Velocity Verlet at constant energy."""

    timestep: Annotated[float, Field(gt=0, description="fs; jax-md rounds it to float32")] = 0.5
    type: Literal["nve"] = "nve"


@configuration
class NVTConfig:
    """Constant volume and temperature.

    "langevin": BAOAB, every atom feels `friction`; it also takes up what drifts, and momentum is not conserved.
    "nose_hoover": a chain of thermostats, deterministic, with a conserved quantity.
    """

    timestep: Annotated[float, Field(gt=0, description="fs")] = 0.5
    temperature: Annotated[float, Field(gt=0, description="K")] = 300.0
    thermostat: Literal["langevin", "nose_hoover"] = "langevin"
    friction: Annotated[float, Field(gt=0, description="1/fs")] = 0.01
    thermostat_time: Annotated[float, Field(gt=0, description="fs, period of the chain")] = 50.0
    type: Literal["nvt"] = "nvt"


@configuration
class NPTConfig:
    """Constant pressure and temperature: Nosé-Hoover chains on atoms and on the size of the cell; its shape stays."""

    timestep: Annotated[float, Field(gt=0, description="fs")] = 0.5
    temperature: Annotated[float, Field(gt=0, description="K")] = 300.0
    pressure: Annotated[float, Field(description="eV/Å³; 1 GPa is units.GPA of it")] = 0.0
    thermostat_time: Annotated[float, Field(gt=0, description="fs")] = 50.0
    barostat_time: Annotated[float, Field(gt=0, description="fs")] = 500.0
    type: Literal["npt"] = "npt"


Config = NVEConfig | NVTConfig | NPTConfig


class Ensemble(NamedTuple):
    """A potential and the settings of an ensemble. Hashable, so that compiled programs are reused."""

    potential: Potential
    config: Config
    domains: Domains | None = None  # None: all on one device

    @property
    def evaluator(self) -> Evaluator:
        """The functions that compute energies and forces, on one device or over domains."""
        return evaluator(self.potential, self.domains)


def nve(potential: Potential, config: NVEConfig | None = None, domains: Domains | None = None) -> Ensemble:
    """Constant energy: velocity Verlet. With `domains.divide(...)` over several devices, here and below."""
    return Ensemble(potential, config or NVEConfig(), domains)


def nvt(potential: Potential, config: NVTConfig | None = None, domains: Domains | None = None) -> Ensemble:
    """Constant temperature: Langevin, or a Nosé-Hoover chain."""
    return Ensemble(potential, config or NVTConfig(), domains)


def npt(potential: Potential, config: NPTConfig | None = None, domains: Domains | None = None) -> Ensemble:
    """Constant temperature and pressure, after Martyna, Tuckerman and others."""
    return Ensemble(potential, config or NPTConfig(), domains)


def check(ensemble: Ensemble, system: System, fixed: Bool[np.ndarray, "n_atoms 3"]) -> None:
    """Raise ValueError for a structure (numpy) with which this ensemble cannot begin."""
    if n_padded := int(np.sum(system.numbers == 0)):
        raise ValueError(
            f"{n_padded} of {system.n_atoms} atoms are padding (atomic number 0), which has no mass. Begin with the "
            "structure itself: take the atoms whose number is not 0."
        )
    if fixed.shape != (system.n_atoms, 3):
        raise ValueError(f"fixed has shape {fixed.shape}; expected {(system.n_atoms, 3)}, a flag a component.")
    chain = isinstance(ensemble.config, NPTConfig) or getattr(ensemble.config, "thermostat", "") == "nose_hoover"
    if fixed.any() and chain:
        raise ValueError("A Nosé-Hoover chain cannot tell fixed atoms. Use the thermostat langevin, or nve.")
    if isinstance(ensemble.config, NPTConfig) and not system.pbc.all():
        raise ValueError(f"Constant pressure needs a cell that is periodic in all directions, pbc is {system.pbc}.")
    if isinstance(ensemble.config, NPTConfig) and np.linalg.det(system.cell) < 0:  # jax-md's volume has its sign
        raise ValueError("Constant pressure needs a right-handed cell. Swap two lattice vectors.")


class Bath(NamedTuple):
    """Temperature and pressure as run-time values, so that programs serve all of them."""

    kt: Float[Array, ""]  # eV
    pressure: Float[Array, ""]  # eV/Å³


def bath(config: Config) -> Bath:
    """The bath of an ensemble; 0 for what it does not have."""
    kelvin, pressure = (getattr(config, name, 0.0) for name in ("temperature", "pressure"))
    return Bath(np.asarray(kelvin * units.KB), np.asarray(pressure))


def in_any_bath(ensemble: Ensemble) -> Ensemble:
    """The ensemble that all temperatures and pressures share, to compile for."""
    fixed = {"temperature": 1.0, "pressure": 0.0}
    known = {name: value for name, value in fixed.items() if hasattr(ensemble.config, name)}
    return ensemble._replace(config=dataclasses.replace(ensemble.config, **known))


class Surroundings(NamedTuple):
    """Arguments that an integrator passes on to the force function."""

    bath: Bath
    params: Any
    system: System  # whose positions (and cell) are those of the start
    lists: Any  # of the ensemble's evaluator
    fixed: Bool[Array, "n_atoms 3"]


class Integrator(NamedTuple):
    """jax-md's state and step, with the structure it stands for."""

    start: Callable  # (key, surroundings, momenta or None) -> state
    step: Callable  # (state, surroundings) -> state
    place: Callable  # (state, system) -> System
    conserved: Callable  # (state, potential energy, surroundings) -> eV, NaN for ensembles without one


def integrator(ensemble: Ensemble, shapes: Any) -> Integrator:
    """The steps of an ensemble for neighbours in such shapes (those of its evaluator), in the bath of the surroundings.

    Where neighbours are missing, forces are NaN: a step that could be wrong cannot be taken for one that is right.
    """
    config, moves = ensemble.config, _moves(ensemble, shapes)
    chain = "thermostat" if isinstance(config, NPTConfig) else None  # jax-md's name of that of the atoms
    if getattr(config, "thermostat", None) == "nose_hoover":
        chain = "chain"

    def start(key: Array, around: Surroundings, momenta: Array | None) -> Any:
        """jax-md's state, the thermostat told how many degrees of freedom it has to warm."""
        mass = masses(around.system)
        given = {"mass": mass, "momenta": momenta, "around": around}
        first = (around.system.cell,) if chain == "thermostat" else ()
        keywords = {"kT": 0.0} if isinstance(config, NVEConfig) else {}
        state = moves(around)[0](key, around.system.positions, *first, **keywords, **given)
        if chain is None:
            return state
        thermostat = getattr(state, chain).set(degrees_of_freedom=degrees_of_freedom(config, len(mass)))
        # jax-md leaves Python's numbers, which no file can hold
        return pytree.cast(jax.tree.map(jnp.asarray, state.set(**{chain: thermostat})), mass.dtype)

    def step(state: Any, around: Surroundings) -> Any:
        state = moves(around)[1](state, around=around)
        return state.set(momentum=jnp.where(around.fixed, 0, state.momentum))

    def place(state: Any, system: System) -> System:
        box = {"cell": state.box} if chain == "thermostat" else {}
        return system._replace(positions=state.position, **box)

    def conserved(state: Any, potential_energy: Array, around: Surroundings) -> Array:
        """The energy of the atoms and of what they are coupled to (Tuckerman et al., J. Phys. A 39, 5629)."""
        kinetic = kinetic_energy(state)
        if isinstance(config, NVEConfig):
            return potential_energy + kinetic
        if chain is None:
            return jnp.full((), jnp.nan, kinetic.dtype)
        total = potential_energy + kinetic + _of_chain(getattr(state, chain), around.bath.kt)
        if chain == "thermostat":
            total += _of_chain(state.barostat, around.bath.kt)
            total += around.bath.pressure * volume(place(state, around.system))
            total += state.box_momentum**2 / (2 * state.box_mass)
        return total

    return Integrator(start, step, place, conserved)


def _moves(ensemble: Ensemble, shapes: Any) -> Callable:
    """The function of the surroundings that gives jax-md's init and apply for the forces and the bath there."""
    simulate = jax_md().simulate  # late, for it takes a second
    config, evaluate = ensemble.config, ensemble.evaluator
    dt = config.timestep * units.FS

    def force(positions: Array, around: Surroundings, **_: Any) -> Array:
        moved = around.system._replace(positions=positions)
        predicted, status = evaluate.predict(around.params, moved, around.lists, shapes)
        forces = jnp.where(around.fixed, 0, predicted.forces)
        return jnp.where(status.overflow, jnp.nan, forces).astype(positions.dtype)

    def energy(
        positions: Array, box: Array, around: Surroundings, perturbation: float | Array = 1.0, **_: Any
    ) -> Array:
        scaled = around.system._replace(positions=positions * perturbation, cell=box * perturbation)  # by 1 + dx
        value, status = evaluate.energy(around.params, scaled, around.lists, shapes)
        return (value * jnp.where(status.overflow, jnp.nan, 1)).astype(positions.dtype)  # a factor: forces are NaN, too

    def shift(positions: Array, change: Any, around: Surroundings | None = None, **_: Any) -> Array:
        return positions + (change if around is None else jnp.where(around.fixed, 0, change))

    def moves(around: Surroundings) -> Any:
        """jax-md's init and apply in that bath."""
        kt, pressure = (x.astype(around.system.positions.dtype) for x in around.bath)
        if isinstance(config, NVEConfig):
            return simulate.nve(force, shift, dt)
        if isinstance(config, NPTConfig):
            times = [{"tau": t * units.FS} for t in (config.barostat_time, config.thermostat_time)]
            return simulate.npt_nose_hoover(energy, shift, dt, pressure, kt, *times)
        if config.thermostat == "langevin":
            return simulate.nvt_langevin(force, shift, dt, kt, gamma=config.friction / units.FS)
        return simulate.nvt_nose_hoover(force, shift, dt, kt, tau=config.thermostat_time * units.FS)

    return moves


def _of_chain(chain: Any, kt: Array) -> Array:
    """Kinetic and potential energy (eV) of a Nosé-Hoover chain."""
    freedom = jnp.ones(len(chain.position)).at[0].set(chain.degrees_of_freedom)
    return jnp.sum(chain.momentum**2 / (2 * chain.mass) + kt * freedom * chain.position)


def kinetic_energy(state: Any) -> Float[Array, ""]:
    """Σ p²/2m in eV."""
    return jnp.sum((state.momentum**2 / (2 * state.mass)).astype(numerics.widest_float()))


def degrees_of_freedom(config: Config, n_atoms: int, n_fixed: Any = 0) -> Array:
    """Components that can move, less one for each axis along which momentum is conserved: heat is counted by this.

    `n_fixed` components are fixed, in all or along each axis (3,); it may be traced. Momentum is conserved along axes
    where none is, but not by Langevin forces; of one atom all motion is heat. The rotation of a molecule in vacuum is
    counted as heat, too.
    """
    langevin = isinstance(config, NVTConfig) and config.thermostat == "langevin"
    along = n_fixed * np.ones(3, int) if np.ndim(n_fixed) == 0 else n_fixed
    conserved: Any = 0 if langevin or n_atoms == 1 else (along == 0).sum()
    return 3 * n_atoms - (n_fixed if np.ndim(n_fixed) == 0 else n_fixed.sum()) - conserved


def drift(system: System, fixed: Bool[np.ndarray, "n_atoms 3"], momenta: Array | None) -> Float[np.ndarray, "3"]:
    """The velocity of the centre of mass (sqrt(eV/amu)) of several atoms; 0 along axes where a component is fixed."""
    mass = np.asarray(masses(system), np.float64)
    free = ~np.asarray(fixed).any(axis=0) & (len(mass) > 1)
    return np.where(free, np.asarray(momenta, np.float64).sum(axis=0) / mass.sum(), 0)


def thermal_momenta(
    config: Config, system: System, fixed: Array, kelvin: float, seed: int
) -> Float[np.ndarray, "n_atoms 3"]:
    """Maxwell-Boltzmann momenta (sqrt(amu eV)) of just this temperature, without a drift (see `drift`)."""
    mass = np.asarray(masses(system), np.float64)[:, None]
    p = np.random.default_rng(seed).normal(size=(len(mass), 3)) * np.sqrt(mass)
    p[np.asarray(fixed)] = 0
    p -= mass * drift(system, fixed, p)
    now = np.sum(p**2 / mass) / max(1, degrees_of_freedom(config, len(mass), np.sum(fixed, axis=0)))
    return p * np.sqrt(kelvin * units.KB / now) if now > 0 else p
