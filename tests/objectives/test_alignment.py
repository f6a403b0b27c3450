"""Alignment: the cosine by hand, whose gradients it has, and which target a token has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import MAX_TEXT_TOKENS, TEXT_DIM, tiny_config

from pixart_jax.adapters.aligned import PROJECTOR, TARGETS
from pixart_jax.config import build_adapter, build_model, build_objective, check_config, phases
from pixart_jax.data.examples import MakeExample, pack
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample, Text, decode_sample, encode_sample
from pixart_jax.data.shards.shard_files import check_sample
from pixart_jax.errors import InputError
from pixart_jax.models.params import init_params
from pixart_jax.objectives.alignment import cosine_distance
from pixart_jax.objectives.objective import Held
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.training.metrics import MetricsWindow
from tools.bench.train import training_batch

DIM = 6


def config_of(**settings):
    config = tiny_config("synthetic")
    config.model.update({"depth": 3, "micro_condition": False})
    config.align.update({"weight": 0.5, "block": 0, "dim": DIM, "width": 16})
    config.data.batch_size = 2
    config.update_from_flattened_dict(settings)
    return config


def test_the_cosine_of_real_tokens():
    rng = np.random.default_rng(0)
    found, wanted = rng.normal(size=(2, 2, 5, DIM))
    wanted[1, 3:] = 0
    value = cosine_distance(jnp.asarray(found), jnp.asarray(wanted), jnp.int32([5, 3]))
    for row, real in enumerate((5, 3)):
        pairs = zip(found[row, :real], wanted[row, :real], strict=True)
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
        assert value[row] == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    slope = jax.grad(lambda x: cosine_distance(x, jnp.asarray(wanted), jnp.int32([5, 3])).sum())(jnp.zeros_like(found))
    assert np.isfinite(slope).all()


def test_it_is_beside_the_other_loss_and_moves_what_comes_before_the_block():
    config = config_of()
    model = build_model(config)
    adapter = build_adapter(config, model)
    shapes = jax.eval_shape(lambda key: adapter.split(init_params(model, key), key)[0], jax.random.key(0))
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    assert adapter.drawn(trained).keys() == trained.keys() - {PROJECTOR}
    found = []
    for until in (0.0, 1.0):
        config.align.until = until
        gradients = jax.jit(build_objective(config, adapter))
        keys = jax.random.split(jax.random.key(7), 2)
        found.append(gradients(trained, Held({}, adapter.drawn(trained), 0), training_batch(config), keys))
    (plain, alone), (both, metrics) = found
    assert metrics["mse"] == pytest.approx(float(alone["mse"]), rel=1e-5) and "align" not in alone
    assert metrics["loss"] == pytest.approx(float(alone["loss"] + 0.5 * metrics["align"]), rel=1e-5)
    assert 0 < metrics["align"] < 2

    def change(path):
        one, other = plain, both
        for name in path.split("/"):
            one, other = one[name], other[name]
        return np.abs(np.asarray(other) - np.asarray(one)).reshape(len(one), -1).max(1)

    fc1 = change("blocks_0/mlp/fc1/kernel")
    assert fc1[0] > 1e-4 and fc1[1:].max() < 1e-6
    assert change("x_embedder/kernel").max() > 1e-4 and change("final_layer/linear/kernel").max() < 1e-6
    assert change(f"{PROJECTOR}/dense_2/kernel").max() > 1e-4
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(plain[PROJECTOR]))


def test_the_features_that_cover_a_token():
    grid = np.arange(2 * 3, dtype=np.float16).reshape(2, 3, 1)
    sample = Sample(
        key="one",
        image_size=(64, 32),
        bucket=(64, 32),
        latent_mean=np.zeros((8, 4, 4), np.float32),
        latent_std=None,
        texts=(Text("a", np.ones((1, TEXT_DIM), np.float32)),),
        align=np.repeat(grid, DIM, axis=2),
    )
    again = decode_sample(encode_sample(sample))
    np.testing.assert_array_equal(again.align, sample.align)
    fields = {
        **{"latent_channels": 4, "latent_scale": 1.0, "latent_kind": "plain", "downsample": 8, "patch_size": 2},
        **{"resolution": 0, "autoencoder": "none", "text_encoder": "none", "caption_cleaning": "none"},
        **{"text_dim": TEXT_DIM, "max_text_tokens": MAX_TEXT_TOKENS, "text_dtype": "float32"},
    }
    manifest = Manifest(**fields, align="tiny", align_dim=DIM)
    check_sample(again, manifest)
    with pytest.raises(InputError, match="align has width 6 in a set of align 'none'"):
        check_sample(again, Manifest(**fields))
    with pytest.raises(InputError, match="align must name a network"):
        Manifest(**fields, align_dim=DIM)
    config = config_of(**{"model.resolution": 64, "model.kv_compress_ratio": 2})
    spec = batch_spec(config)
    batch = pack([MakeExample(manifest, spec).random_map(again, None)], spec)
    # Four rows of two tokens, of which three columns of features have the middle between them; 2x2 blocks first.
    wanted = [0, 2, 0, 2, 3, 5, 3, 5] + [0] * 8
    np.testing.assert_array_equal(batch[TARGETS][0], np.repeat(np.float32(wanted)[:, None], DIM, axis=1))


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"adapter.kind": "lora"}, "config.align.weight = 0.5: .*learnt already"),
        ({"align.block": 3}, "config.align.block = 3: must be one of the 3 blocks"),
        ({"data.online": True}, "config.data.online = True: encodes pictures as they come"),
    ],
    ids=str,
)
def test_what_cannot_be_aligned_is_refused(settings, said):
    check_config(config_of())
    with pytest.raises(InputError, match=said):
        check_config(config_of(**settings))


def test_alignment_ends_and_its_projector_stays():
    config = config_of(**{"align.until": 0.5, "train.num_steps": 8})
    (_, first), (done, last) = phases(config)
    assert (done, first.align.until, last.align.until, last.align.weight) == (4, 0.5, 0.0, 0.5)
    # A log step that lies behind the end is of both kinds.
    assert MetricsWindow([{"loss": 1.0, "align": 0.5}, {"loss": 3.0}]).means() == {"loss": 2.0, "align": 0.5}
