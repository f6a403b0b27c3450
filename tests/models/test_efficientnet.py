"""EfficientNet-lite0 against the PyTorch package that its published weights are for."""

import jax
import numpy as np
import pytest
import torch
from classifier_weights import GOLDEN, write_efficientnet

from pixart_jax.conversion.efficientnet import load_efficientnet
from pixart_jax.errors import InputError
from pixart_jax.models.efficientnet import EfficientNetLite


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_efficientnet(tmp_path_factory.mktemp("efficientnet") / "lite0.pth")


# Sides that are no multiples of the strides are padded otherwise than those that are.
@pytest.mark.parametrize("size", ["64x64", "49x70"])
def test_features_are_the_package_s(file, size):
    with np.load(GOLDEN / "efficientnet_lite0.npz") as case:
        pictures = case[f"in/{size}"].astype(np.float32).transpose(0, 2, 3, 1)
        expected = {name: case[f"out/{size}/{name}"] for name in ("pooled", "logits")}
    found = jax.jit(EfficientNetLite().apply)({"params": load_efficientnet(file)}, pictures)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, atol=2e-5 * np.abs(values).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda weights: {name: leaf for name, leaf in weights.items() if not name.startswith("_blocks.15.")},
            "not filled: blocks_15/",
        ),
        (lambda weights: weights | {"_blocks.3._se_reduce.weight": torch.zeros(4, 144, 1, 1)}, "_se_reduce"),
        (lambda weights: weights | {"_conv_stem.weight": torch.zeros(32, 1, 3, 3)}, "conv_stem/kernel is"),
        (lambda weights: weights | {"_fc.bias": torch.full((1000,), torch.nan)}, "_fc.bias"),
    ],
)
def test_weights_of_another_network_are_refused(file, tmp_path, change, said):
    torch.save(change(torch.load(file)), tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"other\.pth: [\s\S]*{said}"):
        load_efficientnet(tmp_path / "other.pth")
