"""Members of a committee beside a model, for commands that tell where these disagree."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from lamjax import checkpoints
from lamjax.committee import stack_members
from lamjax.data import from_atoms
from lamjax.distillation.selection import ASKED, deviations
from lamjax.distillation.shapes import LastingShapes
from lamjax.dynamics import Record, Scene, frames
from lamjax.dynamics.records import TableColumn
from lamjax.dynamics.restart import digest
from lamjax.potential import Params, Potential, network_dtype

COLUMN = "deviation_eV_A"


def load_members(potential: Potential, params: Params, paths: Sequence[Path]) -> Params:
    """The parameters of a model and of the others, stacked; ValueError for a model of another config."""
    dtype, members = network_dtype(params), [params]
    for path in paths:
        other, member = checkpoints.load(path, potential.head, dtype)
        if other.config != potential.config:
            raise ValueError(
                f"--committee {path}: not of the same elements and settings as the model. See `lamjax show`."
            )
        members.append(member)
    return stack_members(members)


def identity(potential: Potential, stacked: Params, paths: Sequence[Path]) -> list[str]:
    """Names of the members, and digests of their parameters, whatever their folders."""
    members = (jax.tree.map(lambda x, k=k: x[k], stacked) for k in range(1, len(paths) + 1))
    return [f"{path.name} {digest(potential, one)[:12]}" for path, one in zip(paths, members, strict=True)]


class Watch:
    """The largest force deviation in every frame of a simulation; `last` are those of the last record."""

    def __init__(self, potential: Potential, stacked: Params, scene: Scene) -> None:
        dtype = network_dtype(stacked)
        self.potential, self.stacked, self.scene = potential, stacked, scene
        self.shapes, self.last = LastingShapes(potential.shells, 1, ASKED, dtype), np.zeros(0)

    @property
    def column(self) -> TableColumn:
        """The column of the largest force deviation (eV/Å) for the table of the simulation."""
        return TableColumn(COLUMN, self._largest)

    def _largest(self, record: Record, timestep: float) -> np.ndarray:
        packed = self.shapes.pack([from_atoms(atoms) for atoms in frames(self.scene, record)])
        self.last = deviations(self.potential, self.stacked, packed, ASKED)
        return self.last
