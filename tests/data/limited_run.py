"""Draws shuffled batches from a store in a process that may not hold it; prints what it saw. Run by test_store.py."""

import itertools
import json
import resource
import sys
from pathlib import Path

import numpy as np

from lamjax import data
from lamjax.neighbors import Shell

SHELLS = (Shell(1.0),)  # no neighbours: this is about memory
N_BATCHES = 90


def anonymous() -> int:
    """Bytes of writable private memory of this process, what RLIMIT_DATA counts."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")]
    return int(line.split()[1]) * 1024


def main(path: str, above: int, mapped: bool) -> None:
    """`above` bytes may be had on top of what the process has when it has loaded its libraries."""
    np.linalg.inv(np.eye(9))  # has its work space from now on
    resource.setrlimit(resource.RLIMIT_DATA, (anonymous() + above, resource.RLIM_INFINITY))
    frames = data.Store(path)
    held = [] if mapped else [np.array(frames.arrays["positions"]), np.array(frames.arrays["forces"])]
    packed = data.pack(frames, data.plan(frames, SHELLS, 2), np.float32, memory=2**20)
    total, seen = 0.0, []
    drawn = itertools.islice(data.batches(packed, 16, seed=1), N_BATCHES)
    with data.prefetch(drawn, put=lambda batch: batch) as feed:
        for batch in feed:
            total += float(batch.labels.energy.sum())
            seen += batch.frame[batch.frame >= 0].tolist()
    print(
        json.dumps({"n": len(set(seen)), "energy": total, "expected": sum(seen), "first": seen[:50], "held": len(held)})
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "mapped")
