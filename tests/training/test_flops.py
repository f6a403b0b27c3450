"""XLA's count of a step's FLOPs, beside counts by hand; what devices are called."""

import jax
import pytest
from tiny_run import tiny_config

from pixart_jax.adapters.full import Full
from pixart_jax.config import build_model, default_config, position_base
from pixart_jax.devices import hardware
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.models.attention import AttentionSpec
from pixart_jax.models.params import apply_of
from pixart_jax.objectives.denoising import diffusion_loss
from pixart_jax.objectives.objective import descend
from pixart_jax.training.flops import count_flops, gradient_flops
from tools.bench.train import synthetic_batch


def count(model, batch):
    def parts_of(model):
        adapter = Full(apply_of(model))
        return adapter, descend(diffusion_loss(adapter.apply, linear_schedule()))

    return gradient_flops(model, parts_of, batch)


def by_hand(model, num_tokens, text_tokens):
    """FLOPs per image of every matrix product, two per multiply-add, the backward pass twice the forward one."""
    width, patch = model.hidden_size, model.patch_size**2 * model.latent_channels
    macs = 2 * 256 * width if model.micro_condition else 0  # To be exact: 3·(256·D/3 + (D/3)²).
    macs += 256 * width + width**2
    macs += num_tokens * patch * width * (3 if model.learn_sigma else 2)
    macs += 6 * width**2 * (model.depth if model.adaln == "full" else 1)
    if not model.num_classes:
        macs += text_tokens * (model.text_dim + width) * width
    for ratio in model.kv_compress or (1,) * model.depth:
        macs += num_tokens * (4 + 2 * model.mlp_ratio) * width**2  # q, k, v, projection; MLP
        macs += 2 * num_tokens * (num_tokens / ratio**2) * width  # logits, weighted sum
        if not model.num_classes:
            macs += 2 * num_tokens * width**2 + 2 * text_tokens * width**2 + 2 * num_tokens * text_tokens * width
    return 6 * macs


@pytest.mark.parametrize(
    "settings",
    [
        {"resolution": 256},
        {"resolution": 1024, "micro_condition": True},
        {"resolution": 1024, "kv_compress_ratio": 2, "max_text_tokens": 300, "qk_norm": True},
        {"resolution": 4096, "kv_compress_ratio": 4, "max_text_tokens": 300},
        {"size": "S/2", "num_classes": 1000, "adaln": "full", "learn_sigma": False},
    ],
    ids=lambda settings: ",".join(f"{key}={value}" for key, value in settings.items()),
)
def test_against_a_count_by_hand(settings):
    """XLA also counts norms, softmax, GELU and the loss. Nothing of XL/2 is allocated."""
    config = default_config()
    config.model.update(settings)
    config.data.batch_size = 2
    model, batch = build_model(config), synthetic_batch(config)
    before = sum(array.nbytes for array in jax.live_arrays())
    flops = count(model, batch)
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1e6
    expected = by_hand(model, position_base(config) ** 2, config.model.max_text_tokens)
    # The softmax grows with the square of the tokens, as nothing else does that is not a product.
    rel = 0.02 if config.model.resolution > 1024 else 0.01
    assert flops / config.data.batch_size == pytest.approx(expected, rel=rel)


def test_how_a_step_is_computed_does_not_count(tmp_path):
    config = tiny_config(tmp_path)
    config.model.depth = 3
    model, batch = build_model(config), synthetic_batch(config)
    other = model.clone(scan_unroll=2, remat="full", attention=AttentionSpec("blockwise"))
    assert count(other, batch) == count(model, batch)
    assert count(model.clone(depth=4), batch) > 1.2 * count(model, batch)


def test_no_count_without_the_cpu(monkeypatch):
    def no_cpu(**_):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    assert count_flops(lambda x: x + 1, jax.ShapeDtypeStruct((2,), "float32")) is None


def test_hardware_by_the_name_that_jax_gives_it():
    assert hardware.find_hardware("TPU v5 lite") is hardware.HARDWARE["v5e"]
    assert hardware.find_hardware("TPU v5") is hardware.HARDWARE["v5p"]
    assert hardware.find_hardware("NVIDIA H200").peak_flops == 989e12
    assert hardware.find_hardware("cpu") is None
    kinds = [kind for device in hardware.HARDWARE.values() for kind in device.device_kinds]
    assert len(set(kinds)) == len(kinds)
