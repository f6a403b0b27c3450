"""A ControlNet's loss and gradients are the reference's, for α and Σ, and nothing of its base is trained."""

import json

import flax
import jax
import numpy as np
import pytest
from golden_cases import GOLDEN, build_model, load_params, to_nchw
from safetensors.numpy import load_file
from torch import load

from pixart_jax.adapters.controlnet import Controlled
from pixart_jax.conversion.control import control_shapes
from pixart_jax.conversion.names.controlnet import RESEARCH, convert_controlnet, split_controlnet
from pixart_jax.conversion.names.diffusers import convert_diffusers
from pixart_jax.diffusion.gaussian import q_sample
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.models.controlnet import ControlNet, copy_blocks
from pixart_jax.models.params import apply_of, init_params, parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.objectives.denoising import diffusion_terms
from pixart_jax.tokens import block_order, grid_positions, patchify

EXTRAS = GOLDEN / "extras"


def nested(flat):
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


class Case:
    """A golden case: model, weights, batch."""

    def __init__(self, name):
        stem = EXTRAS / name
        self.config = json.loads(stem.with_suffix(".json").read_text())
        with np.load(stem.with_suffix(".npz")) as arrays:
            self.arrays = dict(arrays)
        self.research = name.startswith("controlnet_sigma")
        if self.research:
            fields = self.config["model"]
            self.config |= {"input_size": fields["sample_size"], "pe_interpolation": fields["interpolation_scale"]}
            self.model = PixArt(hidden_size=24, depth=5, num_heads=2, text_dim=16, max_text_tokens=13)
            weights = {part: load_file(stem.parent / part / "diffusion_pytorch_model.safetensors") for part in PARTS}
            base, control = weights["transformer"], weights["controlnet"]
            self.base = nested(convert_diffusers(base, self.model.segments(), parameter_shapes(self.model)))
            # Which diffusers does not keep, and nothing here drops a caption.
            self.base["y_embedder"]["y_embedding"] = np.zeros((13, 16), np.float32)
            control = {name.removeprefix(RESEARCH): array for name, array in control.items()}
        else:
            self.model = build_model(self.config)
            state = load(stem.with_suffix(".pth"), weights_only=True)["state_dict"]
            base, control = split_controlnet({name: tensor.numpy() for name, tensor in state.items()})
            self.base = load_params(self.model, base)
        self.controlnet = ControlNet(self.model, self.config["copy_blocks_num"])
        self.adapter = Controlled(self.controlnet, apply_of(self.model), self.model.dtype)
        self.control = self.params(control)

    def params(self, state_dict):
        """A tree like the ControlNet's parameters from arrays under the reference's names."""
        count = self.controlnet.num_copies
        shapes = control_shapes(self.model, count)
        return nested(convert_controlnet(state_dict, count, shapes, research=self.research))

    def tokens(self, name, scale=1.0):
        return patchify(self.arrays[name].transpose(0, 2, 3, 1) * np.float32(scale), 2)

    def batch(self):
        x, arrays = self.arrays["in/x0"], self.arrays
        grid = (x.shape[2] // 2, x.shape[3] // 2)
        positions = grid_positions(grid, self.config["input_size"] // 2, self.config["pe_interpolation"])
        text = arrays["in/text"]
        batch = {
            "control": self.tokens("in/condition_latents", self.config["latent_scale"]),
            "positions": np.tile(positions, (len(x), 1, 1)),
            "num_tokens": np.full(len(x), grid[0] * grid[1], np.int32),
            "text": text.reshape(len(text), *text.shape[-2:]),
            "text_length": arrays["in/mask"].sum(-1).astype(np.int32),
        }
        if self.config.get("micro_condition"):
            batch |= {"image_size": arrays["in/img_hw"], "aspect_ratio": arrays["in/aspect_ratio"].reshape(-1, 1)}
        return batch

    def expected(self, prefix):
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}


PARTS = ("transformer", "controlnet")
CASES = ("controlnet_alpha_ms", "controlnet_alpha_single", "controlnet_sigma/controlnet_sigma")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def gradients(case):
    """Of a ControlNet's parameters: model output, terms of the loss, gradient; of the case's base and batch."""
    batch, t, schedule = case.batch(), case.arrays["in/t"], linear_schedule()
    x0 = case.tokens("in/x0", case.config["latent_scale"] if case.research else 1.0)
    noise, x_t = case.tokens("in/noise"), case.tokens("in/x_t")
    np.testing.assert_allclose(q_sample(schedule, x0, t, noise), x_t, rtol=0, atol=2e-6)

    @jax.jit
    def compute(params, base):
        def loss(params):
            output = case.adapter.apply(params, base, x_t, t, **batch)
            terms = diffusion_terms(schedule, output, x0, x_t, t, noise, batch["num_tokens"])
            if case.research:  # Which trains no variance.
                del terms["vb"]
            return sum(term.mean() for term in terms.values()), output

        gradient, output = jax.grad(loss, has_aux=True)(params)
        return output, gradient

    terms_of = jax.jit(lambda output: diffusion_terms(schedule, output, x0, x_t, t, noise, batch["num_tokens"]))

    def run(params):
        output, gradient = compute(params, case.base)
        return output, terms_of(output), gradient

    return run


def tolerance(case):
    """Of losses and gradients, as the golden cases ask for. But at t = 0 the likelihood is the logarithm of a
    difference of nearly equal numbers, which turns a last bit of the model's output into 2e-4 of the loss."""
    return 1e-3 if (case.arrays["in/t"] == 0).any() else 2e-5


def check(found, expected, tolerance):
    """Two trees agree to that share of the largest value of each array."""
    found, expected = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(
            found[path], array, rtol=0, atol=tolerance * np.abs(array).max() + 1e-9, err_msg=path
        )


def check_loss(case, terms, prefix):
    """Of the research project, the noise's error alone: it trains no variance."""
    if case.research:
        np.testing.assert_allclose(terms["mse"].mean(), case.arrays["out/loss"], rtol=2e-5)
        return
    np.testing.assert_allclose(terms["mse"], case.arrays[f"{prefix}mse"], rtol=2e-5)
    np.testing.assert_allclose(terms["vb"], case.arrays[f"{prefix}vb"], rtol=tolerance(case))
    loss = terms["mse"].mean() + terms["vb"].mean()
    np.testing.assert_allclose(loss, case.arrays[f"{prefix}loss"], rtol=tolerance(case))


def test_output_loss_and_gradients_are_the_references(case, gradients):
    output, terms, gradient = gradients(case.control)
    expected = case.arrays["out/eps_sigma"]
    eps_sigma = [to_nchw(part, {"input_size": case.config["input_size"]}, expected.shape) for part in output]
    np.testing.assert_allclose(np.concatenate(eps_sigma, axis=1), expected, rtol=0, atol=2e-5)
    prefix = "out/" if case.research else "out/random/"
    check_loss(case, terms, prefix)
    check(gradient, case.params(case.expected(f"{prefix}grad/")), tolerance(case))


def test_at_the_start_only_projections_have_a_gradient(case, gradients):
    _, terms, gradient = gradients(copy_blocks(case.base, case.controlnet.num_copies))
    gradient = flax.traverse_util.flatten_dict(gradient, sep="/")
    alive = {path for path, array in gradient.items() if np.abs(array).max() > 0}
    assert alive == {"copies/after_proj/kernel", "copies/after_proj/bias"}
    if case.research:  # The other cases say what they are.
        return
    check_loss(case, terms, "out/zero_init/")
    expected = case.expected("out/zero_init/grad/")
    found = {f"{j}.after_proj.weight": kernel.T for j, kernel in enumerate(gradient["copies/after_proj/kernel"])}
    check(found, {name: expected[name] for name in found}, tolerance(case))


def test_copies_reach_into_compressed_blocks():
    """Σ with any number of copies, of which those of compressed blocks have parameters of their own."""
    compress = (1, 1, 2, 2)
    model = PixArt(hidden_size=24, depth=4, num_heads=2, text_dim=16, max_text_tokens=13, kv_compress=compress)
    adapter = Controlled(ControlNet(model, 3), apply_of(model), model.dtype)
    base, rng = jax.jit(lambda key: init_params(model, key))(jax.random.key(0)), np.random.default_rng(0)
    # Which starts at zero, so that nothing would have a gradient.
    base["final_layer"]["linear"]["kernel"] = rng.standard_normal((24, 32), np.float32)
    trained, frozen = adapter.split(base, jax.random.key(1))
    assert {name: len(trained[name]["scale_shift_table"]) for name in trained if name != "before_proj"} == {
        "copies": 2,
        "copies_2": 1,
    }
    shapes = flax.traverse_util.flatten_dict(jax.tree.map(np.shape, trained), sep="/")
    assert shapes == control_shapes(model, 3)
    order = block_order((4, 4), 2)
    tokens, control = rng.standard_normal((2, 2, 16, 16), np.float32)[:, :, order]
    positions = np.tile(grid_positions((4, 4), 4, 1.0)[order], (2, 1, 1))
    conditions = {"positions": positions, "text": rng.standard_normal((2, 3, 16), np.float32)}
    t = np.array([10, 900])

    @jax.jit
    def compute(trained, control):
        def energy(trained):
            eps = adapter.apply(trained, frozen, tokens, t, control=control, **conditions).eps
            return (eps**2).sum(), eps

        return jax.grad(energy, has_aux=True)(trained)

    plain = jax.jit(model.apply)({"params": base}, tokens, t, **conditions)
    np.testing.assert_allclose(compute(trained, control)[1], plain.eps, rtol=0, atol=2e-5)
    trained = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), trained)
    gradient, eps = compute(trained, control)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    assert np.abs(eps - compute(trained, control + 1)[1]).max() > 1e-3


def test_the_base_is_held_in_the_dtype_it_is_computed_with():
    model = PixArt(hidden_size=24, depth=3, num_heads=2, text_dim=16, max_text_tokens=13, dtype=jax.numpy.bfloat16)
    adapter = Controlled(ControlNet(model, 2), apply_of(model), model.dtype)
    base = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    trained, frozen = jax.eval_shape(adapter.split, base, jax.random.key(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}
    kernels = {path[-1].key: leaf.dtype.name for path, leaf in jax.tree_util.tree_leaves_with_path(frozen)}
    assert kernels["kernel"] == "bfloat16" and kernels["scale_shift_table"] == kernels["bias"] == "float32"
