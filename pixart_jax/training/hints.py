"""What a run says at its end about going on from here."""

from __future__ import annotations

import pathlib
import shlex

from pixart_jax.commands import command
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import SampleSource

# Samples among which the shortest caption is looked for.
_SAMPLES = 16


def sampling_hint(workdir: pathlib.Path, manifest: Manifest, samples: SampleSource) -> str | None:
    """How to draw from the run's weights, with a caption of its data; None where it takes more than the workdir holds.

    Args:
      manifest: of the data that the run trains on.
      samples: they, or some of them.
    """
    if (manifest.text_encoder, manifest.autoencoder) != ("words", "linear"):
        return None
    first = (samples[i] for i in range(min(len(samples), _SAMPLES)))
    captions = [text.caption for sample in first for text in sample.texts]
    caption = min(filter(None, captions), key=len, default=None)
    if caption is None:
        return None
    return f"draw anything: {command('sample')} --checkpoint {workdir} --prompt {shlex.quote(caption)}"
