"""The model of a run that was stopped: the running mean of the parameters in its last state.

python -m experiments.universal.stopped build/universal/run_6 build/universal/base_run6.lamjax
"""

import argparse
from pathlib import Path

import numpy as np

from experiments.universal.train import OPTIMIZER
from lamjax import checkpoints, training
from lamjax.training import state as states
from lamjax.training.checkpoints import restore_state


def main(run: Path, output: Path) -> None:
    """Read the state into the structure of the run's best model so far, and write what it holds."""
    potential, params = checkpoints.load(run / "best.lamjax", dtype=np.float32)
    optimizer = training.optimizer(OPTIMIZER, lambda step: 1e-3, by_head=True)
    state = restore_state(run / "states", states.init(params, optimizer, ema=True))
    checkpoints.save(output, potential, states.result(state), {"steps": int(state.step)})
    print(f"{output}: step {int(state.step)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    main(**vars(parser.parse_args()))
