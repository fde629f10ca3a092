"""Data-parallel training with `jax.sharding`: where states and batches lie, on one machine or several."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lamjax.losses import TaskBatches


class RowShare(NamedTuple):
    """The rows of a batch that a process prepares."""

    multiple: int = 1  # rows over which the frames of a slot are spread, one for each device
    part: tuple[int, int] = (0, 1)  # (k, n): the k-th of n equal shares


ALL_ROWS = RowShare()  # one process with one device


class DeviceLayout(NamedTuple):
    """The devices of all processes, and the sharding of states and batches over them."""

    state: NamedSharding  # a copy on every device
    task: NamedSharding  # of the numbers of the tasks, (slots,)
    batch: NamedSharding  # of arrays (slots, rows, ...)
    multiple: int  # rows over which the frames of a slot are spread

    @property
    def share(self) -> RowShare:
        """The share of every slot's frames that this process prepares."""
        return RowShare(self.multiple, (jax.process_index(), jax.process_count()))


def layout(slots: int = 1) -> DeviceLayout:
    """Slots and frames spread over all devices; as many as divide `slots` lie along the slots, within each process."""
    mesh = _mesh(slots)
    along = NamedSharding(mesh, PartitionSpec("slot"))
    batch = NamedSharding(mesh, PartitionSpec("slot", "row"))
    return DeviceLayout(NamedSharding(mesh, PartitionSpec()), along, batch, mesh.shape["row"])


def one_slot(layout: DeviceLayout) -> DeviceLayout:
    """The same devices for batches with a single slot: its frames are spread over all of them."""
    batch = NamedSharding(layout.batch.mesh, PartitionSpec(None, ("row", "slot")))
    return layout._replace(task=layout.state, batch=batch, multiple=layout.batch.mesh.size)


def put_state(state: Any, layout: DeviceLayout) -> Any:
    """The state copied to every device; it must be equal in all processes."""

    def put(x: Array) -> Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, layout.state, lambda index: whole[index])

    return jax.tree.map(put, state)


def put_batch(slots: TaskBatches, layout: DeviceLayout) -> TaskBatches:
    """Numpy arrays on the devices; every process gives its share of the frames of each slot."""
    put = jax.make_array_from_process_local_data
    return TaskBatches(put(layout.task, slots.task), jax.tree.map(lambda x: put(layout.batch, x), slots.batch))


def put(batch: dict[str, TaskBatches], layout: DeviceLayout) -> dict[str, TaskBatches]:
    """`put_batch` of {group: TaskBatches}."""
    return {group: put_batch(slots, layout) for group, slots in batch.items()}


def is_first() -> bool:
    """True in the process that prints and writes; there is only one on one machine."""
    return jax.process_index() == 0


def _mesh(slots: int) -> Mesh:
    local = jax.local_device_count()
    across = math.gcd(slots, local)
    devices = np.array(jax.devices()).reshape(jax.process_count(), across, local // across)
    return Mesh(devices.transpose(1, 0, 2).reshape(across, -1), ("slot", "row"))
