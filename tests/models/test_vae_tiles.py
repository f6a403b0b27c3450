"""The autoencoder by tiles, as diffusers does it, and without its cut last tile."""

import numpy as np
import pytest
from models.vae_cases import (
    SMALL,
    load,
    make_reference,
    random_images,
    random_latents,
    reference_decode,
    reference_encode,
)

from pixart_jax.errors import InputError
from pixart_jax.models.tiles import decode_tiled, encode_tiled


def enlarge(latents):
    """A decoder without context, for which tiles must change nothing: twice the size, a little different each pixel."""
    return np.kron(latents, np.array([[1.0, 2.0], [3.0, 5.0]])[None, :, :, None]).astype(np.float32)


def decoded(decode, latents, **settings):
    """All pictures in one array."""
    return np.stack([*decode_tiled(decode, latents, **settings)])


@pytest.mark.parametrize("tile_size,overlap", [(8, 0.25), (8, 0.5), (8, 0.8), (5, 0.3)])
@pytest.mark.parametrize("grid", [(8, 8), (3, 8), (9, 8), (20, 3), (17, 21), (14, 20)])
def test_tiles_of_a_local_decoder_change_nothing(grid, tile_size, overlap):
    shapes = []

    def decode(latents):
        shapes.append(latents.shape)
        return enlarge(latents)

    latents = random_latents(2, *grid, 3)
    tiled = decoded(decode, latents, tile_size=tile_size, overlap=overlap)
    np.testing.assert_allclose(tiled, enlarge(latents), atol=1e-5)
    assert tiled.dtype == np.float32
    assert set(shapes) == {(1, min(tile_size, grid[0]), min(tile_size, grid[1]), 3)}


def test_seams():
    """Each tile painted in its own number: the ramps, the last one in the middle of its larger overlap."""
    numbers = iter(range(100))

    def decode(latents):
        return np.full((1, 2 * latents.shape[1], 2 * latents.shape[2], 1), next(numbers), np.float32)

    row = decoded(decode, np.zeros((1, 4, 17, 1)), tile_size=8, overlap=0.25)[0, 5, :, 0]
    # Tiles begin at cells 0, 6 and 9. Ramps of 2 cells, 4 pixels: from cell 6, and from cell 10.5 between 9 and 14.
    expected = [0] * 12 + [0, 0.25, 0.5, 0.75] + [1] * 5 + [1, 1.25, 1.5, 1.75] + [2] * 9
    np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize("tile_size,overlap", [(8, 0.0), (8, 0.1), (8, 1.0), (1, 0.25), (8, -0.25)])
def test_tiles_need_an_overlap(tile_size, overlap):
    with pytest.raises(InputError, match="must overlap"):
        decoded(enlarge, np.zeros((1, 16, 16, 1)), tile_size=tile_size, overlap=overlap)


@pytest.fixture(scope="module")
def tiled_models():
    """(reference with tiles of 8 cells, our encode, our decode)."""
    reference = make_reference(SMALL)
    reference.enable_tiling()
    reference.tile_latent_min_size, reference.tile_sample_min_size = 8, 16
    return reference, *load(SMALL, reference)[1:]


def away_from_last_seams_and_corners(cells, unit):
    """Where our tiles and diffusers' mean the same, of 20×20 cells in tiles of 8.

    Tiles begin at cells 0, 6 and 12; diffusers has one more of 2 cells, from 18. Ramps are cells 6-8 and 12-14.
    """
    index = np.arange(cells * unit) / unit
    ramp = ((index >= 6) & (index < 8)) | ((index >= 12) & (index < 14))
    before_last = index < 18
    return before_last[:, None] & before_last & ~(ramp[:, None] & ramp)


def test_tiled_decode_equals_diffusers(tiled_models):
    reference, _, decode = tiled_models
    latents = random_latents(2, 20, 20, 4)
    ours = decoded(decode, latents, tile_size=8)
    theirs = reference_decode(reference, latents)
    same = away_from_last_seams_and_corners(20, 2)
    assert same.mean() > 0.7
    np.testing.assert_allclose(ours[:, same], theirs[:, same], atol=5e-5)
    # The tiles are not so alike that any blending would pass.
    whole = np.asarray(decode(latents))
    assert np.abs(ours - whole)[:, same].mean() > 0.01


def test_four_tiles_meet_bilinearly(tiled_models):
    _, _, decode = tiled_models
    latents = random_latents(1, 14, 14, 4)
    corner = 0
    for row, row_weight in ((0, [1, 0.75, 0.5, 0.25]), (6, [0, 0.25, 0.5, 0.75])):
        for column, column_weight in ((0, [1, 0.75, 0.5, 0.25]), (6, [0, 0.25, 0.5, 0.75])):
            tile = np.asarray(decode(latents[:, row : row + 8, column : column + 8]))
            part = tile[0, 12 - 2 * row :, 12 - 2 * column :][:4, :4]
            corner = corner + np.outer(row_weight, column_weight)[..., None] * part
    np.testing.assert_allclose(decoded(decode, latents, tile_size=8)[0, 12:16, 12:16], corner, atol=1e-5)


def test_tiled_encode_equals_diffusers(tiled_models):
    """Means; the stds differ in the ramps, where diffusers blends log variances."""
    reference, encode, _ = tiled_models
    images = random_images(2, 40, 40, 3)
    mean, std = encode_tiled(encode, images, downsample=2, tile_size=8)
    same = away_from_last_seams_and_corners(20, 1)
    theirs = reference_encode(reference, images)
    np.testing.assert_allclose(mean[:, same], theirs[0][:, same], atol=5e-5)
    np.testing.assert_allclose(std[:, :6, :6], theirs[1][:, :6, :6], rtol=5e-5)
    assert std.min() > 0 and std.shape == mean.shape == (2, 20, 20, 4)
    with pytest.raises(InputError, match="whole cells"):
        encode_tiled(encode, images[:, :39], downsample=2, tile_size=8)


def test_pictures_within_a_tile_are_whole(tiled_models):
    """One at a time, and exactly what the decoder gives for each."""
    _, encode, decode = tiled_models
    latents, images = random_latents(3, 8, 8, 4), random_images(3, 16, 16, 3)
    np.testing.assert_array_equal(
        decoded(decode, latents, tile_size=8), np.concatenate([decode(z[None]) for z in latents])
    )
    mean, std = encode_tiled(encode, images, downsample=2, tile_size=8)
    np.testing.assert_array_equal(mean[1:2], encode(images[1:2])[0])
    np.testing.assert_array_equal(std[1:2], encode(images[1:2])[1])


def test_moved_last_tile_is_closer_to_the_whole_than_a_cut_one(tiled_models):
    """Near the lower and right borders, over several pictures; elsewhere both are as far."""
    reference, _, decode = tiled_models
    latents = random_latents(8, 15, 15, 4)
    whole = np.asarray(decode(latents))
    border = np.add.outer(np.arange(30) >= 24, np.arange(30) >= 24)
    ours = np.abs(decoded(decode, latents, tile_size=8) - whole)[:, border].mean()
    theirs = np.abs(reference_decode(reference, latents) - whole)[:, border].mean()
    assert ours < 0.9 * theirs, (ours, theirs)
