"""`lamjax label` that kills itself in the middle of its Nth calculation: `python killed_label.py N ARGUMENTS...`."""

import os
import signal
import sys

from ase.calculators.emt import EMT

from lamjax.cli import main
from lamjax.distillation import label

N = int(sys.argv[1])
counts = {"done": 0}


def count() -> None:
    counts["done"] += 1
    if counts["done"] == N:
        os.kill(os.getpid(), signal.SIGKILL)


def calculate(self, atoms=None, *arguments):
    count()
    return whole_calculation(self, atoms, *arguments)


def predictions(*arguments):
    count()
    return whole_predictions(*arguments)


whole_calculation, whole_predictions = EMT.calculate, label.predictions
EMT.calculate, label.predictions, label.CHUNK = calculate, predictions, 4

if __name__ == "__main__":
    sys.argv = ["lamjax", *sys.argv[2:]]
    main()
