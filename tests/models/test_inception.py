"""The FID network and what each library feeds it, against torch-fidelity, pytorch-fid and clean-fid."""

import jax
import numpy as np
import pytest
import torch
from inception_weights import GOLDEN, draw_weights
from PIL import Image

from pixart_jax.conversion.inception import load_inception
from pixart_jax.errors import InputError
from pixart_jax.evaluators.preprocessing import PREPROCESSINGS, prepare
from pixart_jax.models.inception import FidInception

LAYERS = {"64": "f64", "192": "f192", "768": "f768", "2048": "f2048"}
LAYERS |= {name: name for name in ("logits_unbiased", "logits")}


@pytest.fixture(scope="module")
def case():
    with np.load(GOLDEN / "fid_network.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """As it is published: with a count of batches, an integer, beside each normalisation."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(draw_weights(), path)
    return path


@pytest.fixture(scope="module")
def features(case, file):
    """(picture, preprocessing) to features: all in one batch, since they do not depend on it."""
    pictures = {"image0": case["in/image0"], "image1": case["in/image1"]}
    pictures["image299"] = np.asarray(Image.open(GOLDEN / "fid_299.png").convert("RGB"))
    keys = [(name, how) for name in pictures for how in PREPROCESSINGS]
    batch = np.stack([prepare(pictures[name], how) for name, how in keys])
    found = jax.jit(FidInception().apply)({"params": load_inception(file)}, batch)
    return {key: jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), found) for i, key in enumerate(keys)}


def test_features_are_the_libraries(case, features):
    compared = 0
    for name in case:
        if not name.startswith("out/") or name.split("/")[-1] not in LAYERS:
            continue
        _, picture, how, layer = name.split("/")
        how = {"clean": "clean-fid"}.get(how, how.replace("_", "-"))
        found = getattr(features[picture, how], LAYERS[layer])
        expected = case[name][0]
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max(), rtol=0, err_msg=name)
        compared += 1
    assert compared == 25


def test_resized_pictures_are_the_libraries(case):
    for name in ("image0", "image1"):
        picture = case[f"in/{name}"]
        found = {how: prepare(picture, how) for how in PREPROCESSINGS}
        corners = {
            "torch_resized": (found["pytorch-fid"] + 1) / 2,
            "tf_resized": found["torch-fidelity"] * 128 + 128,
            "clean_resized": found["clean-fid"] * 128 + 128,
        }
        for key, resized in corners.items():
            expected = case[f"out/{name}/{key}_first8x8"].transpose(1, 2, 0)
            scale = 1 if expected.max() > 1.5 else 255
            np.testing.assert_allclose(resized[:8, :8] * scale, expected * scale, atol=2e-3, err_msg=key)


def test_preprocessings_differ(features):
    for name in ("image0", "image1", "image299"):
        assert not np.allclose(features[name, "pytorch-fid"].f2048, features[name, "torch-fidelity"].f2048, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda weights: {name: array for name, array in weights.items() if "Mixed_7c" not in name},
            "not filled: Mixed_7c",
        ),
        (lambda weights: weights | {"AuxLogits.fc.weight": torch.zeros(1000, 768)}, "no parameter takes: AuxLogits"),
        (lambda weights: weights | {"fc.weight": torch.zeros(1000, 2048)}, "fc_kernel is"),
        (
            lambda weights: weights | {"fc.weight": torch.zeros(1008, 2048, dtype=torch.int8)},
            r"fc\.weight is torch\.int8",
        ),
    ],
)
def test_weights_of_another_network_are_refused(file, tmp_path, change, said):
    torch.save(change(torch.load(file)), tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"other\.pth: [\s\S]*{said}"):
        load_inception(tmp_path / "other.pth")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(InputError, match="uint8"):
        prepare(np.zeros(shape, np.uint8), "clean-fid")
    with pytest.raises(InputError, match="choose from clean-fid"):
        prepare(np.zeros((8, 8, 3), np.uint8), "clean")
