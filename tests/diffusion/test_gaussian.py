"""Schedule, process and loss equal the reference's numbers (golden case `diffusion_loss`, spec §4.1 and §9.3)."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import load_arrays

from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import linear_schedule, respace
from pixart_jax.errors import InputError
from pixart_jax.objectives.denoising import diffusion_loss, diffusion_terms, token_mean
from pixart_jax.objectives.objective import Held

SCHEDULE = linear_schedule()


@pytest.fixture(scope="module")
def case():
    return load_arrays("diffusion_loss")


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def test_betas(case):
    np.testing.assert_allclose(SCHEDULE.betas, case["out/betas"], rtol=1e-12)


def test_schedule_table_of_the_spec():
    for t, alphas_cumprod, log_variance in [
        (0, 0.9999, -9.816725135),
        (1, 0.9997800921, -9.816725135),
        (250, 0.5214230306, -5.288026530),
        (500, 0.0777966584, -4.600049740),
        (999, 4.0358298e-5, -3.912023829),
    ]:
        assert SCHEDULE.alphas_cumprod[t] == pytest.approx(alphas_cumprod, rel=1e-8)
        assert SCHEDULE.posterior_log_variance[t] == pytest.approx(log_variance, rel=1e-6)


def test_process(case):
    t = case["in/t"]
    eps, v = np.split(case["in/model_output"], 2, axis=1)
    x_t = gaussian.q_sample(SCHEDULE, case["in/x0"], t, case["in/noise"])
    assert_close(x_t, case["out/x_t"])
    mean, log_variance = gaussian.q_posterior(SCHEDULE, case["in/x0"], case["out/x_t"], t)
    assert_close(mean, case["out/posterior_mean"])
    assert_close(np.broadcast_to(log_variance, mean.shape), case["out/posterior_log_variance"])
    mean, log_variance = gaussian.p_mean_log_variance(SCHEDULE, case["out/x_t"], t, eps, v)
    assert_close(mean, case["out/p_mean"])
    assert_close(log_variance, case["out/p_log_variance"])
    assert_close(gaussian.predict_x0(SCHEDULE, case["out/x_t"], t, eps), case["out/pred_x0"])


@pytest.mark.parametrize("snr", [False, True])
def test_loss_terms(case, snr):
    """Pixels as tokens: [B, C, H, W] -> [B, H·W, C]; the loss is element-wise, so the order does not matter."""
    x0, noise, output, x_t = (
        case[name].reshape(*case[name].shape[:2], -1).transpose(0, 2, 1)
        for name in ("in/x0", "in/noise", "in/model_output", "out/x_t")
    )
    t = case["in/t"]
    assert 0 in t
    eps, v = np.split(output, 2, axis=2)
    num_tokens = np.full(len(t), x0.shape[1])
    terms = diffusion_terms(SCHEDULE, SimpleNamespace(eps=eps, v=v), x0, x_t, t, noise, num_tokens, snr=snr)
    total = terms["mse"] + terms["vb"]
    if snr:
        np.testing.assert_allclose(total, case["out/snr_loss"], rtol=2e-5)
    else:
        np.testing.assert_allclose(terms["mse"], case["out/mse"], rtol=2e-5)
        np.testing.assert_allclose(terms["vb"], case["out/vb"], rtol=2e-5)
        np.testing.assert_allclose(total, case["out/loss"], rtol=2e-5)


def test_padding_does_not_count():
    values = np.ones((2, 6, 3), np.float32)
    values[0, 4:] = 100.0
    np.testing.assert_allclose(token_mean(values, jnp.array([4, 6])), [1.0, 1.0])


def test_vb_teaches_only_the_variance(case):
    eps, v = np.split(case["in/model_output"], 2, axis=1)

    def vb(eps, v):
        return gaussian.vlb_bits(SCHEDULE, case["in/x0"], case["out/x_t"], case["in/t"], eps, v).sum()

    grad_eps, grad_v = jax.grad(vb, argnums=(0, 1))(eps, v)
    assert np.all(grad_eps == 0) and np.all(np.isfinite(grad_v)) and np.any(grad_v != 0)


def test_draws_of_a_sample_do_not_depend_on_its_batch():
    seen = {}

    def apply(trained, frozen, x_t, t, num_tokens):
        seen[len(t)] = np.asarray(t), np.asarray(x_t)
        return SimpleNamespace(eps=x_t, v=None)

    loss_fn = diffusion_loss(apply, SCHEDULE)
    keys = jax.random.split(jax.random.key(3), 4)
    tokens = np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32)
    loss_fn({}, Held({}, {}), {"tokens": tokens, "num_tokens": jnp.full(4, 5)}, keys)
    loss_fn({}, Held({}, {}), {"tokens": tokens[2:3], "num_tokens": jnp.full(1, 5)}, keys[2:3])
    assert seen[4][0][2] == seen[1][0][0]
    np.testing.assert_array_equal(seen[4][1][2], seen[1][1][0])


def test_respacing():
    assert respace(SCHEDULE, 20).timesteps[:8].tolist() == [0, 53, 105, 158, 210, 263, 315, 368]
    hundred = respace(SCHEDULE, 100)
    assert hundred.timesteps[[0, 1, 49, 50, 51, 99]].tolist() == [0, 10, 494, 505, 515, 999]
    np.testing.assert_allclose(hundred.alphas_cumprod, SCHEDULE.alphas_cumprod[hundred.timesteps], rtol=1e-12)
    with pytest.raises(InputError, match="num_steps = 1001"):
        respace(SCHEDULE, 1001)
