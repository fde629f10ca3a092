"""lamjax: search and prediction in one jitted function; `training.make_step` for the training step."""

import time
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import LEARNING_RATE, PREFACTORS, Frames

import lamjax
from lamjax import data, losses, neighbors, numerics, pytree, training
from lamjax.losses import LabelLossConfig
from lamjax.relaxation.surface import in_a_row


class Backend:
    """Several frames are one list of atoms, as in a training; their lists of neighbours are made frame by frame."""

    packages = ("lamjax", "jax", "jaxlib", "numpy")

    def __init__(self, model: str, frames: Frames):
        self.potential, self.params = lamjax.load(model, dtype=jnp.float32)
        packed = _pack(self.potential, frames.labelled())
        self.systems, self.listed = jax.tree.map(jnp.asarray, (packed.system, packed.neighbors))
        self.batch = packed._replace(labels=_in_a_row(packed.labels), frame=packed.frame[None])
        n = len(frames.positions)

        def predict(params, systems, listed):
            prediction = lamjax.predict(self.potential, params, *in_a_row(systems, listed))
            return prediction.energy.reshape(n), prediction.forces.reshape(n, -1, 3), prediction.virial.reshape(n, 3, 3)

        def search_and_predict(params, systems, listed):
            lists = jax.vmap(self._search)(listed, systems)
            return predict(params, systems, lists), lists.overflow

        def search_row(listed, systems):
            return jax.tree.map(lambda x: x[None], in_a_row(systems, jax.vmap(self._search)(listed, systems)))

        self.evaluate, self.evaluate_listed = jax.jit(search_and_predict), jax.jit(predict)
        self.search = jax.jit(search_row)
        optimizer = optax.adam(LEARNING_RATE)
        self.step = training.make_step(losses.label_loss(self.potential, _loss_config()), optimizer)
        self.state = training.init(jax.tree.map(jnp.array, self.params), optimizer)  # a copy: steps reuse its memory

    def _search(self, listed, system):
        return neighbors.update(listed, system, self.potential.shells)

    def efv(self):
        prediction, overflow = jax.device_get(self.evaluate(self.params, self.systems, self.listed))
        if np.any(overflow):
            raise RuntimeError("the neighbour list overflowed")
        return prediction

    def model(self):
        return jax.device_get(self.evaluate_listed(self.params, self.systems, self.listed))

    def train(self):
        self.state, metrics = self.step(self.state, self._searched())
        jax.block_until_ready(self.state)
        return (float(metrics["loss"]),)

    def _searched(self) -> data.Batch:
        """The batch with its lists made anew."""
        system, lists = self.search(self.listed, self.systems)
        return self.batch._replace(system=system, neighbors=lists)

    def work(self, task: str) -> dict[str, float]:
        """Operations of one call and the bytes that they read and write, in caches or memory, as XLA counts them.

        In programs without loops over blocks of atoms: of a loop XLA counts one turn. What is computed a second time to
        save memory is not counted, either.
        """
        calls = {
            "efv": [(self.evaluate, (self.params, self.systems, self.listed))],
            "model": [(self.evaluate_listed, (self.params, self.systems, self.listed))],
            "train": [
                (self.search, (self.listed, self.systems)),
                (self.step.gradient, (self.state.params, self.state.step, self._searched())),
            ],
        }
        jax.clear_caches()  # the programs were traced with loops
        with unittest.mock.patch.object(numerics, "in_blocks", lambda function, size, *arrays: function(*arrays)):
            counts = [f.lower(*given).compile().cost_analysis() for f, given in calls[task]]
        jax.clear_caches()
        return {"flops": sum(c["flops"] for c in counts), "bytes": sum(c["bytes accessed"] for c in counts)}

    def bandwidth(self, n: int = 1 << 26, repetitions: int = 12) -> float:
        """Bytes per second of the best a + 2 b of two float32 arrays that no cache holds: two reads and a write."""
        add = jax.jit(lambda a, b: a + 2 * b)
        a, b = jnp.ones(n, jnp.float32), jnp.ones(n, jnp.float32)
        return 3 * 4 * n / _best(lambda: add(a, b), repetitions)

    def matmul(self, n: int = 2048, repetitions: int = 12) -> float:
        """Operations per second of the best product of two n by n float32 matrices."""
        product = jax.jit(jnp.matmul)
        a, b = jax.random.normal(jax.random.key(0), (2, n, n), jnp.float32)
        return 2 * n**3 / _best(lambda: product(a, b), repetitions)


def _best(function, repetitions: int) -> float:
    """Seconds of the fastest call after the first."""
    function().block_until_ready()
    best = np.inf
    for _ in range(repetitions):
        begin = time.perf_counter()
        function().block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return best


def _in_a_row(labels: lamjax.Labels) -> lamjax.Labels:
    """Labels of the frames of one list of atoms, float32, with an axis of rows."""
    labels = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), labels)
    if len(labels.energy) == 1:
        return labels
    return jax.tree.map(lambda x: x[None], labels._replace(forces=labels.forces.reshape(-1, 3)))


def _pack(potential, frames: Frames):
    """All frames, one a row; their neighbour lists can be rebuilt (they know the images to search)."""
    pbc, weights = np.full(3, frames.periodic), np.ones(3)
    labels = zip(frames.energy, frames.forces, frames.virial, strict=True)
    structures = zip(frames.positions, frames.numbers.astype(np.int32), frames.cell, strict=True)
    systems = [lamjax.System(*arrays, pbc) for arrays in structures]
    shells, n_atoms = potential.shells, max(system.n_atoms for system in systems)
    counted = np.max([neighbors.count(system, shells) for system in systems], axis=0)
    capacities = neighbors.plan_capacities(tuple(counted.tolist()), shells)
    n_offsets = max(len(neighbors.image_offsets(s.cell, pbc, shells[0].cutoff)) for s in systems)
    padded = [lamjax.system.pad(system, n_atoms) for system in systems]
    listed = [neighbors.host_neighbors(system, shells, capacities, n_offsets) for system in padded]
    padded_labels = [lamjax.system.pad_labels(lamjax.Labels(*values, weights), n_atoms) for values in labels]
    system, labels = pytree.cast(pytree.stack(padded), np.float32), pytree.stack(padded_labels)
    return data.Batch(system, pytree.stack(listed), labels, np.arange(len(systems)))


def _loss_config() -> LabelLossConfig:
    return LabelLossConfig(**{f"{end}_pref_{k}": p for k, p in PREFACTORS.items() for end in ("start", "limit")})
