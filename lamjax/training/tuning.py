"""What begins every fine-tuning of a stored model: its head, the heads that stay, and labels that are replayed."""

from collections.abc import Sequence

import numpy as np

from lamjax import checkpoints
from lamjax.data import Frame, Packed, pack, plan, set_bias
from lamjax.evaluation.errors import predictions
from lamjax.potential import Params, Potential, select
from lamjax.training.tuning_config import TuneConfig


def base_model(config: TuneConfig) -> tuple[Potential, Params]:
    """The stored model with the head that is trained."""
    potential, params = checkpoints.load(config.base, config.head, np.dtype(config.precision))
    if potential.head is None:
        known = ", ".join(potential.config.head_names)
        raise ValueError(f"{config.base} has several heads. Set `head` to one of {known}.")
    return potential, params


def replayed_head(config: TuneConfig, potential: Potential) -> Potential:
    """The potential with the head whose labels are replayed."""
    head = config.replay.head if config.replay else None
    if head is None:
        return potential
    if head not in potential.config.head_names:
        known = ", ".join(potential.config.head_names)
        raise ValueError(f"replay.head: {config.base} has no head {head!r}; it has {known}.")
    return select(potential, head)


def frozen_parts(config: TuneConfig, potential: Potential, replayed: Potential) -> tuple[str, ...]:
    """The parts that stay as they are; heads without a gradient would else move by weight decay."""
    others = set(potential.config.head_names) - {potential.head, replayed.head}
    return (*config.freeze, *(f"heads/{head}" for head in sorted(others)))


def packed_replay(
    config: TuneConfig, potential: Potential, params: Params, frames: Sequence[Frame], refit: bool
) -> tuple[Packed | None, Params]:
    """The replayed frames as arrays (None without any), and the parameters.

    With `refit`, if `replay.bias` says so, their energies per element are first fitted to the frames, which changes no
    force.
    """
    replay = config.replay
    if replay is None:
        return None, params
    shapes = plan(frames, potential.shells, config.max_programs, batch_size=replay.batch_size)
    packed = pack(frames, shapes, config.precision)
    if refit and replay.bias == "change" and any(frame.labels.weights[0] > 0 for frame in frames):
        energies = [float(p.energy) for p in predictions(potential, params, packed, replay.batch_size)]
        params = set_bias(potential, params, frames, np.array(energies))
    return packed, params
