"""DreamBooth's loss and min-SNR weights against diffusers' own."""

import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.objectives import denoising, prior_preservation
from pixart_jax.objectives.denoising import diffusion_loss, min_snr_weights
from pixart_jax.objectives.prior_preservation import IS_PRIOR, prior_preservation_loss

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "extras" / "dreambooth_min_snr.npz"))
SCHEDULE = linear_schedule()
CLASS = jnp.array([False, False, True, True])


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_weights_are_diffusers(gamma):
    weights = min_snr_weights(SCHEDULE, jnp.asarray(GOLDEN["in/timesteps"]), gamma)
    # diffusers takes 1 - ᾱ in float32, which costs it 5e-5 where there is little noise; our tables are float64's.
    np.testing.assert_allclose(weights, GOLDEN[f"out/min_snr_{gamma}/weights_eps"], rtol=1e-4)
    weights = min_snr_weights(SCHEDULE, jnp.asarray(GOLDEN["in/timesteps"]), gamma, "v")
    np.testing.assert_allclose(weights, GOLDEN[f"out/min_snr_{gamma}/weights_v_diffusers_dreambooth"], rtol=1e-4)


@pytest.fixture
def given(monkeypatch):
    """The golden case's predictions in place of a model's at drawn timesteps: a row is a picture of 30 tokens."""
    error = np.square(GOLDEN["in/model_pred"] - GOLDEN["in/target"]).mean((1, 2, 3))

    def terms(*_, **how):
        return denoising.Drawn({"mse": jnp.asarray(error)}, jnp.asarray(GOLDEN["in/timesteps"]))

    monkeypatch.setattr(denoising, "noised_terms", terms)
    monkeypatch.setattr(prior_preservation, "noised_terms", terms)


def loss_of(loss_fn, **batch):
    loss, metrics = loss_fn({}, SimpleNamespace(frozen={}), batch, None)
    assert metrics["loss"] == loss
    return float(loss), {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_loss_is_diffusers(given, weight):
    loss, metrics = loss_of(prior_preservation_loss(None, SCHEDULE, prior_weight=weight), is_prior=CLASS)
    assert loss == pytest.approx(GOLDEN[f"out/prior_{weight}/loss"], rel=2e-5)
    assert metrics["subject"] == pytest.approx(GOLDEN["out/instance_loss"], rel=2e-5)
    assert metrics["prior"] == pytest.approx(GOLDEN["out/prior_loss"], rel=2e-5)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_diffusers(given, gamma):
    loss, _ = loss_of(diffusion_loss(None, SCHEDULE, min_snr_gamma=gamma))
    assert loss == pytest.approx(GOLDEN[f"out/min_snr_{gamma}/loss_eps"], rel=2e-5)
    loss, _ = loss_of(prior_preservation_loss(None, SCHEDULE, prior_weight=1.0, min_snr_gamma=gamma), is_prior=CLASS)
    assert loss == pytest.approx(GOLDEN[f"out/min_snr_{gamma}/dreambooth_loss_prior1"], rel=2e-5)


def test_rows_are_drawn_apart_and_may_be_split():
    """Every row has a noise and a timestep of its own; the mean over halves of the batch is the whole batch's loss."""

    def apply(trained, frozen, tokens, t, **conditions):
        assert set(conditions) == {"num_tokens"}
        return SimpleNamespace(eps=tokens * trained, v=None)

    batch = {"tokens": jnp.ones((4, 3, 2)), "num_tokens": jnp.full(4, 3), IS_PRIOR: jnp.array([0, 1, 0, 1], bool)}
    keys = jax.random.split(jax.random.key(0), 4)
    loss_fn = prior_preservation_loss(apply, SCHEDULE, prior_weight=0.5)
    held = SimpleNamespace(frozen={})

    def loss(rows):
        part = {name: value[rows] for name, value in batch.items()}
        return float(loss_fn(jnp.float32(0.3), held, part, keys[rows])[0])

    assert loss(slice(None)) == pytest.approx((loss(slice(2)) + loss(slice(2, 4))) / 2, rel=1e-6)
    del batch[IS_PRIOR]
    drawn = denoising.noised_terms(apply, SCHEDULE, jnp.float32(0.3), held, batch, keys, snr=False)
    for values in (drawn.t, drawn.terms["mse"]):
        assert len(np.unique(values)) == 4
