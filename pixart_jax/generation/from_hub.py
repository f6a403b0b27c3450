"""A model by its id on a hub: downloaded, and where it is in another format than ours, converted once."""

from __future__ import annotations

import pathlib

from pixart_jax.conversion.encoders import open_encoders, write_encoder
from pixart_jax.conversion.hub import fetch
from pixart_jax.conversion.pipelines import check_fit
from pixart_jax.conversion.publishing import claimed, published
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.transfer import load_weights, write_orbax


def local_model(name: str) -> pathlib.Path:
    """The folder of a model that `TextToImage.from_checkpoint` opens.

    Args:
      name: a local folder, which is returned as it is; or a hub id, see `conversion.hub.fetch`: of a model in our
        format, a pipeline of diffusers, or a transformer by itself. The two latter are converted into a folder beside
        the cache of the hub's client (HF_HOME), one for each commit.

    Raises:
      InputError: as `fetch`; or it cannot be converted, or only with what tools.convert is told.
    """
    from huggingface_hub import constants

    found = fetch(name)
    cache = pathlib.Path(constants.HF_HUB_CACHE)
    if not found.is_relative_to(cache) or (found / "model.json").is_file():
        return found
    # models--owner--name/snapshots/COMMIT/..., without the word between.
    repo, _, *below = found.relative_to(cache).parts
    target = pathlib.Path(constants.HF_HOME) / "pixart_jax" / repo / "--".join(below)
    if target.is_dir():
        return target
    source = open_source(found)
    encoders = open_encoders(found) if found.is_dir() else []
    weights = load_weights(source)
    check_fit(weights.stored, encoders)
    print(f"{name}: {source.format.title}, converted into {target}", flush=True)
    with claimed(target), published(target) as temporary:
        write_orbax(temporary, weights)
        for encoder in encoders:
            write_encoder(temporary / encoder.kind, encoder)
    return target
