"""What eight devices compute of structures, beside one device: differences as JSON. Run by test_domains.py."""

import json
import warnings

import ase
import jax
import numpy as np
import potentials

import lamjax
from lamjax import classical, domains, dynamics

jax.config.update("jax_enable_x64", True)
MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=4.5)
PARAMS = MORSE.init()
TRICLINIC = np.array([[13.0, 0, 0], [3.0, 12.0, 0], [-2.0, 2.5, 14.0]])


def crystal(pbc=(True, True, True)) -> ase.Atoms:
    """Atoms on a distorted lattice in a skewed cell, of which an eighth is empty, some on borders, others unwrapped."""
    rng = np.random.default_rng(0)
    places = np.array([p for p in np.ndindex(5, 4, 5)], float) / (5, 4, 5)
    places = places[~np.all(places < 0.5, axis=1)]
    places[1:] += rng.uniform(-0.03, 0.03, places[1:].shape)
    empty = np.all((places >= 0) & (places < 0.5), axis=1)
    places = places[~empty]
    places[:4] = [(0.5, 0.5, 0.5), (0.0, 0.5, 0.75), (-1e-17, 0.75, 0.5), (0.75, 0.0, 0.5)]
    atoms = ase.Atoms("Cu" * len(places), cell=TRICLINIC, pbc=pbc, scaled_positions=places)
    atoms.positions += (rng.integers(-2, 3, places.shape) * np.array(pbc)) @ TRICLINIC
    return atoms


def difference(a, b) -> float:
    """The largest difference relative to the largest number."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())


def compared(potential, params, atoms, counts) -> dict[str, float]:
    """Of each field of the prediction; and what the domains hold."""
    system = lamjax.from_ase(atoms)
    neighbors = domains.allocate(potential, system, counts)
    one = jax.jit(lambda s, n: lamjax.predict(potential, params, s, n))(system, lamjax.allocate(potential, system))
    many = jax.jit(lambda s, n: domains.predict(potential, params, s, n))(system, neighbors)
    assert np.isfinite(one.energy)
    differences = {name: difference(a, b) for name, a, b in zip(one._fields, many, one, strict=True)}
    return differences | {"own": np.asarray(neighbors.lists.number)[:, 0].tolist(), "n_atoms": len(atoms)}


def gradient(atoms, counts) -> float:
    """Of a loss of energy and forces with respect to the parameters."""
    system = lamjax.from_ase(atoms)
    near, all_of_them = domains.allocate(MORSE, system, counts), lamjax.allocate(MORSE, system)

    def slopes(predict, neighbors):
        def loss(params, neighbors):
            prediction = predict(MORSE, params, system, neighbors)
            return prediction.energy + (prediction.forces**2).sum()

        return jax.jit(jax.grad(loss))(PARAMS, neighbors)

    many, one = slopes(domains.predict, near), slopes(lamjax.predict, all_of_them)
    return max(difference(many[name], one[name]) for name in one)


def moving() -> dict[str, float]:
    """Twenty hot steps, in which atoms change domains and arrays that begin without spare room must grow."""
    atoms = crystal()
    momenta = np.random.default_rng(1).normal(size=(len(atoms), 3)) * 3.0
    momenta -= momenta.mean(axis=0)
    dynamics.run.HEADROOM = 1.0
    config = dynamics.NVEConfig(timestep=4.0)
    ends = {}
    for name, over in (("one", None), ("many", domains.divide((2, 2, 1)))):
        ensemble = dynamics.nve(MORSE, config, over)
        start = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(atoms), momenta=momenta, skin=0.3)
        *_, (end, seen) = dynamics.simulate(ensemble, PARAMS, start, 20, every=20, skin=0.3)
        ends[name] = (end, seen, start)
    (end, seen, start), (_, alone, _) = ends["many"], ends["one"]
    fields = ("positions", "momenta", "forces", "stress", "conserved")
    differences = {name: difference(getattr(seen, name), getattr(alone, name)) for name in fields}
    number = [np.asarray(s.lists.number).tolist() for s in (start, end)]
    return differences | {"step": int(seen.step[-1]), "before": number[0], "after": number[1], "grown": end.n_grown}


def main() -> None:
    warnings.simplefilter("ignore")
    messages = potentials.cases()["dpa2_default"]
    small = ase.Atoms(
        "OHCu" * 6, cell=0.6 * TRICLINIC, pbc=True, scaled_positions=np.random.default_rng(3).random((18, 3))
    )
    differences = {
        "three": compared(MORSE, PARAMS, crystal(), (2, 2, 2)),
        "one": compared(MORSE, PARAMS, crystal((False, True, False)), (1, 1, 3)),
        "messages": compared(messages.potential, messages.params, small, (2, 1, 2)),
        "gradient": gradient(crystal(), (2, 2, 1)),
        "moving": moving(),
    }
    print(json.dumps(differences))


if __name__ == "__main__":
    main()
