"""The position table of a checkpoint with PixArt's names: read in half precision too, and not believed where no PixArt
was trained with such a one."""

import numpy as np
import pytest
import torch
from golden_cases import load_state_dict

from pixart_jax.conversion.describe import describe
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.formats.reference import read_position_scale
from pixart_jax.conversion.names.pixart import position_table
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.transfer import load_weights
from pixart_jax.errors import InputError

KNOWN = [(16, 1.0), (16, 0.5), (32, 1.0), (48, 1.5), (64, 2.0), (128, 4.0), (8, 0.4), (6, 2.0)]


def _checkpoint(folder, base, scale, dtype=torch.float32):
    state_dict = {name: torch.from_numpy(array).to(dtype) for name, array in load_state_dict("sigma_plain").items()}
    hidden = state_dict["pos_embed"].shape[2]
    state_dict["pos_embed"] = torch.from_numpy(position_table(base, scale, hidden)).to(dtype)
    torch.save({"state_dict": state_dict}, folder / "x.pth")
    return open_source(folder / "x.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("base", "scale"), [(16, 0.5), (32, 1.0), (64, 2.0), (128, 4.0), (9, 1.5)])
def test_half_precision_tells_the_scale(base, scale, dtype):
    half = torch.from_numpy(position_table(base, scale, 48)).to(dtype)
    # As it is, and as programs save it that compute in half precision and store float32.
    for table in ([half.numpy()] if dtype == torch.float16 else []) + [half.float().numpy()]:
        assert read_position_scale(table, "") == scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_checkpoint_in_half_precision_converts(tmp_path, dtype):
    source = _checkpoint(tmp_path, 16, 0.5, dtype)
    weights = load_weights(source, Hints(num_heads=2, family="sigma"))
    assert (weights.stored.position_base, weights.stored.position_scale) == (16, 0.5)


def test_half_precision_does_not_hide_another_table():
    for spoil in (lambda table: table * 1.1, lambda table: table[:, ::-1], lambda table: table + 0.01):
        table = spoil(position_table(16, 2.0, 24)).astype(np.float16)
        with pytest.raises(InputError, match=r"^here: pos_embed is not"):
            read_position_scale(table, "here")


@pytest.mark.parametrize(("base", "scale"), KNOWN)
def test_tables_of_known_models_are_believed(tmp_path, base, scale):
    stored = describe(_checkpoint(tmp_path, base, scale), Hints(num_heads=2, family="sigma"))
    assert (stored.position_base, stored.position_scale) == (base, scale)


@pytest.mark.parametrize(("base", "scale"), [(64, 1.0), (32, 2.0), (16, 2.0), (128, 1.0), (64, 0.5), (40, 1.0)])
def test_a_table_of_no_known_model_needs_both_options(tmp_path, base, scale):
    source = _checkpoint(tmp_path, base, scale)
    for hints in (Hints(), Hints(resolution=256), Hints(position_scale=0.7)):
        hints = Hints(num_heads=2, family="sigma", resolution=hints.resolution, position_scale=hints.position_scale)
        with pytest.raises(InputError, match=r"x\.pth: pos_embed is a table of .* --resolution and --position-scale"):
            describe(source, hints)
    stored = describe(source, Hints(num_heads=2, family="sigma", resolution=256, position_scale=0.5))
    assert (stored.position_base, stored.position_scale) == (16, 0.5)


@pytest.mark.parametrize(
    ("base", "scale", "hints"),
    [(64, 2.0, {"resolution": 256}), (32, 1.0, {"resolution": 1024}), (64, 1.0, {"resolution": 512}), (32, 2.0, {})],
)
def test_one_option_does_not_make_a_table_another_resolutions(tmp_path, base, scale, hints):
    """A run that starts from the file has positions of its own, and goes on."""
    source, given = _checkpoint(tmp_path, base, scale), Hints(num_heads=2, family="sigma", **hints)
    with pytest.raises(InputError, match=r"x\.pth: pos_embed is a table of .* --resolution and --position-scale"):
        describe(source, given)
    stored = describe(source, given, Hints(resolution=512, position_scale=1.0))
    assert (stored.position_base, stored.position_scale) == (32, 1.0)
