"""Memory that DPA-3 of three and six layers takes for 216 atoms of water, float32, as XLA plans it; runs nothing.

python benchmarks/dpa3_memory.py           # energy, forces, virial
python benchmarks/dpa3_memory.py --train   # and a training step, whose program takes minutes to compile
"""

import argparse
import datetime
import functools
import tempfile
import time
import warnings
from pathlib import Path

import ase
import ase.build
import jax
import numpy as np
from common import RESULTS, hardware, usable_cores, versions, write_results
from systems import DPA3, dpa3

import lamjax
from lamjax import losses
from lamjax.data import Batch
from lamjax.reports import console, table
from lamjax.system import Labels

SPACING = 3.104  # Å between molecules on a grid: the density of water


def water() -> ase.Atoms:
    """72 molecules on a grid, turned at random."""
    rng, atoms = np.random.default_rng(0), ase.Atoms()
    for place in np.ndindex(6, 4, 3):
        molecule = ase.build.molecule("H2O")
        molecule.euler_rotate(*rng.uniform(0, 180, 3), center="COP")
        molecule.translate(SPACING * np.array(place))
        atoms += molecule
    atoms.set_cell(SPACING * np.diag([6, 4, 3]))
    atoms.pbc = True
    return atoms


def planned(function, *arguments) -> dict[str, float]:
    """MB of temporaries and arguments of the compiled program, and how long it took to compile."""
    begin = time.process_time()
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    return {
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "arguments_mb": memory.argument_size_in_bytes / 1e6,
        "compile_cpu_s": time.process_time() - begin,
    }


def step(potential, params, system, lists):
    """Loss and gradient of one structure."""
    n = system.n_atoms
    labels = Labels(np.zeros(1), np.zeros((1, n, 3)), np.zeros((1, 3, 3)), np.ones((1, 3)))
    rows = jax.tree.map(lambda x: x[None], (system, lists))
    batch = Batch(*rows, jax.tree.map(np.float32, labels), np.zeros(1, int))
    loss = losses.label_loss(potential, losses.LabelLossConfig(start_pref_v=0.01, limit_pref_v=0.01))
    return jax.value_and_grad(lambda p: loss(p, batch)[0])(params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="a training step too")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of dpa3_memory.json")
    options = parser.parse_args()
    tasks = {"efv": lamjax.predict} | ({"train": step} if options.train else {})
    results = {"date": datetime.date.today().isoformat(), "hardware": hardware(usable_cores()), "models": {}}
    results["versions"] = versions(("lamjax", "jax", "jaxlib"))
    with tempfile.TemporaryDirectory() as folder:
        for model in DPA3:
            potential, params = lamjax.load(dpa3(model, Path(folder)), dtype=np.float32)
            system = lamjax.from_ase(water(), np.float32)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # atoms with more than 30 neighbours within 4 Å
                lists = lamjax.allocate(potential, system)
            plans = {k: planned(functools.partial(f, potential), params, system, lists) for k, f in tasks.items()}
            results["models"][model] = {"atoms": system.n_atoms, "slots": lists.capacities, "tasks": plans}
            write_results("dpa3_memory", results, options.output)
    columns = ["model", "task", "temporaries MB", "arguments MB", "compiled in s of processor time"]
    rows = [
        (m, t, *(f"{x:.0f}" for x in one.values()))
        for m, c in results["models"].items()
        for t, one in c["tasks"].items()
    ]
    console.print(table("216 atoms of water, float32", columns, rows))


if __name__ == "__main__":
    main()
