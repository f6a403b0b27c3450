"""A data set with a tiny autoencoder and text encoder of its own, so that its runs draw without any other file."""

import pathlib

import numpy as np

from pixart_jax.data.shards.feature_shards import FeatureShardWriter
from pixart_jax.data.shards.records import Sample, Text
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.registry import LINEAR_AUTOENCODER_FILE
from pixart_jax.models.linear_autoencoder import LinearAutoencoder

CAPTIONS = ["red square", "blue square", "green circle", "small red circle"]


def write_words_data(folder: pathlib.Path, align_dim: int = 0) -> pathlib.Path:
    """Four random pictures of 32 px, with another network's features of so many channels; returns the folder."""
    images = np.random.default_rng(0).uniform(-1, 1, (len(CAPTIONS), 32, 32, 3)).astype(np.float32)
    autoencoder = LinearAutoencoder.fit(images, channels=4)
    encoder = WordEncoder.train(CAPTIONS, dim=8, max_tokens=5)
    text, length = encoder.encode(CAPTIONS)
    fields = {
        "latent_channels": 4, "latent_scale": float(autoencoder.latent_scale), "latent_kind": "plain", "downsample": 8,
        "patch_size": 2, "autoencoder": "linear", "text_encoder": "words", "text_dim": 8, "max_text_tokens": 5,
        "text_dtype": "float32", "resolution": 32, "caption_cleaning": "none", "num_classes": 0, "records_per_shard": 4,
        "align": "tiny" if align_dim else "none", "align_dim": align_dim,
    }  # fmt: skip
    align = np.zeros((2, 2, align_dim), np.float16) if align_dim else None
    with FeatureShardWriter(folder, **fields) as writer:
        for i, latent in enumerate(autoencoder.encode(images)):
            texts = (Text(CAPTIONS[i], text[i, : length[i]]),)
            writer.write(Sample(str(i), (32, 32), (32, 32), latent, None, texts, align=align))
        autoencoder.save(writer.path / LINEAR_AUTOENCODER_FILE)
        encoder.save(writer.path)
    return folder


def train_words_run(folder: pathlib.Path) -> None:
    """FOLDER/run, of one step on those pictures: it draws noise, but it draws."""
    from tiny_run import tiny_config

    from pixart_jax.training.loop import train_and_evaluate

    config = tiny_config(write_words_data(folder / "data"))
    config.model.micro_condition = False
    config.train.update({"num_steps": 1, "log_every": 1, "checkpoint_every": 1})
    config.sample.update({"every": 0, "num_steps": 3})
    train_and_evaluate(config, folder / "run")
