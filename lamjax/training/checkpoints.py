"""Training states on disk, through orbax: written beside and renamed, so that no state is ever half written."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lamjax.files import uninterrupted
from lamjax.training.state import TrainState


def save_state(folder: str | Path, state: TrainState, keep: int = 3) -> Path:
    """Writes the state to folder/<step> and leaves the last `keep` states; returns when it is safely on disk."""
    import orbax.checkpoint as ocp

    with uninterrupted(), _manager(folder, keep) as manager:
        step = int(state.step)
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(_filled(state)))
            manager.wait_until_finished()
    return Path(folder) / str(step)


def restore_state(folder: str | Path, like: TrainState, step: int | None = None) -> TrainState:
    """The last state (or that of `step`) in the shapes and types of `like`, bit for bit.

    Raises FileNotFoundError if there is none, ValueError if it belongs to another model or optimiser.
    """
    import orbax.checkpoint as ocp

    steps = saved_steps(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "a training state" if step is None else f"the state of step {step}"
        raise FileNotFoundError(f"{folder}: {wanted} was not found; there are states of steps {steps}.")
    step = steps[-1] if step is None else step
    arrays = jax.tree.map(jnp.asarray, like)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _filled(arrays))
    with uninterrupted(), _manager(folder) as manager:
        try:
            restored = manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{folder}/{step}: the state does not fit this model, optimiser and precision. Resume with the "
                f"configuration that it was written with, or choose another output folder. ({error})"
            ) from error
    return jax.tree.map(lambda x, own: x if own.size else own, restored, arrays)


def saved_steps(folder: str | Path) -> list[int]:
    """The steps of which there are complete states."""
    if not Path(folder).is_dir():
        return []
    with uninterrupted(), _manager(folder) as manager:
        return sorted(manager.all_steps())


def _filled(state: TrainState) -> TrainState:
    """The state with a zero in place of each array without elements, which orbax refuses to write."""
    return jax.tree.map(lambda x: x if jnp.size(x) else jnp.zeros(1, x.dtype), state)


def _manager(folder: str | Path, keep: int | None = None) -> Any:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=keep is not None)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)
