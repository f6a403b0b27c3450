"""LPIPS is what its definition says, written down in PyTorch, and its files are converted strictly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lpips_files import CONVS, HEADS, VGG, lpips_files
from torch.nn import functional

from pixart_jax.conversion.lpips import load_lpips
from pixart_jax.errors import InputError
from pixart_jax.models.lpips import Lpips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return lpips_files(tmp_path_factory)


@pytest.fixture(scope="module")
def params(folder):
    return jax.device_put(load_lpips(folder / VGG, folder / HEADS))


def in_torch(folder, first, second):
    """The distances f32[B] of pictures [B, 3, H, W] in [-1, 1]."""
    vgg, heads = (torch.load(folder / name) for name in (VGG, HEADS))

    def features(x):
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        for number in CONVS:
            if number in (5, 10, 17, 24):
                x = functional.max_pool2d(x, 2)
            x = functional.relu(
                functional.conv2d(x, vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"], padding=1)
            )
            if number in (2, 7, 14, 21, 28):
                yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    pairs = zip(features(first), features(second), heads.values(), strict=True)
    return sum(functional.conv2d((one - other) ** 2, head).mean((1, 2, 3)) for one, other, head in pairs)


@jax.jit
def gradient_and_distances(params, first, second):
    """Of the distances' sum by the first pictures."""

    def total(first):
        apart = Lpips().apply({"params": params}, first, second)
        return apart.sum(), apart

    return jax.grad(total, has_aux=True)(first)


def test_distance_and_gradient(folder, params):
    # Of odd sides, at first or after some of the pools.
    first, second = (torch.rand(2, 3, 37, 34, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    expected = in_torch(folder, first.requires_grad_(), second)
    expected.sum().backward()
    ours = [np.moveaxis(picture.detach().numpy(), 1, -1) for picture in (first, second)]
    gradient, apart = gradient_and_distances(params, *ours)
    np.testing.assert_allclose(apart, expected.detach().numpy(), rtol=1e-5)
    wanted = np.moveaxis(first.grad.numpy(), 1, -1)
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=5e-5 * np.abs(wanted).max())


def test_where_no_feature_is_active_the_gradient_is_finite(params):
    dead = jax.tree_util.tree_map_with_path(lambda path, x: x - 1e3 * (path[-1].key == "bias"), params)
    picture = np.ones((2, 37, 34, 3), np.float32)
    gradient, apart = gradient_and_distances(dead, -picture, picture)
    assert not gradient.any() and not apart.any()
    gradient, apart = gradient_and_distances(params, picture, picture)
    # The two are the same up to rounding.
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    np.testing.assert_allclose(apart, 0, atol=1e-9)


@pytest.mark.parametrize("shapes", [((1, 15, 16, 3),) * 2, ((1, 16, 16, 3), (1, 16, 17, 3)), ((16, 16, 3),) * 2])
def test_what_has_no_distance_is_refused(params, shapes):
    with pytest.raises(InputError, match="of one size and at least 16 pixels"):
        Lpips().apply({"params": params}, *map(jnp.zeros, shapes))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (VGG, lambda s: s.pop("features.28.bias"), "is not torchvision's VGG16: .*\n.*not filled: conv5_3/bias"),
        (VGG, lambda s: s.update({"features.3.weight": torch.zeros(1)}), "no parameter takes: features.3.weight"),
        (HEADS, lambda s: s.update({"lin0.model.1.weight": torch.ones(1, 8)}), "heads of LPIPS on VGG16: .*\n.*lin0"),
        (HEADS, lambda s: s["lin4.model.1.weight"].fill_(float("nan")), "lin4.*NaN"),
    ],
    ids=["missing", "unknown", "another's", "nan"],
)  # fmt: skip
def test_another_file_is_refused(folder, tmp_path, name, change, message):
    arrays = torch.load(folder / name)
    change(arrays)
    torch.save(arrays, tmp_path / name)
    paths = {file: folder / file for file in (VGG, HEADS)} | {name: tmp_path / name}
    with pytest.raises(InputError, match=message):
        load_lpips(paths[VGG], paths[HEADS])
    with pytest.raises(InputError, match="nowhere: no such file"):
        load_lpips(paths[VGG], tmp_path / "nowhere")
