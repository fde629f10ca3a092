"""Training a potential with a root of a sum over neighbours: padding, empty places and lone atoms spoil no gradient."""

import ase
import jax
import numpy as np
import potentials
import pytest

from lamjax import data, neighbors, pytree
from lamjax.data import StructureBatch
from lamjax.losses import (
    DistillationLossConfig,
    LabelLossConfig,
    StructureLossConfig,
    distillation_loss,
    label_loss,
    probe,
    structure_loss,
)
from lamjax.relaxation import GradientFlowConfig, RelaxConfig, Unrolled
from lamjax.system import Labels, host_system, pad

GUPTA = potentials.gupta()
PLACES = (
    [(0, 0, 0), (1.5, 0, 0), (0.7, 1.3, 0.1)],
    [(0, 0, 0), (1.5, 0.1, 0), (30, 0, 0)],
    [(0.3, 0.2, 0.1)],
)


def labels(n: int) -> Labels:
    rng = np.random.default_rng(n)
    return Labels(np.asarray(-1.0), rng.normal(size=(n, 3)), rng.normal(size=(3, 3)), np.ones(3))


def check(loss, batch) -> None:
    """The gradient of a loss by all parameters is that of finite differences."""
    run, params = jax.jit(jax.value_and_grad(lambda p: loss(p, batch)[0])), GUPTA.init()
    value, gradient = run(params)
    assert np.isfinite(value) and value > 0
    for name in params:
        h = 1e-5 * max(1, float(params[name]))
        plus, minus = (float(run(params | {name: params[name] + s * h})[0]) for s in (1, -1))
        assert float(gradient[name]) == pytest.approx((plus - minus) / (2 * h), rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("rows", [1, 2])
def test_labels(rows):
    """Structures with lone atoms and an empty place, in one list of atoms and in two."""
    systems = [host_system(ase.Atoms(f"Cu{len(x)}", x)) for x in PLACES]
    frames = [data.Frame(s, labels(s.n_atoms), str(k), ("", "", ""), {}) for k, s in enumerate(systems)]
    packed = data.pack(frames, data.plan(frames, GUPTA.shells, 1))
    (batch,) = data.batches(packed, 4, seed=None, epochs=1, multiple=rows)
    assert (batch.system.numbers == 0).any() and (batch.frame < 0).any() and len(batch.frame) == rows
    config = LabelLossConfig(start_pref_e=1, start_pref_f=1, limit_pref_f=1, start_pref_v=1, limit_pref_v=1)
    if rows == 1:
        return check(label_loss(GUPTA, config), batch)
    moved = {name: 1.1 * x for name, x in GUPTA.init().items()}
    probed = jax.jit(lambda batch: probe(GUPTA, moved, batch, jax.random.key(0)))(batch)
    check(distillation_loss(GUPTA, DistillationLossConfig(config, 0.1, 0.1)), probed)


def test_structures():
    """Relaxed side by side with a lone atom and a row without atoms."""

    def row(k: int) -> StructureBatch:
        start, target = (
            pad(host_system(ase.Atoms(f"Cu{len(PLACES[k])}", f * np.array(PLACES[k]))), 4) for f in (1, 0.97)
        )
        lists = [neighbors.host_neighbors(s, GUPTA.shells, (4,), 1) for s in (start, target)]
        nothing = Labels(np.zeros(()), np.zeros((4, 3)), np.zeros((3, 3)), np.zeros(3))
        return StructureBatch(start, lists[0], target, lists[1], nothing, np.zeros((4, 3), bool))

    rows = [row(0), row(1), jax.tree.map(np.zeros_like, row(0))]
    flow = RelaxConfig(fmax=0.5, minimiser=GradientFlowConfig(eta=0.01), adjoint=Unrolled(2))
    check(structure_loss(GUPTA, StructureLossConfig(flow)), pytree.stack(rows))
