"""A one-step student (DMD), converted from diffusers' files, draws the golden latents in one step without guidance."""

import shutil

import flax
import jax
import numpy as np
from golden_cases import GOLDEN, load_arrays

from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.transfer import load_weights
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.models.params import apply_of
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.program import make_sample_fn
from pixart_jax.tokens import grid_positions, patchify, unpatchify


def test_a_one_step_student(tmp_path):
    case, grid = load_arrays("extras/dmd/dmd"), (4, 4)
    for name, target in (
        ("config.json", "config.json"),
        ("student.safetensors", "diffusion_pytorch_model.safetensors"),
    ):
        shutil.copyfile(GOLDEN / "extras/dmd" / name, tmp_path / target)
    weights = load_weights(open_source(tmp_path), Hints(family="alpha"))
    params = flax.traverse_util.unflatten_dict({path: weights.read(path) for path in weights.paths}, sep="/")
    stored, model = weights.stored, weights.stored.model
    positions = grid_positions(grid, stored.position_base, stored.position_scale)
    conditions = {
        "positions": np.tile(positions, (2, 1, 1)),
        "num_tokens": np.full(2, len(positions), np.int32),
        "text": case["in/text"],
        "text_length": case["in/mask"].sum(-1).astype(np.int32),
    }
    schedule = linear_schedule()
    sample = make_sample_fn(apply_of(model), schedule, build_sampler("dmd", schedule, 1), guidance="none")
    noise = patchify(case["in/init_noise"].transpose(0, 2, 3, 1), model.patch_size)
    tokens, found = sample(params, noise, jax.random.split(jax.random.key(0), 2), conditions, {}, 1.0)
    latents = unpatchify(np.asarray(tokens), grid, model.patch_size).transpose(0, 3, 1, 2)
    assert found.shape == (2, 1) and not found.any()
    assert np.abs(latents - case["out/latents"]).max() < 1e-4 * np.abs(case["out/latents"]).max()
