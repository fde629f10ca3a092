"""A worker process: one backend with one model on one frame, timed call by call. Started by `common.Worker`.

Arguments: backend, model file (`.dp`), reference (`.npz`), frame, threads (0: the backend's own choice). It answers
`call TASK`, `result`, `memory` and `reset_peak` with one JSON line each. Every task goes from numpy arrays to
numpy arrays and builds the neighbour list anew, except `model`, which is given the list.
"""

import json
import os
import sys
import time
from typing import NamedTuple

import numpy as np

PREFACTORS = {"e": 0.02, "f": 1000.0, "v": 0.01}  # of the energy, force and virial terms, constant
LEARNING_RATE = 1e-5


class Frame(NamedTuple):
    """One structure with labels that differ smoothly from the model's own answer, so that no gradient vanishes."""

    positions: np.ndarray  # (n_atoms, 3) Å
    cell: np.ndarray  # (3, 3) Å
    types: np.ndarray  # (n_atoms,) index into the type map
    species: list
    energy: float  # eV
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    virial: np.ndarray  # (3, 3) eV


def read_frame(path: str, name: str) -> Frame:
    """The frame of a reference file, labels shifted by a fixed pattern."""
    data = np.load(path)
    keys = ("positions", "cell", "atype", "energy", "forces", "virial")
    positions, cell, types, energy, forces, virial = (data[f"{name}__{key}"] for key in keys)
    wave = 0.1 * np.sin(np.arange(forces.size)).reshape(forces.shape)
    species = [str(s) for s in data[f"{name}__species"]]
    return Frame(positions, cell, types, species, float(energy) + 1.0, forces + wave, virial + np.eye(3))


def lamjax_tasks(model: str, frame: Frame, threads: int):
    """lamjax: search and prediction in one jitted function; `training.make_step` for the training step."""
    del threads  # XLA takes the cores it is allowed
    import ase.data
    import jax
    import jax.numpy as jnp
    import optax

    import lamjax
    from lamjax import losses, neighbors, training
    from lamjax.losses import LabelLossConfig

    potential, params = lamjax.load(model, dtype=jnp.float32)
    numbers = np.array([ase.data.atomic_numbers[s] for s in frame.species], np.int32)
    system = lamjax.System(frame.positions.astype(np.float32), numbers, frame.cell.astype(np.float32), np.full(3, True))
    listed = jax.tree.map(jnp.asarray, lamjax.allocate(potential, system))

    def search(system):
        return neighbors.update(listed, system, potential.shells)

    @jax.jit
    def evaluate(params, system):
        found = search(system)
        return lamjax.predict(potential, params, system, found), found.overflow

    @jax.jit
    def evaluate_listed(params, system):
        return lamjax.predict(potential, params, system, listed)

    def efv():
        prediction, overflow = jax.device_get(evaluate(params, system))
        if overflow:
            raise RuntimeError("the neighbour list overflowed")
        return prediction.energy, prediction.forces, prediction.virial

    def model_only():
        prediction = jax.device_get(evaluate_listed(params, system))
        return prediction.energy, prediction.forces, prediction.virial

    pe, pf, pv = PREFACTORS.values()
    config = LabelLossConfig(
        start_pref_e=pe, limit_pref_e=pe, start_pref_f=pf, limit_pref_f=pf, start_pref_v=pv, limit_pref_v=pv
    )
    optimizer = optax.adam(LEARNING_RATE)
    step = training.make_step(losses.label_loss(potential, config), optimizer)
    labels = lamjax.Labels(np.float32(frame.energy), frame.forces, frame.virial, np.ones(3))
    labels = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32)[None], labels)
    batched = jax.jit(jax.vmap(search))
    state = training.init(jax.tree.map(jnp.array, params), optimizer)  # a copy: `step` reuses the state's memory

    def train():
        nonlocal state
        systems = jax.tree.map(lambda x: jnp.asarray(x)[None], system)
        state, metrics = step(state, _Batch(systems, batched(systems), labels))
        jax.block_until_ready(state)
        return (float(metrics["loss"]),)

    return {"efv": efv, "model": model_only, "train": train}, ("lamjax", "jax", "jaxlib", "numpy")


class _Batch(NamedTuple):
    system: tuple
    neighbors: tuple
    labels: tuple


def pt_tasks(model: str, frame: Frame, threads: int):
    """DeePMD-kit, PyTorch: `DeepPot.eval` of the frozen model, its eager model and `EnergyStdLoss` for training."""
    if threads:
        os.environ |= {"OMP_NUM_THREADS": str(threads), "DP_INTRA_OP_PARALLELISM_THREADS": str(threads)}
        os.environ["DP_INTER_OP_PARALLELISM_THREADS"] = "1"
    import tempfile

    import torch
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.infer import DeepPot
    from deepmd.pt.loss.ener import EnergyStdLoss
    from deepmd.pt.model.model.model import BaseModel
    from deepmd.pt.utils.nlist import extend_input_and_build_neighbor_list
    from deepmd.pt.utils.serialization import deserialize_to_file

    if threads:
        torch.set_num_threads(threads)
    data = load_dp_model(model)
    with tempfile.TemporaryDirectory() as folder:
        deserialize_to_file(f"{folder}/frozen.pth", data)
        frozen = DeepPot(f"{folder}/frozen.pth")
        scripted = torch.jit.load(f"{folder}/frozen.pth")
    eager = BaseModel.deserialize(data["model"])
    coord = torch.tensor(frame.positions)[None].requires_grad_(True)
    types, cell = torch.tensor(frame.types).long()[None], torch.tensor(frame.cell).reshape(1, 9)
    with torch.no_grad():
        extended = extend_input_and_build_neighbor_list(
            coord, types, eager.get_rcut(), eager.get_sel(), mixed_types=True, box=cell
        )
    extended_coord, extended_types, mapping, nlist = extended

    def efv():
        return frozen.eval(frame.positions[None], frame.cell.reshape(1, 9), frame.types)[:3]

    def model_only():
        out = scripted.forward_lower(extended_coord, extended_types, nlist, mapping)
        forces = torch.zeros_like(coord).index_add_(1, mapping[0], out["extended_force"].detach())
        return tuple(x.detach().numpy() for x in (out["energy"], forces, out["virial"]))

    pairs = {f"{kind}_pref_{name}": p for name, p in PREFACTORS.items() for kind in ("start", "limit")}
    loss = EnergyStdLoss(starter_learning_rate=LEARNING_RATE, **pairs)
    label = {
        "energy": torch.tensor([[frame.energy]]),
        "force": torch.tensor(frame.forces)[None],
        "virial": torch.tensor(frame.virial).reshape(1, 9),
        "find_energy": 1.0,
        "find_force": 1.0,
        "find_virial": 1.0,
    }
    optimizer = torch.optim.Adam(eager.parameters(), lr=LEARNING_RATE)

    def train():
        optimizer.zero_grad(set_to_none=True)
        inputs = {"coord": coord.detach().requires_grad_(True), "atype": types, "box": cell}
        _, value, _ = loss(inputs, eager, label, natoms=len(frame.types), learning_rate=LEARNING_RATE)
        value.backward()
        optimizer.step()
        return (float(value.detach()),)

    return {"efv": efv, "model": model_only, "train": train}, ("deepmd-kit", "torch", "numpy")


def jax_tasks(model: str, frame: Frame, threads: int):
    """DeePMD-kit, JAX: its trainer's neighbour list, then its lower interface under `jit` (its fastest way)."""
    del threads  # XLA takes the cores it is allowed
    import optax
    from deepmd.dpmodel.loss.ener import EnergyLoss
    from deepmd.dpmodel.model.transform_output import communicate_extended_output
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.jax.env import jax, jnp, nnx
    from deepmd.jax.model.model import BaseModel
    from deepmd.jax.train.trainer import prepare_input

    network = BaseModel.deserialize(load_dp_model(model)["model"])
    coord, types, cell = (jnp.asarray(x) for x in (frame.positions[None], frame.types[None], frame.cell.reshape(1, 9)))

    def neighbors():
        return prepare_input(rcut=network.get_rcut(), sel=network.get_sel(), coord=coord, atype=types, box=cell)[:4]

    def outputs(network, extended_coord, extended_types, nlist, mapping):
        lower = network.call_common_lower(extended_coord, extended_types, nlist, mapping)
        out = communicate_extended_output(lower, network.model_output_def(), mapping, do_atomic_virial=False)
        return {
            "energy": out["energy_redu"],
            "force": out["energy_derv_r"].squeeze(-2),
            "virial": out["energy_derv_c_redu"].squeeze(-2),
        }

    graph, weights = nnx.split(network)
    listed = neighbors()

    @jax.jit
    def evaluate(weights, *inputs):
        out = outputs(nnx.merge(graph, weights), *inputs)
        return out["energy"], out["force"], out["virial"]

    def efv():
        return jax.device_get(evaluate(weights, *neighbors()))

    def model_only():
        return jax.device_get(evaluate(weights, *listed))

    pairs = {f"{kind}_pref_{name}": p for name, p in PREFACTORS.items() for kind in ("start", "limit")}
    loss = EnergyLoss(starter_learning_rate=LEARNING_RATE, **pairs)
    label = {
        "energy": jnp.array([[frame.energy]]),
        "force": jnp.asarray(frame.forces)[None],
        "virial": jnp.asarray(frame.virial).reshape(1, 9),
        "find_energy": 1.0,
        "find_force": 1.0,
        "find_virial": 1.0,
    }
    optimizer = nnx.Optimizer(network, optax.adam(LEARNING_RATE), wrt=nnx.Param)

    def objective(network, *inputs):
        out = outputs(network, *inputs)
        return loss(learning_rate=LEARNING_RATE, natoms=len(frame.types), model_dict=out, label_dict=label)[0]

    @nnx.jit
    def step(network, optimizer, *inputs):
        value, gradient = nnx.value_and_grad(objective)(network, *inputs)
        optimizer.update(network, gradient)
        return value

    def train():
        value = float(step(network, optimizer, *neighbors()))
        jax.block_until_ready(nnx.state(network))
        return (value,)

    return {"efv": efv, "model": model_only, "train": train}, ("deepmd-kit", "jax", "jaxlib", "flax", "numpy")


BACKENDS = {"lamjax": lamjax_tasks, "pt": pt_tasks, "jax": jax_tasks}


def timed(function) -> tuple[dict, tuple]:
    """Wall and processor seconds of one call, and what it returned."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, result


def memory() -> dict[str, float]:
    """Resident memory now and at its peak (MB)."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file if line.startswith("Vm"))
    return {"resident_mb": int(lines["VmRSS"].split()[0]) / 1e3, "peak_mb": int(lines["VmHWM"].split()[0]) / 1e3}


def reset_peak() -> dict[str, bool]:
    """Begin a new peak at the memory in use now (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return {"reset": True}


def serve(tasks: dict, out) -> None:
    """Answer commands from stdin until it ends."""
    first: dict[str, list] = {}
    for line in sys.stdin:
        command, *task = line.split()
        match command:
            case "call":
                answer, result = timed(tasks[task[0]])
                first.setdefault(task[0], [np.asarray(x, np.float64).reshape(-1).tolist() for x in result])
            case "result":
                answer = {"result": first[task[0]]}
            case "memory":
                answer = memory()
            case "reset_peak":
                answer = reset_peak()
        print(json.dumps(answer), file=out, flush=True)


def main() -> None:
    backend, model, reference, name, threads = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    if cores := os.environ.get("BENCHMARK_CORES"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    from common import versions

    tasks, packages = BACKENDS[backend](model, read_frame(reference, name), int(threads))
    print(json.dumps({"versions": versions(packages)}), file=out, flush=True)
    serve(tasks, out)


if __name__ == "__main__":
    main()
