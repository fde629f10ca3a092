"""Losses of DPA-3 models and their gradients by all parameters equal DeePMD-kit's (fixtures/dpa3/losses)."""

from pathlib import Path

import ase.data
import jax
import numpy as np
import pytest

import lamjax
from lamjax import data, losses
from lamjax.data import Frame
from lamjax.interop.deepmd import state_dict, torch_file
from lamjax.system import Labels, System

FIXTURES = Path(__file__).parents[1] / "fixtures" / "dpa3"
NAMES = sorted(path.stem for path in (FIXTURES / "losses").glob("*.npz"))


def frames(elements, stored) -> list[Frame]:
    kinds = np.array([ase.data.atomic_numbers[s] for s in elements], np.int32)
    found = []
    for k in range(2):
        charge = stored["batch__charge_spin"][k].astype(np.int32) if "batch__charge_spin" in stored else None
        numbers, periodic = kinds[stored["batch__atype"][k]], np.ones(3, bool)
        system = System(stored["batch__coord"][k], numbers, stored["batch__box"][k], periodic, charge_spin=charge)
        labels = Labels(*(stored[f"batch__{name}"][k] for name in ("energy", "force", "virial")), np.ones(3))
        found.append(Frame(system, labels, f"frame {k}", ("", "", ""), {}))
    return found


STATISTICS = (".mean", ".stddev", "out_bias", "out_std", "bias_atom_e", "min_nbor_dist", "type_mask", "_extra_state")


def expected_gradient(name: str, stored):
    """DeePMD-kit's gradients as parameters of lamjax: read as if they were the tensors of the checkpoint."""
    content = torch_file.read(FIXTURES / name / "model.pt")["model"]

    def gradient(key: str, x):
        key = key.removeprefix("model.Default.").replace("._networks.", ".networks.")  # some have a second name
        return stored.get(f"grad__{key}", 0 * x)

    tensors = {k: x if any(word in k for word in STATISTICS) else gradient(k, x) for k, x in content.items()}
    return state_dict.from_checkpoint({"model": tensors})[1]


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_all_gradients_are_deepmds(name):
    stored = dict(np.load(FIXTURES / "losses" / f"{name}.npz"))
    potential, params = lamjax.load(FIXTURES / name / "model.pt")
    given = frames(potential.elements, stored)
    batch = next(data.batches(data.pack(given, data.plan(given, potential.shells, 1)), 2, seed=None))
    kinds = zip("efv", stored["prefactors"], strict=True)
    prefactors = {f"{end}_pref_{kind}": p for kind, p in kinds for end in ("start", "limit")}
    loss = losses.label_loss(potential, losses.LabelLossConfig(**prefactors))
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    np.testing.assert_allclose(value, stored["loss"], rtol=1e-7)  # DeePMD-kit's torch backend rounds 1/N to float32
    for key in ("rmse_e", "rmse_f", "rmse_v"):
        np.testing.assert_allclose(losses.errors(metrics)[key], stored[f"term__{key}"], rtol=1e-7)
    found, expected = named(gradient), named(expected_gradient(name, stored))
    assert found.keys() == expected.keys()
    scale = max(np.abs(x).max() for x in expected.values())
    for key, x in expected.items():
        np.testing.assert_allclose(found[key], x, rtol=0, atol=1e-7 * np.abs(x).max() + 1e-10 * scale, err_msg=key)
    n_gradients = sum(key.startswith("grad__") for key in stored)
    assert n_gradients - 3 <= sum(map(np.any, expected.values())) <= n_gradients


def named(params) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {lamjax.pytree.path_name(path): x for path, x in flat if "statistics" not in lamjax.pytree.path_name(path)}
