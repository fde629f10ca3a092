"""Trains what a config file says on all devices: `python sharded_run.py CONFIG OUTPUT TASKS_PER_STEP [ADDRESS N K]`.

With an address it is process K of N.
"""

import json
import math
import re
import sys

import jax

if len(sys.argv) > 4:
    jax.distributed.initialize(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
jax.config.update("jax_enable_x64", True)

from lamjax.training import events, labels, sharding  # noqa: E402
from lamjax.training.config import parse  # noqa: E402
from lamjax.training.engine import Run  # noqa: E402
from lamjax.training.slots import stream  # noqa: E402


def gathered(run: Run) -> int:
    """The largest number of elements that the compiled step moves between devices other than by adding up."""
    layout = run.layout
    facts, batch = next(stream(run.data.tasks, run.data.groups, 0, slots=run.config.tasks_per_step, share=layout.share))
    slots = {facts.group: sharding.put_batch(batch[facts.group], layout)}
    state = sharding.put_state(run.state, layout)
    text = run.step.gradient.lower(state.params, state.step, slots).compile().as_text()
    assert jax.device_count() == 1 or "all-reduce" in text
    moved = re.findall(r"= (.*?) (?:all-gather|all-to-all|collective-permute)\(", text)
    sizes = [math.prod(map(int, re.findall(r"\d+", shape))) for m in moved for shape in re.findall(r"\[([\d,]*)\]", m)]
    return max(sizes, default=0)


if __name__ == "__main__":
    config = parse(sys.argv[1], [f"output={sys.argv[2]}", f"tasks_per_step={sys.argv[3]}"])
    run = labels.prepare(config)
    print(json.dumps({"devices": jax.device_count(), "gathered": gathered(run)}), flush=True)
    list(events(run))
