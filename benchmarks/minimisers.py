"""Evaluations until the forces vanish: lamjax's FIRE and L-BFGS, ASE's LBFGS and BFGSLineSearch. See README.md.

Counts do not depend on the machine, so that it may be busy. Sets that are measured replace those in
results/minimisers.json; the table in README.md is written anew of all of them.
"""

import argparse
import datetime
import json
from pathlib import Path

import ase
import ase.io
import jax
import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS, BFGSLineSearch
from common import RESULTS, ROOT, versions, write_results
from inference_report import lines, write

import lamjax
from lamjax import data, relaxation
from lamjax.distillation.exploration import perturbed
from lamjax.relaxation import CellConfig, FireConfig, LBFGSConfig, RelaxConfig
from lamjax.reports import console, progress
from lamjax.system import host_system

DATA = ROOT.parent / "experiments" / "data"
DEFECTS = Path(lamjax.__file__).parent / "assets" / "demo" / "si_defects_heldout.extxyz.gz"
SETS = {  # name: (files, relaxes the cell, standard deviations of strain and displacements)
    "strained": (("bench_wbm972/relaxed",), True, (0.05, 0.05)),
    "displaced": (("materials_pbeu/train", "materials_pbeu/validation", "metals_pbe/train"), False, (0.0, 0.1)),
    "defects": ((), False, (0.0, 0.0)),
}
OWN = {"FIRE": FireConfig(), "L-BFGS": LBFGSConfig()}
ASE = {"LBFGS of ASE": LBFGS, "BFGSLineSearch of ASE": BFGSLineSearch}
SAME = 1e-3  # eV per atom, within which two ends are one minimum
COLUMNS = (
    "set",
    "fmax (eV/Å)",
    "minimiser",
    "structures",
    "converged",
    "evaluations, median",
    "mean",
    "most",
    "of FIRE's, all together",
    "same minimum as FIRE",
    "lower",
    "higher",
)


def main() -> None:
    options = arguments()
    path = options.output / "minimisers.json"
    results = json.loads(path.read_text()) if path.exists() else {"sets": {}}
    with jax.enable_x64(True):  # positions; the network is in float32
        model = lamjax.load("small", dtype=np.float32)
        for name in options.sets:
            chosen = starts(name, options)
            for fmax in options.fmax:
                results["sets"].setdefault(name, {})[f"{fmax:g}"] = measured(model, name, chosen, fmax, options)
                results |= {"date": datetime.date.today().isoformat(), "settings": settings(options)}
                results |= {"versions": versions(("lamjax", "jax", "jaxlib", "ase"))}
                console.print(f"Written: {write_results('minimisers', results, options.output)}")
    if options.readme.exists():
        write("minimisers", markdown(results), options.readme)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--structures", type=int, default=100, help="of every set, drawn at random")
    parser.add_argument("--most-atoms", type=int, default=40)
    parser.add_argument("--fmax", type=float, nargs="+", default=[0.05, 0.01], help="eV/Å")
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--ase", type=int, default=12, help="so many of them with ASE's minimisers")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for minimisers.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose table is written anew")
    return parser.parse_args()


def settings(options) -> dict:
    """What the counts depend on."""
    return {"max_steps": options.max_steps, "same_minimum_ev_per_atom": SAME, "model": "small"}


def starts(name: str, options) -> list[ase.Atoms]:
    """Crystals strained and displaced at random; the defects are the first structures of their relaxations."""
    files, _, (strain, displacement) = SETS[name]
    if files:
        every = [atoms for file in files for atoms in ase.io.read(DATA / f"{file}.extxyz.gz", ":")]
    else:
        every = [atoms for atoms in ase.io.read(DEFECTS, ":") if atoms.info["step"] == 0]
    rng = np.random.default_rng(0)
    known = set(lamjax.load("small")[0].elements)
    fitting = [a for a in every if a.pbc.all() and len(a) <= options.most_atoms and set(a.symbols) <= known]
    chosen = [fitting[k] for k in rng.permutation(len(fitting))[: options.structures]]
    bare = (ase.Atoms(numbers=a.numbers, positions=a.positions, cell=a.cell, pbc=True) for a in chosen)
    return [lamjax.to_ase(perturbed(data.from_atoms(atoms), rng, displacement, strain)) for atoms in bare]


def measured(model, name: str, chosen: list[ase.Atoms], fmax: float, options) -> dict[str, dict]:
    """Evaluations, convergence and energies of every structure, by minimiser."""
    cell, few = SETS[name][1], chosen[: options.ase]
    by_minimiser = {}
    for minimiser, config in OWN.items():
        config = RelaxConfig(fmax, options.max_steps, CellConfig() if cell else None, config)
        by_minimiser[minimiser] = streamed(model, chosen, config)
        console.print(f"{name}, {fmax:g} eV/Å, {minimiser}: mean {np.mean(by_minimiser[minimiser]['evaluations']):.1f}")
    for minimiser, optimizer in ASE.items():
        if few:
            runs = [
                one_by_ase(optimizer, atoms, cell, fmax, options.max_steps)
                for atoms in progress(few, minimiser, len(few))
            ]
            by_minimiser[minimiser] = {key: [run[key] for run in runs] for key in runs[0]}
    return by_minimiser


def streamed(model, chosen: list[ase.Atoms], config: RelaxConfig) -> dict[str, list]:
    systems = [host_system(atoms, np.float64) for atoms in chosen]
    outcomes = sorted(relaxation.stream(*model, systems, config, max_programs=1), key=lambda o: o.number)
    ends = [outcome.relaxation for outcome in outcomes]
    return {
        "evaluations": [int(end.n_steps) + 1 for end in ends],
        "converged": [bool(end.converged) for end in ends],
        "energy_per_atom": [float(end.energy) / len(end.system.numbers) for end in ends],
    }


class Counted(lamjax.Calculator):
    """The calculator, counting what it evaluates."""

    n = 0

    def calculate(self, *arguments, **options):
        self.n += 1
        return super().calculate(*arguments, **options)


def one_by_ase(optimizer, atoms: ase.Atoms, cell: bool, fmax: float, steps: int) -> dict:
    atoms = atoms.copy()
    calculator = COUNTED.setdefault("small", Counted("small", dtype="float32"))
    calculator.reset()
    calculator.n, atoms.calc = 0, calculator
    with optimizer(FrechetCellFilter(atoms) if cell else atoms, logfile=None) as run:
        converged = bool(run.run(fmax=fmax, steps=steps))
    energy = float(atoms.get_potential_energy())
    return {"evaluations": calculator.n, "converged": converged, "energy_per_atom": energy / len(atoms)}


COUNTED: dict[str, Counted] = {}


def markdown(results: dict) -> str:
    """The table of all sets."""
    rows = [
        (name, fmax, minimiser, *summary(one, by_minimiser["FIRE"]))
        for name, by_fmax in results["sets"].items()
        for fmax, by_minimiser in by_fmax.items()
        for minimiser, one in by_minimiser.items()
    ]
    return lines(COLUMNS, rows)


def summary(one: dict[str, list], fire: dict[str, list]) -> tuple:
    """Columns of a minimiser; of those structures that it was given FIRE's evaluations and ends."""
    n = len(one["evaluations"])
    counts, reference = np.array(one["evaluations"]), np.array(fire["evaluations"][:n])
    both = np.array(one["converged"]) & np.array(fire["converged"][:n])
    difference = (np.array(one["energy_per_atom"]) - np.array(fire["energy_per_atom"][:n]))[both]
    return (
        n,
        int(np.sum(one["converged"])),
        f"{np.median(counts):.0f}",
        f"{counts.mean():.1f}",
        counts.max(),
        f"{counts.sum() / reference.sum():.2f}",
        int(np.sum(np.abs(difference) < SAME)),
        int(np.sum(difference < -SAME)),
        int(np.sum(difference > SAME)),
    )


if __name__ == "__main__":
    main()
