"""What a model learns to predict: any target becomes the noise, and weights make errors of the picture count alike."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.diffusion.predictions import PREDICTIONS, eps_of, levels, min_snr_weights, noised, wanted
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.models.pixart import ModelOutput
from pixart_jax.objectives.denoising import diffusion_loss, diffusion_terms, without_variance
from pixart_jax.objectives.objective import Held
from pixart_jax.objectives.timesteps import DENSITIES, Timesteps

SCHEDULE = linear_schedule()
X0, NOISE = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
T = jnp.array([1, 400, 998])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_becomes_the_noise(prediction):
    x = noised(prediction, SCHEDULE, X0, T, NOISE)
    alpha, sigma = levels(prediction, SCHEDULE, T, X0)
    found = eps_of(prediction, alpha, sigma, x, wanted(prediction, SCHEDULE, X0, T, NOISE))
    np.testing.assert_allclose(found, NOISE, atol=2e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_make_an_error_of_the_picture_count_as_often_whatever_is_predicted(prediction):
    """The squared error of what a wrong picture implies, weighted, is min(SNR, γ) of the picture's."""
    alpha, sigma = levels(prediction, SCHEDULE, T, X0)
    x = noised(prediction, SCHEDULE, X0, T, NOISE)
    wrong = X0 + 0.1
    implied = {"x0": wrong, "eps": (x - alpha * wrong) / sigma, "flow": (x - wrong) / sigma}
    implied["v"] = alpha * implied["eps"] - sigma * wrong
    error = jnp.square(implied[prediction] - wanted(prediction, SCHEDULE, X0, T, NOISE)).mean((1, 2))
    weighted = min_snr_weights(SCHEDULE, T, 5.0, prediction) * error
    np.testing.assert_allclose(weighted, jnp.minimum((alpha / sigma) ** 2, 5.0).reshape(-1) * 0.01, rtol=5e-3)


def test_the_learned_variance_is_held_to_the_same_bound():
    num_tokens, v = jnp.full(3, 4), jnp.asarray(NOISE[::-1])
    x = noised("eps", SCHEDULE, X0, T, NOISE)
    found = {}
    for prediction in ("eps", "x0", "v"):
        output = SimpleNamespace(eps=wanted(prediction, SCHEDULE, X0, T, NOISE), v=v)
        terms = diffusion_terms(SCHEDULE, output, X0, x, T, NOISE, num_tokens, prediction=prediction)
        assert float(terms["mse"].max()) == 0
        found[prediction] = terms["vb"]
    np.testing.assert_allclose(found["x0"], found["eps"], rtol=1e-3)
    np.testing.assert_allclose(found["v"], found["eps"], rtol=1e-3)


def test_without_the_variance_the_error_alone_is_the_loss():
    """As in the reference's LoRA scripts (spec 7.4)."""

    def apply(trained, frozen, x_t, t, **_):
        return ModelOutput(trained * x_t, trained * x_t)

    keys = jax.random.split(jax.random.key(0), 3)
    batch = {"tokens": jnp.asarray(X0), "num_tokens": jnp.full(3, 4)}

    def run(apply):
        loss = diffusion_loss(apply, SCHEDULE)
        return loss(jnp.float32(0.5), Held(None, None, 0), {**batch}, keys)[1]

    whole, error = run(apply), run(without_variance(apply))
    assert set(error) == {"loss", "mse"} and error["loss"] == error["mse"] == whole["mse"]
    assert whole["loss"] == pytest.approx(whole["mse"] + whole["vb"]) and whole["vb"] > 0


def test_flow_is_trained_over_all_of_its_way():
    """The mean loss of a model that says 0 is that of eps - x_0; its timesteps are 1000·σ."""
    seen = []

    def apply(trained, frozen, x_t, t):
        seen.append((x_t, t))
        return SimpleNamespace(eps=0 * x_t, v=None)

    batch = {"tokens": jnp.zeros((64, 4, 5)), "num_tokens": jnp.full(64, 4)}
    loss = diffusion_loss(
        lambda trained, frozen, x_t, t, num_tokens: apply(trained, frozen, x_t, t), SCHEDULE, prediction="flow"
    )
    value, _ = loss(None, SimpleNamespace(frozen=None), batch, jax.random.split(jax.random.key(0), 64))
    ((x_t, t),) = seen
    np.testing.assert_allclose(x_t.std((1, 2)) / (t / 1000), 1.0, atol=0.6)
    assert 0.7 < float(value) < 1.3 and float(t.min()) < 100 and float(t.max()) > 900


def test_densities():
    keys = jax.random.split(jax.random.key(0), 4096)
    flow = {name: np.asarray(Timesteps(name).draw(keys, 1000, continuous=True)) / 1000 for name in DENSITIES}
    assert abs(flow["uniform"].mean() - 0.5) < 0.02 and abs(flow["uniform"].std() - 0.289) < 0.01
    # Of the sigmoid of a standard normal.
    assert abs(flow["logit_normal"].mean() - 0.5) < 0.02 and abs(flow["logit_normal"].std() - 0.208) < 0.01
    shifted = np.asarray(Timesteps(shift=3.0).draw(keys, 1000, continuous=True)) / 1000
    np.testing.assert_allclose(shifted, 3 * flow["uniform"] / (1 + 2 * flow["uniform"]), rtol=1e-5)
    t = np.asarray(Timesteps("logit_normal", mean=-1.0).draw(keys, 1000, continuous=False))
    assert t.dtype == np.int32 and t.min() >= 0 and t.max() < 1000 and t.mean() < 350
