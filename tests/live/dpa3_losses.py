"""Makes tests/fixtures/dpa3/losses with DeePMD-kit: the loss of a batch and its gradient by every parameter.

    python tests/live/dpa3_losses.py    # in an environment with DeePMD-kit and torch

The gradients have the names of the parameters in the torch checkpoint; what has none is left out.
"""

import json
import warnings
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "fixtures" / "dpa3"
PREFACTORS = {"e": 0.7, "f": 30.0, "v": 0.2}
MODELS = {"r02_published_like": "triclinic", "r06_sequential_static": "water", "r11_chgspin": "triclinic"}


def batch_of(folder: Path, frame: str, charged: bool) -> dict[str, np.ndarray]:
    """A stored frame and a displaced copy, with random labels; of two charges where the model asks for them."""
    rng = np.random.default_rng(5)
    with np.load(folder / "reference.npz") as file:
        positions, cell, types = (file[f"{frame}__{name}"] for name in ("positions", "cell", "atype"))
        energy = float(file[f"{frame}__energy"])
    coord = positions + 0.03 * rng.normal(size=(2, *positions.shape))
    batch = {
        "coord": coord,
        "box": np.stack([cell, cell]),
        "atype": np.stack([types, types]),
        "energy": energy + rng.normal(size=2),
        "force": rng.normal(size=coord.shape),
        "virial": rng.normal(size=(2, 3, 3)),
    }
    if charged:
        batch["charge_spin"] = np.array([[-1, 2], [2, 1]])
    return batch


def loss_of(model, batch: dict[str, np.ndarray]):
    """DeePMD-kit's loss of energies, forces and virials (mse), with constant prefactors."""
    import torch
    from deepmd.pt.loss.ener import EnergyStdLoss

    pairs = {f"{end}_pref_{name}": p for name, p in PREFACTORS.items() for end in ("start", "limit")}
    known = {name: torch.tensor(batch[name]) for name in ("coord", "box", "atype")}
    inputs = known | {"box": known["box"].reshape(-1, 9)}
    inputs["coord"].requires_grad_(True)
    if "charge_spin" in batch:
        inputs["charge_spin"] = torch.tensor(batch["charge_spin"], dtype=torch.float64)
    label = {name: torch.tensor(batch[name]) for name in ("energy", "force", "virial")}
    label = {name: value.reshape(2, *shape) for (name, value), shape in zip(
        label.items(), ((1,), (-1, 3), (9,)), strict=True)}  # fmt: skip
    label |= {f"find_{name}": 1.0 for name in label}
    loss = EnergyStdLoss(starter_learning_rate=1.0, **pairs)
    return loss(inputs, model, label, natoms=batch["atype"].shape[1], learning_rate=1.0)[1:]


def main() -> None:
    import torch
    from deepmd.pt.model.model import get_model

    for name, frame in MODELS.items():
        checkpoint = torch.load(FOLDER / name / "model.pt", map_location="cpu", weights_only=False)["model"]
        model = get_model(json.loads(json.dumps(checkpoint["_extra_state"]["model_params"])))
        state = {key.removeprefix("model.Default."): x for key, x in checkpoint.items() if key != "_extra_state"}
        model.load_state_dict(state)
        batch = batch_of(FOLDER / name, frame, "chgspin" in name)
        value, terms = loss_of(model.double(), batch)
        value.backward()
        gradients = {k: p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None}
        stored = {f"batch__{k}": x for k, x in batch.items()} | {f"grad__{k}": x for k, x in gradients.items()}
        stored |= {"loss": value.detach().numpy(), "prefactors": np.array(list(PREFACTORS.values()))}
        stored |= {f"term__{k}": np.asarray(x.detach() if hasattr(x, "detach") else x) for k, x in terms.items()}
        (FOLDER / "losses").mkdir(exist_ok=True)
        np.savez_compressed(FOLDER / "losses" / f"{name}.npz", **stored)
        print(name, float(value), len(gradients), "gradients of", len(list(model.parameters())))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
