"""DeePMD-kit, JAX: its trainer's neighbour list, then its lower interface under `jit` (its fastest way)."""

import optax
from common import LEARNING_RATE, PREFACTORS, Frames
from deepmd.dpmodel.loss.ener import EnergyLoss
from deepmd.dpmodel.model.transform_output import communicate_extended_output
from deepmd.dpmodel.utils.serialization import load_dp_model
from deepmd.jax.env import jax, jnp, nnx
from deepmd.jax.model.model import BaseModel
from deepmd.jax.train.trainer import prepare_input


class Backend:
    """All frames in one call, along the batch axis of the lower interface."""

    packages = ("deepmd-kit", "jax", "jaxlib", "flax", "numpy")

    def __init__(self, model: str, frames: Frames):
        self.network = BaseModel.deserialize(load_dp_model(model)["model"])
        self.coord, self.types = jnp.asarray(frames.positions), jnp.asarray(frames.types)
        self.cell = jnp.asarray(frames.cell.reshape(-1, 9)) if frames.periodic else None
        graph, self.weights = nnx.split(self.network)
        self.listed = self.neighbors()

        @jax.jit
        def evaluate(weights, *inputs):
            out = _outputs(nnx.merge(graph, weights), *inputs)
            return out["energy"], out["force"], out["virial"]

        self.evaluate = evaluate
        self.optimizer = nnx.Optimizer(self.network, optax.adam(LEARNING_RATE), wrt=nnx.Param)
        self.step = _training_step(frames.labelled())

    def neighbors(self):
        return prepare_input(
            rcut=self.network.get_rcut(),
            sel=self.network.get_sel(),
            coord=self.coord,
            atype=self.types,
            box=self.cell,
        )[:4]

    def efv(self):
        return jax.device_get(self.evaluate(self.weights, *self.neighbors()))

    def model(self):
        return jax.device_get(self.evaluate(self.weights, *self.listed))

    def train(self):
        value = float(self.step(self.network, self.optimizer, *self.neighbors()))
        jax.block_until_ready(nnx.state(self.network))
        return (value,)


def _outputs(network, extended_coord, extended_types, nlist, mapping):
    """Energy, force and virial of the local atoms from those of the extended system."""
    lower = network.call_common_lower(extended_coord, extended_types, nlist, mapping)
    out = communicate_extended_output(lower, network.model_output_def(), mapping, do_atomic_virial=False)
    return {
        "energy": out["energy_redu"],
        "force": out["energy_derv_r"].squeeze(-2),
        "virial": out["energy_derv_c_redu"].squeeze(-2),
    }


def _training_step(frames: Frames):
    """The jitted function (network, optimizer, *inputs) -> loss, which changes network and optimizer."""
    pairs = {f"{kind}_pref_{name}": p for name, p in PREFACTORS.items() for kind in ("start", "limit")}
    loss = EnergyLoss(starter_learning_rate=LEARNING_RATE, **pairs)
    label = {
        "energy": jnp.asarray(frames.energy).reshape(-1, 1),
        "force": jnp.asarray(frames.forces),
        "virial": jnp.asarray(frames.virial).reshape(-1, 9),
        **{f"find_{name}": 1.0 for name in ("energy", "force", "virial")},
    }
    n_atoms = frames.types.shape[1]

    def objective(network, *inputs):
        out = _outputs(network, *inputs)
        return loss(learning_rate=LEARNING_RATE, natoms=n_atoms, model_dict=out, label_dict=label)[0]

    @nnx.jit
    def step(network, optimizer, *inputs):
        value, gradient = nnx.value_and_grad(objective)(network, *inputs)
        optimizer.update(network, gradient)
        return value

    return step
