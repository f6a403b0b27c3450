"""LPIPS's two files to its parameters: the features' network is torchvision's, the heads are the authors' own."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from pixart_jax.conversion.names.lpips import CLASSIFIER, HEAD_RULES, VGG_RULES
from pixart_jax.conversion.picture_networks import load_network, load_picture_network
from pixart_jax.errors import InputError
from pixart_jax.models.hed import STAGES
from pixart_jax.models.lpips import MIN_SIZE, Heads, Vgg16


def load_lpips(vgg: pathlib.Path, heads: pathlib.Path) -> Any:
    """Parameters of a `Lpips`.

    Args:
      vgg: torchvision's state dict of VGG16 for ImageNet (`vgg16-397923af.pth`), of which the classifier is dropped, as
        PyTorch's file or safetensors.
      heads: `lpips/weights/v0.1/vgg.pth` of the package `lpips`, likewise.

    Returns:
      Nested parameters, f32 arrays of numpy.

    Raises:
      InputError: there is no such file, it is damaged, or another network's.
    """
    for path, cure in ((vgg, "torchvision's VGG16"), (heads, "lpips/weights/v0.1/vgg.pth of the package lpips")):
        if not path.is_file():
            raise InputError(f"{path}: no such file; name {cure}")
    differences = [jax.ShapeDtypeStruct((1, 1, 1, features), jnp.float32) for _, features in STAGES]
    return {
        "vgg": load_picture_network(
            vgg, Vgg16(), MIN_SIZE, VGG_RULES, dropped=CLASSIFIER, misfit=" is not torchvision's VGG16"
        ),
        "heads": load_network(heads, Heads(), differences, HEAD_RULES, misfit=" is not the heads of LPIPS on VGG16"),
    }
