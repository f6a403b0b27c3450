"""What test_autoencoder_devices.py runs in a process of its own, because the number of simulated devices is fixed at
the start.

Prints a line for each case in which eight devices have made what one of them makes, in so many calls of a program.
"""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from pixart_jax.encoding import pretrained
from pixart_jax.encoding.picture_features import PictureFeatures
from pixart_jax.encoding.pretrained import Autoencoder
from pixart_jax.encoding.spread import Spread

TILE_SIZE = 16


def latents(count, height, width):
    return np.random.default_rng(count).standard_normal((count, height, width, 4), np.float32)


def pictures(count, height, width):
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


# Of one device and of eight: how often a program runs, and the share of a batch that lies on a device.
CASES = {
    "a picture in eight strips": ("decode", latents(1, 16, 16), 1, 1, (1, 2, 16, 4)),
    "three pictures in two strips": ("decode", latents(3, 14, 18), 3, 1, (1, 7, 18, 4)),
    "a picture that eight do not divide": ("decode", latents(1, 12, 16), 1, 1, (1, 3, 16, 4)),
    "nine pictures whole": ("decode", latents(9, 8, 8), 9, 2, (1, 8, 8, 4)),
    "eighteen tiles of two pictures": ("decode", latents(2, 40, 40), 18, 3, (1, 16, 16, 4)),
    "nine tiles of one": ("decode", latents(1, 40, 40), 9, 2, (1, 16, 16, 4)),
    "tiles to latents": ("encode", pictures(2, 160, 320), 12, 2, (1, 128, 128, 3)),
}


def main(directory: str):
    shares = []

    def counted(function):
        def call(model, params, batch):
            shares.append(batch.sharding.shard_shape(batch.shape))
            return function(model, params, batch)

        return call

    for name in ("_decode", "draw", "_encode"):
        setattr(pretrained, name, counted(getattr(pretrained, name)))
    devices = np.array(jax.devices())
    one, eight = (
        Autoencoder(pathlib.Path(directory), mesh=Mesh(some.reshape(1, -1), ("data", "fsdp")), tile_size=TILE_SIZE)
        for some in (devices[:1], devices)
    )
    for name, (method, inputs, calls_of_one, calls, share) in CASES.items():
        arguments = (inputs, 1) if method == "encode" else (inputs,)
        expected = getattr(one, method)(*arguments)
        assert len(shares) == calls_of_one, f"{name}: {shares}"
        shares.clear()
        got = getattr(eight, method)(*arguments)
        assert shares == [share] * calls, f"{name}: {shares}"
        jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5), got, expected)
        assert np.std(expected[0]) > 0.1 and len(got) == len(expected)
        shares.clear()
        if method == "decode":
            bytes_of_one, bytes_of_eight = (
                np.stack([*each.decode_each(inputs, as_uint8=True)]).astype(int) for each in (one, eight)
            )
            assert np.abs(bytes_of_one - bytes_of_eight).max() <= 1, name
            shares.clear()
        print(name, flush=True)
    features_on_devices()


def features_on_devices():
    """Eleven pictures by a network that gives each cell's mean."""
    seen = []

    def apply(params, batch):
        seen.append(batch.shape)
        return params * batch.reshape(len(batch), 4, 16, 4, 16, 3).mean((2, 4))

    spread, inputs = Spread(), pictures(11, 64, 64)
    features = PictureFeatures("means", 3, 16, 256, False, apply, spread, spread.on_each(np.float32(2)))
    assert spread.size == 8 and features.params.sharding.is_fully_replicated
    expected = 2 * inputs.reshape(11, 4, 16, 4, 16, 3).astype(np.float32).mean((2, 4))
    np.testing.assert_allclose(features(inputs), expected, rtol=1e-3)
    assert seen == [(8, 64, 64, 3)]
    print("features of eleven pictures")


if __name__ == "__main__":
    main(sys.argv[1])
