"""Learned weights of the loss: what they are at each level, what they move, and what they cannot stand beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config

from pixart_jax.adapters.weighed import UNCERTAINTY
from pixart_jax.config import build_adapter, build_model, build_objective, build_tx, check_config
from pixart_jax.diffusion.predictions import levels
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.models.params import init_params
from pixart_jax.objectives.objective import Held
from tools.bench.train import training_batch


def config_of(**settings):
    config = tiny_config("synthetic")
    config.model.update({"micro_condition": False, "learn_sigma": False})
    config.train.learned_weights = True
    config.data.batch_size = 1
    config.update_from_flattened_dict(settings)
    return config


@pytest.fixture(scope="module")
def weighed():
    """(adapter, parameters, (gradients, metrics) of one picture by the network's weights, those without it)."""
    config = config_of()
    check_config(config)
    model = build_model(config)
    adapter = build_adapter(config, model)
    shapes = jax.eval_shape(lambda key: adapter.split(init_params(model, key), key)[0], jax.random.key(0))
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    batch, keys = training_batch(config), jax.random.split(jax.random.key(7), 1)
    gradients = jax.jit(build_objective(config, adapter))

    def of(kernel):
        return gradients({**trained, UNCERTAINTY: {"kernel": kernel}}, Held({}, {}, 0), batch, keys)

    config.train.learned_weights = False
    plain = build_objective(config, build_adapter(config, model))
    return adapter, trained, of, jax.jit(plain)(adapter.drawn(trained), Held({}, {}, 0), batch, keys)


def test_the_models_gradient_is_divided_and_the_networks_is_of_its_own_error(weighed):
    _, trained, of, (plain, metrics) = weighed
    for kernel in (jnp.zeros_like(trained[UNCERTAINTY]["kernel"]), trained[UNCERTAINTY]["kernel"]):
        grads, found = of(kernel)
        u, mse = float(found["uncertainty"]), float(metrics["mse"])
        assert (u == 0) == (not np.any(kernel))
        assert found["mse"] == pytest.approx(mse, rel=1e-5)
        assert found["loss"] == pytest.approx(mse * np.exp(-u) + u, rel=1e-5)
        ours, theirs = (tree["x_embedder"]["kernel"] for tree in (grads, plain))
        np.testing.assert_allclose(ours, theirs * np.exp(-u), rtol=1e-3, atol=1e-6)
        # d/du is 1 - mse/exp(u), and du/dw the features, √2·cos/√128.
        slope = np.abs(grads[UNCERTAINTY]["kernel"]).max()
        assert 0 < slope <= abs(1 - mse * np.exp(-u)) * 2**0.5 / 128**0.5 * 1.0001


def test_its_features_can_say_a_smooth_error_at_every_level(weighed):
    adapter, trained, _, _ = weighed
    t = jnp.arange(0, 1000, 5)
    alpha, sigma = levels("eps", linear_schedule(), t, t)
    wanted = np.log(0.05 + np.square(np.asarray(alpha, np.float64)))
    slopes = jax.jacobian(lambda kernel: adapter.uncertainty({UNCERTAINTY: {"kernel": kernel}}, alpha, sigma))
    features = np.asarray(slopes(trained[UNCERTAINTY]["kernel"]), np.float64)[..., 0]
    fit = np.linalg.lstsq(features, wanted, rcond=1e-6)[0]
    np.testing.assert_allclose(features @ fit, wanted, atol=0.05)
    # Both ends of rectified flow, too.
    assert np.isfinite(adapter.uncertainty(trained, jnp.float32([0, 1, 0.5]), jnp.float32([1, 0, 0.5]))).all()


@pytest.mark.parametrize("name", ["adamw", "muon", "came"])
def test_the_network_has_an_optimizer_of_its_own_and_is_not_averaged(weighed, name):
    adapter, trained, _, _ = weighed
    config = config_of(**{"optimizer.name": name, "optimizer.eps": 1e-10, "average.every": 5})
    check_config(config)
    assert adapter.drawn(trained).keys() == trained.keys() - {UNCERTAINTY}
    state = jax.eval_shape(build_tx(config).init, trained)
    assert state.averages["sigma_rel_0_05"].keys() == adapter.drawn(trained).keys()
    assert UNCERTAINTY in state.optimizer


@pytest.mark.parametrize(
    "settings",
    [
        {"train.snr_loss": True},
        {"train.min_snr_gamma": 5.0},
        {"adapter.kind": "lora"},
        {"align.weight": 0.5, "align.block": 1},
        {"optimizer.name": "schedule_free"},
    ],
    ids=str,
)
def test_what_it_cannot_stand_beside(settings):
    with pytest.raises(InputError, match=r"config.train.learned_weights = True: .*; set one of them"):
        check_config(config_of(**settings))
