"""What a config says about the data: opened, checked, and the same to the loop whatever kind it is."""

from __future__ import annotations

import functools

from pixart_jax.config import ConfigDict, flatten, require_setting
from pixart_jax.data.examples import BatchSpec
from pixart_jax.training.inputs.base import SYNTHETIC, Share, TrainingData
from pixart_jax.training.inputs.halves import SECOND
from pixart_jax.training.inputs.pictures import open_pictures_online
from pixart_jax.training.inputs.shards import open_shards
from pixart_jax.training.inputs.synthetic import open_synthetic


def open_data(config: ConfigDict, spec: BatchSpec, *, process_index: int = 0, process_count: int = 1) -> TrainingData:
    """The data that a config names, checked against its model.

    Raises:
      InputError: names the config key or the directory, and the cure; before anything is encoded.
    """
    share = Share(process_index=process_index, process_count=process_count)
    if config.data.online:
        return open_pictures_online(config, spec, share)
    require = functools.partial(require_setting, config)
    for key, unset in (
        ("caption_cleaning", "none"),
        ("data_dir", ""),
        ("caption_column", ""),
        ("image_column", ""),
        ("caption", ""),
        ("control", "none"),
        ("control_dir", ""),
        ("hed", ""),
    ):
        require(config.data[key] == unset, f"data.{key}", f"only config.data.online=True heeds it; set it to {unset!r}")
    require(
        not config.data.text_encoder or config.sample.prompts,
        "data.text_encoder",
        "only config.data.online=True and config.sample.prompts heed it; set it to ''",
    )
    is_synthetic = config.data.source.strip() == SYNTHETIC
    for key in SECOND:
        require(not (is_synthetic and flatten(config)[key]), key, "synthetic data are of one kind; set it to ''")
    data = (open_synthetic if is_synthetic else open_shards)(config, spec, share)
    sizes = len(data.manifest.bucket_histogram)
    require(
        not config.sample.retrieval_captions or sizes == 1,
        "sample.retrieval_captions",
        f"pictures are compared pixel by pixel, and {config.data.source} holds {sizes} sizes; set it to 0",
    )
    return data
