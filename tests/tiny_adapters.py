"""A LoRA and a ControlNet of random numbers over a tiny run: what they draw means nothing, but is another picture."""

import pathlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pixart_jax.conversion.control import Control
from pixart_jax.conversion.controlnet_files import write_controlnet
from pixart_jax.conversion.formats.base import ModelWeights
from pixart_jax.conversion.formats.lora import LoraLayer, LoraWeights
from pixart_jax.conversion.formats.lora_writing import write_diffusers_lora
from pixart_jax.models.controlnet import copy_blocks


def write_random_lora(path: pathlib.Path, base: ModelWeights, seed: int = 0) -> None:
    """A safetensors file that changes the last layer."""
    rng = np.random.default_rng(seed)
    inputs, outputs = base.read("final_layer/linear/kernel").shape
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((inputs, 2), (2, outputs)))
    write_diffusers_lora(path, LoraWeights(path, {"proj_out": LoraLayer(a, b, alpha=2.0)}))


def write_random_control(folder: pathlib.Path, base: ModelWeights) -> None:
    """A folder of diffusers' research project with a copy of the first block."""
    params = copy_blocks(unflatten_dict({path: base.read(path) for path in base.paths}, sep="/"), 1)
    rng = np.random.default_rng(0)
    flat = flatten_dict(jax.tree.map(lambda leaf: leaf + rng.standard_normal(leaf.shape, np.float32), params), sep="/")
    write_controlnet(folder, Control(1, list(flat), flat.__getitem__))
