"""What a step needs of memory by its trace, and what "auto" makes of it."""

import types

import jax
import jax.numpy as jnp
import pytest

from pixart_jax.config import default_config
from pixart_jax.devices.hardware import HARDWARE
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.models.remat import BY_WEIGHT
from pixart_jax.training import memory
from pixart_jax.training.memory import USABLE, memory_limit, peak_bytes, settle, step_need, value_bytes
from pixart_jax.training.program import Program
from tools.bench.train import synthetic_shapes

WIDTH, TOKENS, DEPTH, BATCH = 48, 64, 6, 8
MESH = make_mesh(devices=jax.devices()[:1])


def tiny(policy="auto", **settings):
    config = default_config()
    config.model.update({"hidden_size": WIDTH, "depth": DEPTH, "num_heads": 4, "resolution": 128})
    config.model.update({"text_dim": 8, "max_text_tokens": 4, "attention": "plain", "remat": policy})
    config.data.batch_size = BATCH
    config.update_from_flattened_dict(settings)
    return config


def need(config):
    return step_need(config, MESH, synthetic_shapes(config, MESH))


@pytest.fixture(scope="module")
def needs():
    return {policy: need(tiny(policy)) for policy in BY_WEIGHT}


def test_values_that_are_alive_at_once():
    def program(x):
        doubled = jnp.broadcast_to((x + 1).sum(), (200,)) * 2
        return doubled.sum()

    jaxpr = jax.make_jaxpr(program)(jnp.zeros(100)).jaxpr
    assert peak_bytes(jaxpr, padded=False) == pytest.approx(2 * 200 * 4, abs=8)

    def loop(x):
        return jax.lax.scan(lambda carry, _: (carry, jnp.exp(carry)), x, length=7)[1]

    jaxpr = jax.make_jaxpr(loop)(jnp.zeros(100)).jaxpr
    # Seven results, and one pass at work.
    assert peak_bytes(jaxpr, padded=False) == (7 + 1) * 400


@pytest.mark.parametrize(
    ("shape", "dtype", "tiles"),
    [
        ((3, 16, 72), "bfloat16", (3, 16, 128)),
        ((3, 9, 72), "float32", (3, 16, 128)),
        ((3, 9, 72), "bfloat16", (3, 16, 128)),
        ((4, 30, 128, 1), "float32", (4, 32, 128)),
        ((5,), "float32", (5,)),
    ],
)
def test_arrays_in_a_tpus_tiles(shape, dtype, tiles):
    aval = jax.ShapeDtypeStruct(shape, dtype)
    assert value_bytes(aval, padded=True) == jnp.zeros(tiles, dtype).nbytes
    assert value_bytes(aval, padded=False) == jnp.zeros(shape, dtype).nbytes


def test_what_each_policy_keeps(needs):
    kept = [needs[policy].activations for policy in BY_WEIGHT]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4
    # Of every block at least its input; with "attention" two results more, with "dots" q, k, v, three projections
    # and the MLP's 4 + 1 as well.
    one = DEPTH * BATCH * TOKENS * WIDTH * 4
    assert one < needs["full"].activations < needs["attention"].activations
    assert needs["attention"].activations - needs["full"].activations > one
    assert needs["dots"].activations - needs["attention"].activations > 8 * one
    # Parameters, EMA and two moments.
    assert needs["full"].state > 4 * needs["full"].gradients > 0


def test_the_compiler_plans_about_as_much(needs):
    """XLA's own plan for this CPU, which fuses otherwise than a TPU's."""
    config = tiny("attention")
    compiled = Program(config, MESH).lower(synthetic_shapes(config, MESH)).compile()
    plan = compiled.memory_analysis()
    planned = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    assert needs["attention"].state == pytest.approx(plan.argument_size_in_bytes, rel=0.02)
    assert 0.6 < needs["attention"].total / planned < 1.7


def test_accumulation_splits_what_grows_with_the_batch(needs):
    halved = need(tiny("attention", **{"train.accumulation_steps": 2}))
    assert halved.activations == pytest.approx(needs["attention"].activations / 2)
    assert halved.gradients > needs["attention"].gradients


def test_the_lightest_that_fits(needs, monkeypatch):
    monkeypatch.setattr(memory, "step_need", lambda config, *_: needs[config.model.remat])
    config = tiny()
    batch = synthetic_shapes(config, MESH)
    for policy, next_lighter in (("dots", None), ("attention", "dots"), ("full", "attention")):
        limit = 1.001 * needs[policy].total / USABLE
        settled, choice = settle(config, MESH, batch, limit=limit)
        assert (settled.model.remat, choice.policy, choice.fits) == (policy, policy, True)
        assert config.model.remat == "auto"
        assert next_lighter is None or f"{next_lighter} needs" in str(choice)
    settled, choice = settle(config, MESH, batch, limit=1.0)
    assert settled.model.remat == "full" and not choice.fits
    # What is named stays, and without a limit nothing is computed again.
    assert settle(tiny("full"), MESH, batch, limit=1e12)[1].needs == {}
    assert settle(config, MESH, batch, limit=None)[0].model.remat == "none"


def test_there_is_no_loop_over_blocks_on_tpus():
    def unrolled(platform, given):
        device = types.SimpleNamespace(platform=platform)
        mesh = types.SimpleNamespace(devices=types.SimpleNamespace(flat=[device]))
        config = tiny("dots", **{"model.scan_unroll": given})
        settled, _ = settle(config, mesh, {}, limit=1.0)
        assert config.model.scan_unroll == given
        return settled.model.scan_unroll

    assert unrolled("tpu", 0) == DEPTH
    assert unrolled("gpu", 0) == unrolled("cpu", 0) == 1
    assert unrolled("tpu", 1) == 1


def test_limits():
    def device(stats, kind, platform="gpu"):
        return types.SimpleNamespace(platform=platform, device_kind=kind, memory_stats=lambda: stats)

    assert memory_limit(device({"bytes_limit": 5}, "NVIDIA H200")) == 5
    assert memory_limit(device(None, "NVIDIA H200")) == HARDWARE["h200"].memory_bytes
    assert memory_limit(device(None, "unheard of")) is None
    assert memory_limit(jax.devices()[0]) is None
