"""Memory that forces of large structures take, as XLA plans it, with and without blocks of atoms; runs nothing.

python benchmarks/large_memory.py                            # DPA-2 small, water, 192 to 98,304 atoms, float32
python benchmarks/report.py large_memory                     # the table in README.md
"""

import argparse
import datetime
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import PRESETS, RESULTS, hardware, usable_cores, versions, write_results
from systems import water

import lamjax
from lamjax import neighbors
from lamjax.descriptors.dpa2 import repformer
from lamjax.neighbors.types import MadeFor
from lamjax.reports import console

WHOLE = 1 << 30  # atoms of a block that no structure fills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[192, 1536, 12288, 98304])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for large_memory.json")
    options = parser.parse_args()
    results = {
        "hardware": hardware(usable_cores()),
        "date": datetime.date.today().isoformat(),
        "block": repformer.BLOCK["cpu"],
    }
    results |= {"versions": versions(("lamjax", "jax", "jaxlib")), "sizes": {}}
    model = lamjax.load(PRESETS / "dpa2_small_f32.dp", dtype=jnp.float32)
    capacities = slots(model[0])
    for n_atoms in options.sizes:
        in_blocks, whole = (planned(model, capacities, n_atoms, size) for size in (results["block"], WHOLE))
        results["sizes"][str(n_atoms)] = {"in_blocks": in_blocks, "whole": whole}
        console.print(f"{n_atoms:,} atoms: {in_blocks['kb_per_atom']:.1f} kB/atom, whole {whole['kb_per_atom']:.1f}")
        path = write_results("large_memory", results, options.output)
    console.print(f"Written: {path}")


def slots(potential) -> tuple[int, ...]:
    """Of each shell, for the water of all benchmarks."""
    frame = water("small")
    system = lamjax.System(frame.positions[0], frame.numbers[0].astype(np.int32), frame.cell[0], np.ones(3, bool))
    return neighbors.plan_capacities(neighbors.count(system, potential.shells), potential.shells)


def planned(model, capacities: tuple[int, ...], n_atoms: int, size: int) -> dict[str, float]:
    """MB of temporaries of energy, forces and virial of so many atoms, evaluated `size` at a time."""
    potential, params = model
    system, lists = shapes(potential, capacities, n_atoms)
    repformer.BLOCK["cpu"], before = size, repformer.BLOCK["cpu"]
    begin = time.process_time()
    run = jax.jit(lambda params, system, lists: lamjax.predict(potential, params, system, lists))
    memory = run.lower(params, system, lists).compile().memory_analysis()
    repformer.BLOCK["cpu"] = before
    return {
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "arguments_mb": memory.argument_size_in_bytes / 1e6,
        "kb_per_atom": memory.temp_size_in_bytes / 1e3 / n_atoms,
        "compile_cpu_s": time.process_time() - begin,
    }


def shapes(potential, capacities: tuple[int, ...], n: int):
    """A structure and its neighbours without numbers: what a program is compiled for."""
    struct = jax.ShapeDtypeStruct
    system = lamjax.System(
        struct((n, 3), jnp.float32), struct((n,), jnp.int32), struct((3, 3), jnp.float32), struct((3,), bool)
    )
    width = capacities[0]
    masks = [struct((n, c), bool) for c in capacities]
    lists = neighbors.Neighbors(
        indices=struct((n, width), jnp.int32),
        images=struct((n, width, 3), jnp.int32),
        mask=masks[0],
        inner=tuple(masks[1:]),
        offsets=struct((0, 3), jnp.int32),
        largest_counts=struct((len(masks),), jnp.int32),
        overflow=struct((), bool),
        truncated=struct((), bool),
        made_for=MadeFor(potential.shells),
    )
    return system, lists


if __name__ == "__main__":
    main()
