"""Targets of alignment: how many features a picture has, and that they are the network's own."""

import jax
import numpy as np
import pytest
import torch
import transformers
from classifier_weights import write_efficientnet

from pixart_jax.conversion.dino import load_dino
from pixart_jax.conversion.efficientnet import load_efficientnet
from pixart_jax.encoding.picture_features import open_features
from pixart_jax.errors import InputError
from pixart_jax.models.dino import MEAN, STD
from pixart_jax.models.efficientnet import EfficientNetLite


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """The folder of a small one."""
    folder = tmp_path_factory.mktemp("dino") / "tiny"
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**fields)).save_pretrained(folder)
    return folder


def pictures_of(height, width):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


def test_a_feature_for_each_token_and_256_at_most(dino):
    features = open_features("dino", dino)
    assert (features.name, features.dim) == ("dino:tiny", 32)
    sizes = ((256, 256), (192, 336), (1024, 1024), (704, 1472), (64, 32))
    assert [features.grid(*size) for size in sizes] == [(16, 16), (12, 21), (16, 16), (11, 23), (4, 2)]
    assert features.bytes_per_picture(512, 512) == 256 * 32 * 2
    pictures = pictures_of(48, 80)
    found = features(pictures)
    assert found.shape == (2, 3, 5, 32) and found.dtype == np.float16
    network, params = load_dino(dino)
    shown = jax.image.resize(pictures[1:].astype(np.float32), (1, 42, 70, 3), "cubic").clip(0, 255) / 255
    wanted = network.apply({"params": params}, (shown - np.array(MEAN)) / np.array(STD)).patches
    np.testing.assert_allclose(found[1:], wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())
    assert features.probe() == open_features("dino", dino).probe()


def test_efficientnet_sees_a_small_picture_large(tmp_path):
    path = write_efficientnet(tmp_path / "lite0.pth")
    features = open_features("efficientnet-lite0", path)
    assert features.grid(64, 64) == features.grid(224, 224) == (7, 7) and features.grid(64, 128) == (5, 10)
    pictures = pictures_of(224, 224)[:1]
    found = features(pictures).astype(np.float32)
    wanted = EfficientNetLite().apply({"params": load_efficientnet(path)}, (pictures.astype(np.float32) - 127) / 128)
    assert found.shape == (1, 7, 7, 1280)
    np.testing.assert_allclose(found.mean((1, 2)), wanted.pooled, rtol=0, atol=2e-3 * np.abs(wanted.pooled).max())


def test_what_is_no_network_is_refused(dino, tmp_path):
    with pytest.raises(InputError, match="does not exist; name the weights of the network"):
        open_features("dino", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no model\.safetensors"):
        open_features("dino", tmp_path / "empty")
    with pytest.raises(InputError, match="must be of one of dino, efficientnet-lite0"):
        open_features("resnet", dino)
