"""The linear autoencoder against what closed-form PCA promises, and its file against damage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.errors import InputError
from pixart_jax.models.linear_autoencoder import LinearAutoencoder


def smooth_images(count=16, height=32, width=48, seed=0):
    """Random pictures with more energy in coarse than in fine patterns, as natural ones have."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, height, width, 3))
    for cell in (1, 2, 4, 8, 16):
        coarse = rng.standard_normal((count, height // cell, width // cell, 3))
        images += cell * coarse.repeat(cell, axis=1).repeat(cell, axis=2)
    return np.tanh(images / 12).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    return smooth_images()


def mean_square(x):
    return float(np.mean(np.asarray(x, np.float64) ** 2))


def test_shapes_and_dtypes(images):
    autoencoder = LinearAutoencoder.fit(images, channels=12)
    latents = autoencoder.encode(images)
    assert latents.shape == (16, 4, 6, 12) and latents.dtype == np.float32
    decoded = autoencoder.decode(latents)
    assert decoded.shape == images.shape and decoded.dtype == np.float32
    assert autoencoder.channels == 12 and autoencoder.block == 8


def test_all_channels_reconstruct_exactly(images):
    autoencoder = LinearAutoencoder.fit(images, channels=192)
    np.testing.assert_allclose(autoencoder.decode(autoencoder.encode(images)), images, atol=2e-5)


def test_error_is_the_variance_left_out(images):
    """Eckart-Young: the squared error per block is the sum of the eigenvalues of the components left out."""
    blocks = images.reshape(16, 4, 8, 6, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(blocks.T, bias=True))[::-1]
    for channels in (4, 12):
        autoencoder = LinearAutoencoder.fit(images, channels=channels)
        error = mean_square(autoencoder.decode(autoencoder.encode(images)) - images)
        assert error == pytest.approx(eigenvalues[channels:].sum() / 192, rel=1e-4)


def test_whitening_and_latent_scale(images):
    spread = {}
    for whitening in (0.0, 0.5, 1.0):
        autoencoder = LinearAutoencoder.fit(images, channels=8, whitening=whitening)
        latents = autoencoder.encode(images)
        assert np.std(latents * autoencoder.latent_scale) == pytest.approx(1.0, rel=1e-4)
        np.testing.assert_allclose(latents.mean(axis=(0, 1, 2)), 0.0, atol=1e-4)
        spread[whitening] = latents.std(axis=(0, 1, 2))
    np.testing.assert_allclose(spread[1.0], 1.0, rtol=1e-4)
    np.testing.assert_allclose(spread[0.5], np.sqrt(spread[0.0]), rtol=1e-4)
    assert spread[0.0][0] > 2 * spread[0.0][7]  # else the test would not tell the exponents apart


def test_decode_undoes_whitening(images):
    plain, whitened = (LinearAutoencoder.fit(images, channels=8, whitening=w) for w in (0.0, 1.0))
    np.testing.assert_allclose(plain.decode(plain.encode(images)), whitened.decode(whitened.encode(images)), atol=1e-5)


def test_signs_do_not_depend_on_the_order_of_the_data(images):
    first = LinearAutoencoder.fit(images, channels=6)
    second = LinearAutoencoder.fit(images[::-1], channels=6)
    np.testing.assert_allclose(first.basis, second.basis, atol=1e-4)


def test_under_jit_and_with_jax_arrays_as_with_numpy(images):
    autoencoder = LinearAutoencoder.fit(images, channels=12)
    latents = jax.jit(autoencoder.encode)(jnp.asarray(images))
    assert isinstance(latents, jax.Array)
    np.testing.assert_allclose(latents, autoencoder.encode(images), atol=1e-5)
    decoded = jax.jit(autoencoder.decode)(latents)
    np.testing.assert_allclose(decoded, autoencoder.decode(autoencoder.encode(images)), atol=1e-5)


def test_other_sizes_and_leading_axes(images):
    autoencoder = LinearAutoencoder.fit(images, channels=12)
    other = smooth_images(2, 16, 16, seed=1)
    assert autoencoder.encode(other).shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(autoencoder.encode(other[0]), autoencoder.encode(other)[0])
    np.testing.assert_array_equal(autoencoder.decode(autoencoder.encode(other)[None])[0, 1].shape, (16, 16, 3))


def test_a_latent_cell_sees_its_own_block_only(images):
    autoencoder = LinearAutoencoder.fit(images, channels=12)
    changed = images.copy()
    changed[0, 8:16, 16:24] = -changed[0, 8:16, 16:24]
    differs = np.any(autoencoder.encode(changed) != autoencoder.encode(images), axis=-1)
    assert np.argwhere(differs).tolist() == [[0, 1, 2]]


def test_save_and_load(images, tmp_path):
    autoencoder = LinearAutoencoder.fit(images, channels=5, whitening=0.3)
    path = tmp_path / "autoencoder.npz"
    autoencoder.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["autoencoder.npz"]
    loaded = LinearAutoencoder.load(path)
    assert (loaded.block, loaded.latent_scale) == (8, autoencoder.latent_scale)
    np.testing.assert_array_equal(loaded.encode(images), autoencoder.encode(images))
    np.testing.assert_array_equal(loaded.decode(loaded.encode(images)), autoencoder.decode(loaded.encode(images)))


def test_failed_save_leaves_the_old_file(images, tmp_path, monkeypatch):
    path = tmp_path / "autoencoder.npz"
    LinearAutoencoder.fit(images, channels=5).save(path)
    before = path.read_bytes()

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        LinearAutoencoder.fit(images, channels=6).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no linear autoencoder there"),
        (lambda path: path.write_bytes(b"not a zip"), "not a linear autoencoder"),
        (lambda path: path.write_bytes(b""), "not a linear autoencoder"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "not a linear autoencoder"),
        (lambda path: np.savez(path, mean=np.zeros(3)), "not a linear autoencoder"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "not a linear autoencoder"),
        (lambda path: resave(path, mean=np.zeros(3)), "do not fit together"),
        (lambda path: resave(path, basis=np.zeros(192)), "not a linear autoencoder"),
        (lambda path: resave(path, channel_scale=np.full(5, np.nan)), "do not fit together"),
        (lambda path: resave(path, block=np.zeros(2)), "not a linear autoencoder"),
    ],
)
def test_load_names_the_file_and_the_cure(images, tmp_path, damage, message):
    path = tmp_path / "autoencoder.npz"
    LinearAutoencoder.fit(images, channels=5).save(path)
    damage(path)
    with pytest.raises(InputError, match=message) as raised:
        LinearAutoencoder.load(path)
    assert str(path) in str(raised.value) and "make the data set again" in str(raised.value)


def resave(path, **replaced):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | replaced))


@pytest.mark.parametrize(
    ("bad", "arguments", "message"),
    [
        (np.zeros((2, 20, 16, 3)), {}, "multiples of 8"),
        (np.zeros((2, 16, 16, 4)), {}, r"\[..., H, W, 3\]"),
        (np.zeros((16, 16, 3)), {}, "batch of pictures"),
        (np.full((2, 16, 16, 3), 255), {}, r"\[-1, 1\]"),
        (np.full((2, 16, 16, 3), np.nan), {}, r"\[-1, 1\]"),
        (smooth_images(), {"channels": 193}, "between 1 and"),
        (smooth_images(), {"channels": 0}, "between 1 and"),
        (smooth_images(1, 16, 16), {}, "only 3 independent"),
        (np.zeros((4, 16, 16, 3)), {}, "only 0 independent"),
    ],
)
def test_fit_refuses(bad, arguments, message):
    with pytest.raises(InputError, match=message):
        LinearAutoencoder.fit(bad, **arguments)


def test_encode_and_decode_refuse_other_shapes(images):
    autoencoder = LinearAutoencoder.fit(images, channels=5)
    with pytest.raises(InputError, match="multiples of 8"):
        autoencoder.encode(images[:, :30])
    with pytest.raises(InputError, match="4 channels, the linear autoencoder 5"):
        autoencoder.decode(np.zeros((1, 4, 4, 4), np.float32))
