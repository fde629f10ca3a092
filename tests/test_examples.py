"""What users bring of their own, as in examples/, goes through relaxation, training, the calculator and simulations."""

import sys
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import dynamics, losses, pytree, training
from lamjax.data import StructureBatch
from lamjax.relaxation import Implicit, RelaxConfig, relax
from lamjax.system import Labels

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
from own_adjoint import Neumann  # noqa: E402
from own_loss import Clusters, bond_length_loss  # noqa: E402
from own_minimiser import HeavyBall  # noqa: E402
from own_potential import mie  # noqa: E402

PARAMS = mie.init()
SERIES = RelaxConfig(fmax=1e-6, max_steps=400, minimiser=HeavyBall(), adjoint=Neumann(terms=600, eta=0.03))


def clusters() -> tuple:
    """Two triangles, stretched, in a batch; and their neighbours."""
    places = [[(0, 0, 0), (2.8, 0, 0), (1.2, 2.3, 0)], [(0, 0, 0), (2.5, 0.1, 0), (1.3, 2.4, 0.2)]]
    systems = [lamjax.from_ase(ase.Atoms("Cu3", x)) for x in places]
    return pytree.stack(systems), pytree.stack([lamjax.allocate(mie, s, capacity=4) for s in systems])


def test_every_example_is_used():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "own_adjoint",
        "own_loss",
        "own_minimiser",
        "own_potential",
    }
    assert all(len(path.read_text().splitlines()) < 60 for path in EXAMPLES.glob("*.py"))


def test_a_neumann_series_gives_the_gradient_of_the_minimum():
    """That of conjugate residuals, where the series has converged; and its report is in the metrics of a loss."""
    systems, lists = clusters()
    labels = Labels(jnp.zeros(2), jnp.zeros((2, 3, 3)), jnp.zeros((2, 3, 3)), jnp.zeros((2, 3)))
    target = systems._replace(positions=1.1 * systems.positions)
    batch = StructureBatch(systems, lists, target, lists, labels, jnp.zeros((2, 3, 3), bool))

    def gradient(adjoint):
        config = RelaxConfig(fmax=1e-6, max_steps=400, minimiser=HeavyBall(), adjoint=adjoint)
        loss = losses.structure_loss(mie, losses.StructureLossConfig(config))
        (_, metrics), result = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS, batch)
        return metrics, result

    metrics, result = gradient(SERIES.adjoint)
    _, expected = gradient(Implicit(tol=1e-10))
    assert metrics["iterations"] == 600 and metrics["residual"] < 1e-6 and metrics["converged"] == 1
    for name in PARAMS:
        assert result[name] == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-8)
    assert abs(result["distance"]) > 0.1


def test_an_own_loss_learns_through_own_adjoint_minimiser_and_potential():
    batch = Clusters(*clusters())
    loss = bond_length_loss(mie, 2.7, 3.5, SERIES)
    optimizer = training.optimizer(training.OptimizerConfig("adam"), 0.03)
    state = training.init(PARAMS, optimizer)
    history = [float(m["bond"]) for _, m in training.fit(loss, state, optimizer, [batch] * 5)]
    assert history[0] == pytest.approx(2.6, abs=1e-3) and abs(history[-1] - 2.7) < abs(history[0] - 2.7) - 0.02


def test_an_own_minimiser_learns_its_numbers_and_is_exact():
    systems, lists = jax.tree.map(lambda x: x[0], clusters())
    config = RelaxConfig(fmax=0.0, minimiser=HeavyBall(), adjoint=lamjax.relaxation.Unrolled(5))
    value = lambda n: relax(mie, PARAMS, systems, lists, config, numbers=n).energy  # noqa: E731
    numbers, run = HeavyBall().numbers(np.float64), jax.jit(jax.value_and_grad(value))
    slope, h = run(numbers)[1], 1e-5
    for name in numbers:
        plus, minus = (float(run(numbers | {name: numbers[name] + s * h})[0]) for s in (1, -1))
        assert float(slope[name]) == pytest.approx((plus - minus) / (2 * h), rel=1e-6)


def test_an_own_potential_in_the_calculator_and_in_dynamics():
    atoms = ase.Atoms("Cu3", [(0, 0, 0), (2.8, 0, 0), (1.2, 2.3, 0)])
    atoms.calc = lamjax.Calculator((mie, PARAMS))
    forces = atoms.get_forces()
    h = 1e-5
    energies = []
    for s in (1, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.positions[2, 1] += s * h
        energies.append(moved.get_potential_energy())
    assert forces[2, 1] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), rel=1e-6)
    ensemble = dynamics.nve(mie, dynamics.NVEConfig(timestep=1.0))
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(atoms), temperature=100.0, seed=0)
    conserved = [seen.conserved for _, seen in dynamics.simulate(ensemble, PARAMS, simulation, n_steps=20, every=10)]
    assert np.ptp(np.concatenate(conserved)) < 1e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adjoint": "implicit"}, r"An adjoint is .* the text 'implicit' has no method run\(descent\)"),
        ({"adjoint": Neumann}, r"An adjoint is .*Neumann has no method run"),
        ({"minimiser": Neumann()}, r"A minimiser is .* a Neumann lacks numbers, init, propose, step"),
    ],
)
def test_what_is_no_adjoint_or_minimiser_is_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        RelaxConfig(**wrong)
