"""Trains a Morse potential and saves every fifth step: `python killed_run.py FOLDER STEPS`; a test kills it."""

import sys
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).parents[1]))

import label_frames as make  # noqa: E402

from lamjax import data, losses, training  # noqa: E402


def main(folder: Path, steps: int) -> training.TrainState:
    """Go on from the last state in the folder up to `steps`."""
    frames = make.copper_frames(7)
    packed = data.pack(frames, data.plan(frames, make.MORSE.shells, 1))
    schedule = training.ScheduleConfig(start_lr=1e-2, stop_lr=1e-3, decay_steps=3)
    rate = training.schedule(schedule, 10_000)
    optimizer = training.optimizer(training.OptimizerConfig("adamw", 0.5, {"weight_decay": 1e-3}), rate)
    wrong = jax.tree.map(lambda x: 1.1 * x, make.MORSE.init())
    state = training.init(wrong, optimizer, ema=True)
    if training.saved_steps(folder):
        state = training.restore_state(folder, state)
    done = int(state.step)
    batches = data.batches(packed, 3, seed=11, start=done)
    loss = losses.label_loss(make.MORSE, losses.LabelLossConfig(start_pref_v=0.1, limit_pref_v=1.0))
    fitting = training.fit(loss, state, optimizer, batches, lr_ratio=lambda t: rate(t) / 1e-2, ema_decay=0.9)
    for state, _ in fitting:
        done += 1
        if done % 5 == 0:
            training.save_state(folder, state)
        if done >= steps:
            break
    return state


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
