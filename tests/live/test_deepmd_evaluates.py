"""DeePMD-kit itself evaluates what lamjax writes (`pip install -e ".[test,deepmd]" && pytest -m deepmd`).

Models of random options with random, non-zero weights, on random structures: numbers that no stored file can foresee.
"""

import functools
import warnings

import jax
import numpy as np
import pytest

import lamjax
from lamjax import edit
from lamjax.descriptors import (
    DPA1Config,
    DPA2Config,
    DPA3Config,
    RepflowConfig,
    RepformerConfig,
    RepinitConfig,
    ThreeBodyConfig,
)
from lamjax.heads import EnergyHeadConfig
from lamjax.interop.deepmd import write
from lamjax.potential import PotentialConfig

pytestmark = pytest.mark.deepmd
ELEMENTS = ("O", "H", "Si", "Mg")
ACTIVATIONS = ("tanh", "gelu", "silu", "softplus", "sigmoid", "silut:2.0", "linear")


def random_config(rng: np.random.Generator) -> PotentialConfig:
    """One of very many combinations of options; some of them are in no fixture."""

    def flip(p=0.5):
        return bool(rng.random() < p)

    def pick(*values):
        return values[rng.integers(len(values))]

    neuron = pick((3, 6, 12), (4, 8), (5, 5, 10))
    shared = {
        "tebd_dim": pick(3, len(ELEMENTS), 2 * len(ELEMENTS)),
        "tebd_input_mode": pick("concat", "strip"),
        "type_one_side": flip(),
        "set_davg_zero": flip(),
        "activation_function": pick(*ACTIVATIONS),
        "resnet_dt": flip(),
        "neuron": neuron,
        "axis_neuron": pick(2, 3),
    }
    excluded = ((0, 1), (2, 2)) if flip(0.3) else ()
    common = {
        "exclude_types": excluded,
        "env_protection": pick(0.0, 0.02),
        "use_econf_tebd": flip(0.3),
        "use_tebd_bias": flip(),
        "concat_output_tebd": flip(),
    }
    if flip(0.25):
        descriptor = DPA1Config(rcut=5.0, rcut_smth=1.0, sel=70, smooth_type_embedding=flip(), **shared, **common)
    else:
        descriptor = DPA2Config(
            repinit=RepinitConfig(rcut=5.0, rcut_smth=1.0, nsel=70, **shared),
            three_body=ThreeBodyConfig(rcut=3.2, sel=30, neuron=pick((2, 4), (3, 6, 12))) if flip() else None,
            repformer=_repformer(flip, pick),
            smooth=flip(0.7),
            add_tebd_to_repinit_out=flip(),
            **common,
        )
    head = EnergyHeadConfig(
        neuron=pick((8, 8), (6, 12, 12)),
        activation_function=pick(*ACTIVATIONS),
        resnet_dt=flip(),
        numb_fparam=pick(0, 2),
        numb_aparam=pick(0, 1),
        dim_case_embd=pick(0, 3),
        exclude_types=(3,) if flip(0.2) else (),
    )
    return PotentialConfig(ELEMENTS, descriptor, (("Default", head),), ((1, 1),) if flip(0.2) else ())


def _repformer(flip, pick) -> RepformerConfig:
    switches = ("update_g1_has_conv", "update_g1_has_attn", "update_g2_has_g1g1", "update_g2_has_attn", "update_h2")
    switches += ("attn2_has_gate", "use_sqrt_nnei", "g1_out_conv", "g1_out_mlp", "set_davg_zero", "direct_dist")
    return RepformerConfig(
        rcut=3.8,
        rcut_smth=1.5,
        nsel=40,
        nlayers=pick(1, 2, 3),
        g1_dim=pick(7, 11),
        g2_dim=pick(4, 6),
        axis_neuron=pick(2, 3),
        attn1_hidden=4,
        attn1_nhead=pick(1, 2),
        attn2_hidden=pick(3, 4),
        attn2_nhead=pick(1, 2),
        activation_function=pick(*ACTIVATIONS),
        update_style=pick("res_avg", "res_incr", "res_residual"),
        update_g1_has_grrg=True,  # without both of these DeePMD-kit cannot evaluate some of the rest
        update_g1_has_drrd=flip(),
        ln_eps=pick(1e-5, 1e-3),
        **{name: flip() for name in switches},
    )


def random_dpa3(rng: np.random.Generator) -> PotentialConfig:
    """A DPA-3 of any combination of options."""

    def flip(p=0.5):
        return bool(rng.random() < p)

    def pick(*values):
        return values[rng.integers(len(values))]

    smooth, angles, style = flip(0.6), flip(0.8), pick("res_avg", "res_incr", "res_residual", "res_residual")
    repflow = RepflowConfig(
        n_dim=pick(8, 11), e_dim=pick(8, 16), a_dim=8, nlayers=pick(1, 2, 3), e_rcut=5.0, e_rcut_smth=pick(2.0, 4.4),
        e_sel=pick(20, 70), a_rcut=3.4, a_rcut_smth=pick(1.5, 3.0), a_sel=pick(6, 20), a_compress_rate=pick(0, 1, 2),
        a_compress_e_rate=pick(1, 2), a_compress_use_split=flip(), n_multi_edge_message=pick(1, 1, 2),
        axis_neuron=pick(2, 3, 4), update_angle=angles, update_style=style, fix_stat_std=pick(0.0, 0.3),
        optim_update=flip(), smooth_edge_update=smooth, edge_init_use_dist=flip(), use_exp_switch=flip(),
        use_dynamic_sel=smooth and flip(), sel_reduce_factor=pick(2.5, 10.0),
        sequential_update=angles and style == "res_residual" and flip(),
    )  # fmt: skip
    charged = flip(0.3)
    descriptor = DPA3Config(
        repflow=repflow,
        concat_output_tebd=flip(),
        activation_function=pick(*ACTIVATIONS, "custom_silu:3.0"),
        exclude_types=((0, 1), (2, 2)) if flip(0.3) else (),
        env_protection=pick(0.0, 0.02),
        use_econf_tebd=flip(0.3),
        use_tebd_bias=flip(),
        use_loc_mapping=flip(),
        add_chg_spin_ebd=charged,
        default_chg_spin=(1.0, 2.0) if charged and flip() else None,
    )
    return PotentialConfig(ELEMENTS, descriptor, (("Default", EnergyHeadConfig(neuron=(8, 8))),))


def filled(params, rng: np.random.Generator):
    """Every number random and of a size that matters; deviations positive, means zero in every other model."""
    mean = rng.integers(2) * 0.1

    def draw(path, leaf):
        name = str(path[-1])
        size = rng.normal(size=leaf.shape)
        if "stddev" in name:
            return np.broadcast_to(np.abs(size[:, :1]) + 0.3, leaf.shape)
        if "mean" in name:
            return size * np.array([mean, 0, 0, 0])
        return size / max(1, leaf.shape[0] if leaf.ndim == 2 else 1) ** 0.5

    return jax.tree_util.tree_map_with_path(draw, params)


@functools.cache
def structures() -> list[lamjax.System]:
    """A molecule, a crystal in a skewed cell smaller than the cutoff, a denser box."""
    rng = np.random.default_rng(7)
    collected = []
    for n, length, periodic in ((5, 4.0, False), (4, 4.2, True), (9, 6.3, True)):
        cell = length * np.eye(3) + (rng.uniform(-0.6, 0.6, (3, 3)) if periodic else 0)
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[rng.permutation(27)[:n]] / 3
        positions = (grid + rng.uniform(-0.06, 0.06, (n, 3))) @ cell
        numbers = np.array([8, 1, 14, 12])[rng.integers(4, size=n)].astype(np.int32)
        cell = cell if periodic else np.zeros((3, 3))
        system = lamjax.System(positions, numbers, cell, np.full(3, periodic))
        collected.append(system._replace(fparam=rng.normal(size=2), aparam=rng.normal(size=(n, 1))))
        collected[-1] = collected[-1]._replace(
            charge_spin=np.array([rng.integers(-3, 4), rng.integers(1, 5)], np.int32)
        )
    return collected


@functools.cache
def in_deepmd(path):
    """DeePMD-kit's own model of a `.dp` file (torch, float64)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepmd.dpmodel.utils.serialization import load_dp_model  # the extra [deepmd]
        from deepmd.pt.model.model import BaseModel

        return BaseModel.deserialize(load_dp_model(str(path))["model"])


def evaluate_in_deepmd(path, config: PotentialConfig, system: lamjax.System):
    """Energy, forces, virial, atomic energies by DeePMD-kit."""
    import torch

    head, charged = config.heads[0][1], getattr(config.descriptor, "add_chg_spin_ebd", False)
    types = [config.elements.index(s) for s in lamjax.to_ase(system).symbols]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = in_deepmd(path)(
            torch.tensor(system.positions[None], device="cpu"),
            torch.tensor([types], device="cpu"),
            box=torch.tensor(system.cell.reshape(1, 9), device="cpu") if system.pbc.all() else None,
            fparam=torch.tensor(system.fparam[None], device="cpu") if head.numb_fparam else None,
            aparam=torch.tensor(system.aparam[None], device="cpu") if head.numb_aparam else None,
            **({"charge_spin": torch.tensor(system.charge_spin[None], dtype=torch.float64)} if charged else {}),
        )
    parts = [result[name][0].detach().numpy() for name in ("energy", "force", "virial", "atom_energy")]
    return parts[0].item(), parts[1], parts[2].reshape(3, 3), parts[3].ravel()


def assert_equal_numbers(path, potential, params):
    predict = jax.jit(functools.partial(lamjax.predict, potential))
    for system in structures():
        ours = predict(params, system, lamjax.allocate(potential, system))
        theirs = evaluate_in_deepmd(path, potential.config, system)
        for name, a, b in zip(("energy", "forces", "virial", "atomic_energies"), ours, theirs, strict=True):
            error = np.abs(np.asarray(a) - b).max()
            assert error < 1e-9 * max(1, np.abs(b).max()), f"{name}: {error:.1e}"


@pytest.mark.filterwarnings("ignore:.*the model keeps the nearest")
@pytest.mark.parametrize("made", [random_config, random_dpa3])
@pytest.mark.parametrize("seed", range(40))
def test_random_models_give_deepmds_numbers(tmp_path, made, seed):
    rng = np.random.default_rng(seed)
    config = made(rng)
    potential = lamjax.build(config)
    params = filled(potential.init(jax.random.key(seed)), rng)
    (tmp_path / "model.dp").write_bytes(write.dp_bytes(config, params, "Default"))
    potential, params = lamjax.load(tmp_path / "model.dp")
    assert_equal_numbers(tmp_path / "model.dp", potential, params)


def test_edited_models_give_deepmds_numbers(tmp_path):
    """Fewer and then more elements, in another order."""
    rng = np.random.default_rng(3)
    config = random_config(np.random.default_rng(1))
    potential = lamjax.build(config)
    pair = edit.restrict_elements(potential, filled(potential.init(jax.random.key(0)), rng), ["Mg", "O"])
    potential, params = edit.extend_elements(*pair, ["H", "Si"], {"H": "O", "Si": "Mg"})
    (tmp_path / "model.dp").write_bytes(write.dp_bytes(potential.config, params, "Default"))
    assert_equal_numbers(tmp_path / "model.dp", potential, params)
