"""Pictures near another one, around a part of it and beside it, as PixArt's pipelines draw them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import load_arrays, load_config

from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.generation.canvas import choose_canvas
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.generation.starts import (
    _onto,
    as_finished,
    beside,
    image_to_image,
    inpainting,
    keep_outside,
    latents_of,
    mask_as_finished,
    paste_back,
    reference_canvas,
)
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import guide

CASE = "extras/few_step_samplers"


def picture(height, width):
    """Smooth, so that resizing it forth and back changes little."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    colours = np.stack([np.sin(4 * x + 2 * y), np.cos(3 * y), np.sin(5 * x * y + 1)], axis=-1)
    return np.rint(127.5 * (colours + 1)).astype(np.uint8)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_references_inpainting(strength):
    case, scale = load_arrays(CASE), load_config(CASE)["guidance_scale"]
    known, mask, noise = case["in/image_latents"], case["in/inpaint_mask"] > 0.5, case["in/noises"][0]

    def toy(x, t, conditions):
        cond = conditions["cond"].mean(axis=(1, 2))[:, :, None, None]
        return 0.6 * x + 0.2 * jnp.sin(t / 150).reshape(-1, 1, 1, 1) * cond, None

    denoise = guide(toy, {"cond": case["in/cond"]}, {"cond": case["in/uncond"]}, scale)
    schedule = linear_schedule()
    sampler = build_sampler("dpm-solver-diffusers", schedule, 10, start=strength)
    assert sampler.first_t == case[f"out/inpaint_strength{strength}/timesteps"][0]
    alphas_cumprod = schedule.alphas_cumprod[int(sampler.first_t)]
    x = noise if strength == 1 else np.sqrt(alphas_cumprod) * known + np.sqrt(1 - alphas_cumprod) * noise
    correct = jax.tree_util.Partial(keep_outside, mask, known, noise)
    found = sampler(denoise, jnp.asarray(x, jnp.float32), lambda step: jnp.zeros(x.shape), correct)
    expected = case[f"out/inpaint_strength{strength}/latents"]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(np.where(mask, known, found), known, atol=1e-6)


@pytest.fixture(scope="module")
def seen(weights):
    """A Σ whose pictures are not decoded: (the pipeline, the latents that it was to decode)."""
    opened, latents = TextToImage.from_checkpoint(weights), []

    def decode(batch):
        latents[:] = [batch]
        return iter(np.zeros((len(batch), 8 * batch.shape[1], 8 * batch.shape[2], 3), np.float32))

    return TextToImage(dataclasses.replace(opened.parts, decode_latents=decode, draw_latents=None)), latents


def drawn(seen, request, start):
    pipeline, latents = seen
    pipeline.draw(dataclasses.replace(request, start=start))
    return latents[0]


@pytest.mark.parametrize(
    "sampler,shape,strength",
    [
        ("dpm-solver", {}, 1.0),
        ("sa-solver", {"aspect_ratio": "16:9"}, 0.5),
        ("lcm", {"height": 180, "width": 130}, 0.5),
        ("heun", {}, 0.7),
        ("dmd", {}, 1.0),
    ],
)
def test_what_the_mask_leaves_black_is_kept(seen, sampler, shape, strength):
    """With every kind of sampler, in every shape, for several pictures at once."""
    pipeline, _ = seen
    request = Request(["a cat", "a dog"], seed=4, sampler=sampler, num_steps=1 if sampler == "dmd" else 4, **shape)
    canvas = request.canvas(pipeline.resolution)
    latents = latents_of(pipeline, request, picture(200, 300))
    assert latents.shape == (canvas.bucket.height // 8, canvas.bucket.width // 8, 4)
    mask = np.zeros((canvas.height, canvas.width), bool)
    mask[canvas.height // 2 :] = True
    found = drawn(seen, request, inpainting(pipeline, request, latents, mask, strength))
    assert found.shape == (2, *latents.shape)
    half = latents.shape[0] // 2
    np.testing.assert_allclose(found[:, : half - 1], np.broadcast_to(latents, found.shape)[:, : half - 1], atol=1e-5)
    assert np.abs(found[:, half + 1 :] - latents[half + 1 :]).mean() > 0.1


def test_a_cell_goes_by_its_first_pixel(seen):
    pipeline, _ = seen
    request = Request(["a cat"], num_steps=2)
    latents = latents_of(pipeline, request, picture(256, 256))
    mask = np.zeros((256, 256), bool)
    mask[8:16, 16:24], mask[65:72, 64:72], mask[96, 104] = True, True, True
    start = inpainting(pipeline, request, latents, mask)
    assert start.tokens is None
    changed = np.argwhere((drawn(seen, request, start)[0] != 0) & ~np.isclose(drawn(seen, request, start)[0], latents))
    assert {tuple(place[:2]) for place in changed} == {(1, 2), (12, 13)}
    mask[8:16, 16:24] = mask[96, 104] = False
    with pytest.raises(InputError, match="the mask has nothing white at the first pixel of any 8x8 pixels"):
        inpainting(pipeline, request, latents, mask)


def test_one_program_serves_all_pictures_masks_and_seeds(seen, compilations):
    pipeline, _ = seen
    for seed, shape in enumerate(({}, {"aspect_ratio": "16:9"}, {"height": 90, "width": 90})):
        request = Request(["a cat"], seed=seed, num_steps=3, **shape)
        canvas = request.canvas(pipeline.resolution)
        mask = np.zeros((canvas.height, canvas.width), bool)
        mask[seed:, : 50 + seed] = True
        latents = latents_of(pipeline, request, picture(256, 256))
        drawn(seen, request, inpainting(pipeline, request, latents, mask, 0.7))
    assert compilations.count("jit(sample_step)") <= 1


def test_strength_says_how_far_from_the_picture(seen):
    pipeline, _ = seen
    request = Request(["a cat", "a dog"], num_steps=10, guidance_scale=1.0)
    latents = latents_of(pipeline, request, picture(256, 256))
    far = [
        np.abs(drawn(seen, request, image_to_image(pipeline, request, latents, strength)) - latents).mean()
        for strength in (0.1, 0.5, 1.0)
    ]
    assert far[0] < far[1] < far[2]
    with pytest.raises(InputError, match=r"^strength = 0.05: leaves none of 10 steps"):
        image_to_image(pipeline, request, latents, 0.05)
    with pytest.raises(InputError, match=r"strength = 0: must lie in \(0, 1\]"):
        image_to_image(pipeline, request, latents, 0)
    with pytest.raises(InputError, match=r"num_steps = 10: a consistency model .* at most 6; set strength to at least"):
        image_to_image(pipeline, dataclasses.replace(request, sampler="lcm"), latents, 0.13)


def test_a_reference_is_the_left_half(seen):
    pipeline, _ = seen
    request = Request(["a cat"], num_steps=2, aspect_ratio="2:1")
    canvas = request.canvas(pipeline.resolution)
    page = reference_canvas(picture(90, 90), canvas)
    assert page.shape == (canvas.height, canvas.width, 3) and (page[:, canvas.width // 2 :] == 255).all()
    np.testing.assert_array_equal(
        page[:, : canvas.width // 2], reference_canvas(picture(90, 90), canvas)[:, : canvas.width // 2]
    )
    latents = latents_of(pipeline, request, page)
    found = drawn(seen, request, beside(pipeline, request, latents))[0]
    half = latents.shape[1] // 2
    np.testing.assert_allclose(found[:, :half], latents[:, :half], atol=1e-5)
    assert np.abs(found[:, half:] - latents[:, half:]).mean() > 0.1


def test_latents_of_one_seed_are_the_same(seen):
    pipeline, _ = seen
    one, same, other = (latents_of(pipeline, Request("x", seed=seed), picture(256, 256)) for seed in (1, 1, 2))
    mean, std = pipeline.parts.encode_pictures(picture(256, 256)[None])
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.abs((one - mean[0]) / std[0]).mean() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("height,width", [(256, 256), (300, 200), (144, 256), (97, 130), (1000, 800)])
def test_what_is_drawn_becomes_the_finished_picture(height, width):
    """A picture is laid onto the canvas so that cutting the finished one out of it gives the picture back."""
    canvas = choose_canvas(256, height=height, width=width)
    finished = as_finished(picture(height, width), canvas)
    np.testing.assert_array_equal(finished, picture(height, width))
    onto = _onto(finished, canvas)
    assert onto.shape == (canvas.bucket.height, canvas.bucket.width, 3)
    assert np.abs(as_finished(onto, canvas).astype(int) - finished).max() <= 6


def test_pixels_outside_the_mask_are_pasted_back():
    rng = np.random.default_rng(0)
    drawn, given = rng.integers(0, 256, (2, 3, 20, 30, 3), np.uint8)
    canvas = choose_canvas(256, height=20, width=30)
    mask = mask_as_finished(rng.random((20, 30)) < 0.5, canvas)
    found = paste_back(drawn, given[0], mask)
    assert (found[:, ~mask] == given[0][~mask]).all() and (found[:, mask] == drawn[:, mask]).all()
