"""HED's edges are the reference's, and its file is converted strictly."""

import json

import flax
import numpy as np
import pytest
import torch
from golden_cases import GOLDEN
from made_once import made_once

from pixart_jax.conversion.hed import load_hed
from pixart_jax.encoding.edges import open_edges
from pixart_jax.errors import InputError
from pixart_jax.models.hed import Hed

EXTRAS = GOLDEN / "extras"


def draw_weights() -> dict[str, torch.Tensor]:
    """As the recipe of the golden case says."""
    recipe = json.loads((EXTRAS / "hed.json").read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(recipe["seed"])
    drawn = {}
    for name, shape in sorted(recipe["shapes"].items()):
        draw = torch.randn(shape, generator=generator)
        if name == "norm":
            draw = 110 + 10 * draw
        elif name.endswith("projection.weight"):
            draw *= 0.02 / shape[1] ** 0.5
        elif name.endswith("weight"):
            draw *= (2 / (shape[1] * 9)) ** 0.5
        else:
            draw *= 0.05
        drawn[name] = draw
    total = sum(float(array.double().abs().sum()) for array in drawn.values())
    np.testing.assert_allclose(total, recipe["abs_sum"], rtol=1e-6)
    return drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_once(tmp_path_factory, "hed", lambda path: torch.save(draw_weights(), path / "ControlNetHED.pth"))


def test_edges_are_the_references(folder):
    params = load_hed(folder / "ControlNetHED.pth")
    shapes = flax.traverse_util.flatten_dict(params)
    assert sum(array.size for array in shapes.values()) == 14_716_168
    with np.load(EXTRAS / "hed.npz") as arrays:
        picture, expected = arrays["in/image"].transpose(0, 2, 3, 1) * 255, dict(arrays)
    edges, maps = Hed().apply({"params": params}, picture, capture_intermediates=True)
    np.testing.assert_allclose(edges, expected["out/edge"][:, 0], rtol=0, atol=2e-5)
    for number in range(1, 6):
        found = maps["intermediates"][f"block{number}"]["projection"]["__call__"][0]
        wanted = expected[f"out/projection{number}"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_the_control_picture_is_the_references(folder):
    make = open_edges("hed", folder / "ControlNetHED.pth", option="--hed")
    with np.load(EXTRAS / "hed.npz") as arrays:
        picture, expected = arrays["in/image"].transpose(0, 2, 3, 1) * 255, arrays["out/condition_image"]
    np.testing.assert_allclose(make(picture) / 127.5 - 1, expected.transpose(0, 2, 3, 1), rtol=0, atol=5e-5)
    # Sides that are no multiples of 16 are whole ones with the border repeated.
    odd = picture[:, :25, :33]
    whole = np.pad(odd, ((0, 0), (0, 7), (0, 15), (0, 0)), mode="edge")
    np.testing.assert_array_equal(make(odd), make(whole)[:, :25, :33])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("block3.convs.1.bias"), r"not filled: block3/convs_1/bias"),
        (lambda s: s.update(odd=torch.zeros(1)), r"no parameter takes: odd"),
        (lambda s: s.update(norm=torch.zeros(1, 4, 1, 1)), r"wrong shape: norm is \(4,\), the model has \(3,\)"),
        (lambda s: s["norm"].fill_(float("nan")), r"norm.*NaN"),
    ],
    ids=["missing", "unknown", "shape", "nan"],
)
def test_another_file_is_refused(change, message, folder, tmp_path):
    state = torch.load(folder / "ControlNetHED.pth", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"(?s)x\.pth is not HED's network.*{message}"):
        load_hed(tmp_path / "x.pth")
    with pytest.raises(InputError, match="no such file"):
        load_hed(tmp_path / "absent.pth")
