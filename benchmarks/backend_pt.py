"""DeePMD-kit, PyTorch: `DeepPot.eval` of the frozen model, its eager model and `EnergyStdLoss` for training."""

import os
import tempfile

import torch
from common import LEARNING_RATE, PREFACTORS, Frames
from deepmd.dpmodel.utils.serialization import load_dp_model
from deepmd.infer import DeepPot
from deepmd.pt.loss.ener import EnergyStdLoss
from deepmd.pt.model.model.model import BaseModel
from deepmd.pt.utils.nlist import extend_input_and_build_neighbor_list
from deepmd.pt.utils.serialization import deserialize_to_file


class Backend:
    """All frames in one call; types that differ between frames go in as `mixed_type`."""

    packages = ("deepmd-kit", "torch", "numpy")

    def __init__(self, model: str, frames: Frames):
        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))
        self.frames, n_frames = frames, len(frames.positions)
        content = load_dp_model(model)
        with tempfile.TemporaryDirectory() as folder:
            deserialize_to_file(f"{folder}/frozen.pth", content)
            self.frozen = DeepPot(f"{folder}/frozen.pth")
            self.scripted = torch.jit.load(f"{folder}/frozen.pth")
        self.eager = BaseModel.deserialize(content["model"])
        self.coord = torch.tensor(frames.positions).requires_grad_(True)
        self.types = torch.tensor(frames.types).long()
        self.numpy_cell = frames.cell.reshape(n_frames, 9) if frames.periodic else None
        self.cell = torch.tensor(self.numpy_cell) if frames.periodic else None
        with torch.no_grad():
            self.extended = extend_input_and_build_neighbor_list(
                self.coord, self.types, self.eager.get_rcut(), self.eager.get_sel(), mixed_types=True, box=self.cell
            )
        self._prepare_training(frames.labelled())

    def _prepare_training(self, frames: Frames) -> None:
        pairs = {f"{kind}_pref_{name}": p for name, p in PREFACTORS.items() for kind in ("start", "limit")}
        self.loss = EnergyStdLoss(starter_learning_rate=LEARNING_RATE, **pairs)
        self.label = {
            "energy": torch.tensor(frames.energy).reshape(-1, 1),
            "force": torch.tensor(frames.forces),
            "virial": torch.tensor(frames.virial).reshape(-1, 9),
            **{f"find_{name}": 1.0 for name in ("energy", "force", "virial")},
        }
        self.optimizer = torch.optim.Adam(self.eager.parameters(), lr=LEARNING_RATE)

    def efv(self):
        several = len(self.frames.types) > 1
        types = self.frames.types if several else self.frames.types[0]
        return self.frozen.eval(self.frames.positions, self.numpy_cell, types, mixed_type=several)[:3]

    def model(self):
        coord, types, mapping, nlist = self.extended
        out = self.scripted.forward_lower(coord, types, nlist, mapping)
        owners = mapping[..., None].expand(-1, -1, 3)
        forces = torch.zeros_like(self.coord).scatter_add_(1, owners, out["extended_force"].detach())
        return tuple(x.detach().numpy() for x in (out["energy"], forces, out["virial"]))

    def train(self):
        self.optimizer.zero_grad(set_to_none=True)
        inputs = {"coord": self.coord.detach().requires_grad_(True), "atype": self.types, "box": self.cell}
        n_atoms = self.types.shape[1]
        _, value, _ = self.loss(inputs, self.eager, self.label, natoms=n_atoms, learning_rate=LEARNING_RATE)
        value.backward()
        self.optimizer.step()
        return (float(value.detach()),)
