"""The seams of generation bear weight: late starts, corrections, no guidance, adapters and a wrapped model, in the real
pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seam_parts import PARTS, Biases
from tiny_run import tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.diffusion.gaussian import noise_level
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.generation.adaptation import Adaptation
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request, Start
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.program import Program

SCHEDULE = linear_schedule()
SETTINGS = {"seed": 3, "num_steps": 10, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_words_data(tmp_path_factory.mktemp("requests") / "data")


@pytest.fixture(scope="module")
def workdir(data):
    """A run of a few steps, with key/value compression."""
    config = tiny_config(data)
    config.model.update({"kv_compress_ratio": 2, "kv_compress_from": 1})
    config.sample.every = 0
    train_and_evaluate(config, data.parent / "run")
    return data.parent / "run"


@pytest.fixture(scope="module")
def pipeline(workdir):
    return TextToImage.from_checkpoint(workdir)


def counted(calls):
    """Wraps a model, to note the batch of every call that is traced."""

    def wrap(apply):
        def call(params, tokens, t, **conditions):
            calls.append(len(t))
            return apply(params, tokens, t, **conditions)

        return call

    return wrap


def test_a_wrapped_model_is_called_in_its_place(workdir, pipeline):
    plain = pipeline(CAPTIONS[:2], **SETTINGS)
    calls = []
    watched = TextToImage.from_checkpoint(workdir, wrap=counted(calls))
    np.testing.assert_array_equal(watched(CAPTIONS[:2], **SETTINGS), plain)
    assert set(calls) == {4}  # both branches of two pictures

    def halved(apply):
        return lambda *args, **kwargs: jax.tree.map(lambda value: value / 2, apply(*args, **kwargs))

    other = TextToImage.from_checkpoint(workdir, wrap=halved)(CAPTIONS[:2], **SETTINGS)
    assert np.abs(other.astype(int) - plain).max() > 2


def test_without_guidance_the_batch_is_not_doubled(workdir, pipeline):
    calls = []
    single = TextToImage.from_checkpoint(workdir, wrap=counted(calls))
    drawn = single(CAPTIONS[:2], **SETTINGS | {"guidance_scale": None}, guidance="none")
    assert set(calls) == {2}
    # A scale of 1 leaves the conditional branch alone; that is what no guidance draws, at half the work.
    expected = pipeline(CAPTIONS[:2], **SETTINGS | {"guidance_scale": 1.0})
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    with pytest.raises(InputError, match="guidance = 'half': must be one of cfg, path_drop, none"):
        single(CAPTIONS[:1], guidance="half")


@pytest.mark.parametrize("sampler", ["dpm-solver", "dpm-solver-diffusers", "ddim", "iddpm"])
def test_a_late_start_stays_near_its_picture(pipeline, sampler):
    request = Request(CAPTIONS[:2], **SETTINGS, sampler=sampler)
    latents = np.random.default_rng(5).normal(size=(2, 4, 4, 4)).astype(np.float32)
    decoded = np.stack([*pipeline.parts.decode_latents(latents)])
    near = []
    for start in (0.1, 0.5, 1.0):
        begin = Start(pipeline.tokens_of(latents, request), start)
        drawn = pipeline(CAPTIONS[:2], **SETTINGS, sampler=sampler, start=begin)
        near.append(np.abs(drawn / 127.5 - 1 - decoded.clip(-1, 1)).mean())
    assert near[0] < near[1] < near[2] and near[0] < 0.2


def test_a_start_that_leaves_no_step_or_has_no_tokens_is_refused(pipeline):
    request = Request(CAPTIONS[:1], **SETTINGS)
    tokens = pipeline.tokens_of(np.zeros((1, 4, 4, 4), np.float32), request)
    with pytest.raises(InputError, match=r"start = 0.05: leaves none of 10 steps; set it to at least 1/10"):
        pipeline(CAPTIONS[:1], **SETTINGS, start=Start(tokens, 0.05))
    with pytest.raises(InputError, match=r"start = 0: must lie in \(0, 1\]"):
        pipeline(CAPTIONS[:1], **SETTINGS, start=Start(tokens, 0))
    with pytest.raises(InputError, match=r"start = 0.5: there are no tokens to begin near"):
        pipeline(CAPTIONS[:1], **SETTINGS, start=Start(start=0.5))
    with pytest.raises(InputError, match=r"latents have shape \(2, 4, 4, 4\), these .* from \(1, 4, 4, 4\)"):
        pipeline.tokens_of(np.zeros((2, 4, 4, 4), np.float32), request)


def keep_where(mask, known, x, t, noise):
    """What is masked stays a known picture, at every noise level."""
    alpha, sigma = noise_level(SCHEDULE, t)
    return jnp.where(mask, alpha * known + sigma * noise, x)


@pytest.mark.parametrize("sampler", ["dpm-solver-diffusers", "ddim", "iddpm"])
def test_a_correction_keeps_half_of_the_picture(pipeline, sampler, compilations):
    request = Request(CAPTIONS[:2], **SETTINGS, sampler=sampler)
    plain = pipeline.draw(request)
    for seed in (5, 6):
        latents = np.random.default_rng(seed).normal(size=(2, 4, 4, 4)).astype(np.float32)
        known = pipeline.tokens_of(latents, request)
        left = pipeline.tokens_of(np.tile(np.float32([1, 1, 0, 0])[:, None], (2, 4, 1, 4)), request) > 0
        correct = jax.tree_util.Partial(keep_where, left, known)
        drawn = pipeline(CAPTIONS[:2], **SETTINGS, sampler=sampler, start=Start(correct=correct))
        decoded = np.clip((np.stack([*pipeline.parts.decode_latents(latents)]) + 1) * 127.5, 0, 255)
        assert np.abs(drawn[:, :, :16] - decoded[:, :, :16]).max() <= 1
        assert np.abs(drawn[:, :, 16:].astype(int) - decoded[:, :, 16:]).max() > 20
        assert np.abs(drawn[:, :, 16:].astype(int) - plain[:, :, 16:]).max() > 0
    # One program without the correction, and one for all known pictures.
    assert compilations.count("jit(sample_step)") <= 2


def test_an_adapter_that_was_trained_is_drawn_with(data, workdir, pipeline, tmp_path):
    config = tiny_config(data)
    config.model.update({"kv_compress_ratio": 2, "kv_compress_from": 1})
    config.init_from = str(workdir)
    config.optimizer.learning_rate = 0.1
    config.sample.update({"every": 100, "num_images": 4, "num_steps": 4})
    train_and_evaluate(config, tmp_path / "run", parts=PARTS["biases"])

    abstract = Program(config, make_mesh(), PARTS["biases"]).state.params

    def load(scale=1.0):
        trained = Checkpoints(tmp_path / "run", read_only=True).restore_params(abstract)
        return jax.tree.map(lambda leaf: scale * leaf, trained)

    def draw(*adapters):
        adapted = TextToImage.from_checkpoint(workdir, adapters=adapters)
        return adapted(CAPTIONS[:2], **SETTINGS).astype(int)

    plain = pipeline(CAPTIONS[:2], **SETTINGS).astype(int)
    whole = draw(Adaptation(Biases, load))
    assert np.abs(whole - plain).max() > 5
    assert np.abs(draw(Adaptation(Biases, lambda: load(0.0))) - plain).max() <= 1
    # Two halves, one laid over the other, are the whole.
    half = Adaptation(Biases, lambda: load(0.5))
    assert np.abs(draw(half, half) - whole).max() <= 1
