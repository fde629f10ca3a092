"""`lamjax distill` that kills itself: `python killed_run.py KIND N LOG ARGUMENTS...`; KIND is label or save.

At the Nth calculation of a label, or after the Nth saved state, the process is gone. Calculations are logged in LOG.
"""

import os
import signal
import sys

from ase.calculators.emt import EMT

from lamjax.cli import main
from lamjax.distillation import train
from lamjax.training import engine

KIND, N, LOG = sys.argv[1], int(sys.argv[2]), sys.argv[3]
counts = {"label": 0, "save": 0}


def count(kind: str) -> None:
    counts[kind] += 1
    if kind == KIND and counts[kind] == N:
        os.kill(os.getpid(), signal.SIGKILL)


def calculate(self, atoms=None, *arguments):
    with open(LOG, "a") as log:
        log.write(f"{atoms.positions.tolist()}\n")
    count("label")
    return whole_calculation(self, atoms, *arguments)


def save_state(*arguments, **keywords):
    whole_save(*arguments, **keywords)
    count("save")


whole_calculation, whole_save = EMT.calculate, engine.save_state
EMT.calculate, engine.save_state, train.SAVE = calculate, save_state, 4

if __name__ == "__main__":
    sys.argv = ["lamjax", *sys.argv[4:]]
    main()
