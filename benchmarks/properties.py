"""What elastic constants and force constants cost: second derivatives here, finite strains and displacements with ASE.

See README.md beside this file.
"""

import argparse
import datetime
import time
from collections.abc import Callable, Sequence

import ase
import ase.build
import jax
import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.units import GPa
from common import RESULTS, hardware, usable_cores, warn_if_busy, write_results

import lamjax
from lamjax import checkpoints, classical, properties
from lamjax.properties import PropertyConfig, survey
from lamjax.relaxation import CellConfig, RelaxConfig, stream
from lamjax.reports import console, table

FMAX, STRAIN, DISPLACEMENT = 1e-3, 0.005, 0.01  # eV/Å; Å
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
PAIR = {"depth": 0.34, "width": 1.36, "distance": 2.87, "cutoff": 6.0, "switch_start": 4.0}  # copper, roughly


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pair", help="pair (a Morse potential), small, or a bundle")
    parser.add_argument("--head", default=None)
    parser.add_argument("--structures", type=int, default=100, help="crystals of two atoms")
    parser.add_argument("--with-ase", type=int, default=10, help="of them by finite strains; its time is scaled")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--gradient", action="store_true", help="the gradient of K by the parameters too (compiles)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    jax.config.update("jax_enable_x64", True)
    machine = hardware(usable_cores())
    warn_if_busy(console, machine, "trust ratios alone.")
    potential, params = model(options)
    crystals = structures(options.structures)
    many, tensors = in_flight(potential, params, crystals)
    one = costs(potential, params, lamjax.from_ase(crystals[0]), options)
    slow, agree = with_ase(potential, params, crystals[: options.with_ase], tensors)
    scale = len(crystals) / max(1, min(options.with_ase, len(crystals)))
    results = {"hardware": machine, "date": datetime.date.today().isoformat(), "model": options.model}
    results |= {"one structure": one, "structures": len(crystals), "largest difference of K": agree}
    results |= {"in flight": many, "finite strains with ASE": {key: scale * x for key, x in slow.items()}}
    results["ratio of processor times"] = scale * slow["processor_s"] / many["warm_processor_s"]
    show(results)
    console.print(f"Written: {write_results('properties', results, RESULTS)}")


def model(options):
    """The potential in float64, so that finite strains are as exact as they can be."""
    if options.model == "pair":
        potential = classical.morse(**PAIR)
        return potential, potential.init()
    return checkpoints.load(options.model, options.head, np.float64)


def structures(n: int) -> list[ase.Atoms]:
    """Hexagonal crystals of copper, strained and with displaced atoms; all have two atoms."""
    rng, crystals = np.random.default_rng(0), []
    for _ in range(n):
        atoms = ase.build.bulk("Cu", "hcp", a=rng.uniform(2.5, 2.6), c=rng.uniform(4.05, 4.25))
        atoms.rattle(0.02, rng=rng)
        crystals.append(atoms)
    return crystals


def timed(call: Callable, repetitions: int) -> float:
    """Processor seconds of a call, the least of several, after a first one that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repetitions):
        began = time.process_time()
        jax.block_until_ready(call())
        seconds.append(time.process_time() - began)
    return min(seconds)


def costs(potential, params, system, options) -> dict[str, float]:
    """Times of properties of one structure as multiples of its energy and forces; those of a supercell likewise."""
    both = survey.padded(potential, system)
    cells = properties.supercell(potential, system, (3, 3, 2))
    large = survey.padded(potential, properties.repeated(jax.tree.map(np.asarray, system), cells))
    forces = jax.jit(lambda p, s, n: lamjax.predict(potential, p, s, n).forces)
    config = PropertyConfig(fmax=np.inf)
    elastic = jax.jit(lambda p, s, n: properties.elastic_tensor(potential, p, s, n, config))
    n = options.repetitions
    small = timed(lambda: forces(params, *both), n)
    wide = timed(lambda: forces(params, *large), n)
    hessian = timed(lambda: survey.force_constants(potential, params, system, cells)[0], n)
    ratios = {
        "elastic tensor / energy and forces": timed(lambda: elastic(params, *both), n) / small,
        "degrees of freedom": 3 * both[0].n_atoms + 9,
        "force constants / energy and forces of the supercell": hessian / wide,
        "columns of the force constants": 3 * system.n_atoms,
        "energy and forces, ms": 1e3 * small,
    }
    if options.gradient:
        slope = jax.jit(jax.grad(lambda p, s, n: properties.elastic_tensor(potential, p, s, n, config).bulk))
        began = time.process_time()
        ratios["gradient of K / energy and forces"] = timed(lambda: slope(params, *both), n) / small
        ratios["compiling the gradient of K, s"] = time.process_time() - began
    return ratios


def in_flight(potential, params, crystals: Sequence[ase.Atoms]) -> tuple[dict[str, float], list[np.ndarray]]:
    """All relaxed in flight, then their elastic constants; with and without compilation."""
    systems, config = [lamjax.from_ase(atoms) for atoms in crystals], PropertyConfig(fmax=10 * FMAX)
    times, tensors = {}, []
    for name in ("first", "warm"):
        began, wall, tensors = time.process_time(), time.monotonic(), [None] * len(systems)
        for outcome in stream(potential, params, systems, RelaxConfig(fmax=FMAX, max_steps=2000, cell=CellConfig())):
            elastic = survey.elastic(potential, params, outcome.relaxation.system, config)
            tensors[outcome.number] = np.array(elastic["elastic_tensor"])
        times |= {f"{name}_processor_s": time.process_time() - began, f"{name}_wall_s": time.monotonic() - wall}
    return times, tensors


def with_ase(potential, params, crystals: Sequence[ase.Atoms], tensors) -> tuple[dict[str, float], float]:
    """The same by ASE: relaxation, twelve strains with relaxing atoms; and the largest relative difference of K."""
    calculator = lamjax.Calculator((potential, params))
    crystals[0].copy().calc = calculator
    calculator.get_stress(crystals[0])  # compiles
    began, wall, away = time.process_time(), time.monotonic(), 0.0
    for atoms, tensor in zip(crystals, tensors, strict=False):
        atoms = atoms.copy()
        atoms.calc = calculator
        FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=FMAX, steps=2000)
        by_ase = finite_strains(atoms)
        k, own = (x[:3, :3].sum() / 9 for x in (by_ase, tensor))
        away = max(away, abs(own / k - 1))
    return {"processor_s": time.process_time() - began, "wall_s": time.monotonic() - wall}, float(away)


def finite_strains(atoms: ase.Atoms) -> np.ndarray:
    """Elastic constants (GPa) by central differences of the stress."""
    tensor = np.zeros((6, 6))
    for k, (i, j) in enumerate(VOIGT):
        stress = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * STRAIN / 2
            strain[j, i] += sign * STRAIN / 2
            one = atoms.copy()
            one.calc = atoms.calc
            one.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            FIRE(one, logfile=None).run(fmax=FMAX, steps=500)
            stress.append(one.get_stress())
        tensor[k] = (stress[0] - stress[1]) / (2 * STRAIN) / GPa
    return tensor


def show(results: dict) -> None:
    """The numbers as a table."""
    rows = [(key, f"{x:.3g}") for key, x in results["one structure"].items()]
    for key in ("in flight", "finite strains with ASE"):
        rows += [(f"{key}, {results['structures']} crystals: {name}", f"{x:.3g}") for name, x in results[key].items()]
    rows += [(key, f"{results[key]:.3g}") for key in ("ratio of processor times", "largest difference of K")]
    console.print(table(f"Properties, {results['model']}", ["", ""], rows))


if __name__ == "__main__":
    main()
