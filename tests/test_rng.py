"""Seeds: small ones as ever, those of other programs too, and what is none."""

import argparse

import jax
import numpy as np
import pytest

from pixart_jax.commands import seed_argument
from pixart_jax.config import check_config, default_config
from pixart_jax.errors import InputError
from pixart_jax.rng import MAX_SEED, check_seed, seed_words, stream_key
from pixart_jax.samplers.program import draw_noise

LARGE = [2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63, MAX_SEED]


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 - 1])
def test_small_seeds_give_the_keys_of_jax(seed):
    expected = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
    np.testing.assert_array_equal(jax.random.key_data(stream_key(seed, "train")), expected)
    np.testing.assert_array_equal(jax.random.key_data(jax.jit(lambda: stream_key(seed, "train"))()), expected)


def test_large_seeds_are_all_different():
    keys = [jax.random.key_data(stream_key(seed, "sample")) for seed in (0, 1, *LARGE)]
    assert len({tuple(np.asarray(key)) for key in keys}) == len(keys)
    noises = [draw_noise(seed_words(seed), np.arange(2), (3, 4))[0] for seed in (0, 1, *LARGE)]
    assert len({np.asarray(noise).tobytes() for noise in noises}) == len(noises)


@pytest.mark.parametrize("seed", LARGE)
@pytest.mark.parametrize("key", ["seed", "eval.seed"])
def test_a_config_may_have_a_large_seed(seed, key):
    config = default_config()
    *section, last = key.split(".")
    (config[section[0]] if section else config)[last] = seed
    check_config(config)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
@pytest.mark.parametrize("key", ["seed", "eval.seed"])
def test_a_config_is_told_what_is_no_seed(seed, key):
    config = default_config()
    *section, last = key.split(".")
    (config[section[0]] if section else config)[last] = seed
    with pytest.raises(InputError, match=rf"config\.{key} = .*must lie in"):
        check_config(config)


@pytest.mark.parametrize("text", ["-1", str(2**64), "1.5", "", "x", "1e3"])
def test_an_option_is_told_what_is_no_seed(text):
    with pytest.raises(argparse.ArgumentTypeError, match="the seed"):
        seed_argument(text)


@pytest.mark.parametrize("seed", [None, True, 1.0, "1", -1, 2**64])
def test_a_caller_is_told_what_is_no_seed(seed):
    with pytest.raises(InputError, match=r"seed = .*whole number from 0 to"):
        check_seed(seed, "seed")


def test_what_is_a_seed_is_one():
    assert [seed_argument(str(seed)) for seed in LARGE] == LARGE
    assert check_seed(np.uint64(MAX_SEED), "seed") == MAX_SEED
