"""The golden cases of LoRA: a tiny diffusers transformer, its inputs and outputs, and adapters in every format."""

import functools

import flax
import jax
import numpy as np
from golden_cases import GOLDEN

from pixart_jax.adapters.lora import SCALE, Lora
from pixart_jax.conversion.formats.base import Hints, ModelWeights
from pixart_jax.conversion.formats.lora import LoraWeights
from pixart_jax.conversion.lora import adapter_arrays
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.transfer import load_weights
from pixart_jax.models.params import apply_of, parameter_shapes
from pixart_jax.tokens import grid_positions, patchify, unpatchify

LORA = GOLDEN / "extras" / "lora"
GRID = (4, 6)
# PEFT's default, of the files that do not tell theirs.
ALPHA = 8.0


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(LORA / "lora.npz") as opened:
        return dict(opened)


def base() -> ModelWeights:
    return load_weights(open_source(LORA / "base"), Hints(family="alpha", resolution=64))


def params_of(weights: ModelWeights) -> dict:
    return nested({path: weights.read(path) for path in weights.paths})


@functools.cache
def base_params() -> dict:
    return params_of(base())


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    return parameter_shapes(base().stored.model)


def inputs() -> tuple[np.ndarray, np.ndarray, dict]:
    """Tokens, timesteps and conditions."""
    found, stored = arrays(), base().stored
    tokens = patchify(found["in/latents"].transpose(0, 2, 3, 1), 2)
    positions = np.tile(grid_positions(GRID, stored.position_base, stored.position_scale), (len(tokens), 1, 1))
    conditions = {
        "positions": positions,
        "num_tokens": np.full(len(tokens), tokens.shape[1], np.int32),
        "text": found["in/text"],
        "text_length": found["in/mask"].sum(-1).astype(np.int32),
    }
    return tokens, found["in/timestep"], conditions


def to_nchw(output) -> np.ndarray:
    """eps and variance values as the golden outputs are laid out."""
    return np.concatenate([unpatchify(np.asarray(part), GRID, 2).transpose(0, 3, 1, 2) for part in output], axis=1)


@functools.cache
def program():
    """(adapter arrays, base's parameters) -> the adapted model's output."""
    tokens, t, conditions = inputs()
    lora = Lora(apply_of(base().stored.model))
    return jax.jit(lambda trained, params: lora.apply(trained, params, tokens, t, **conditions))


def trained_half(lora: LoraWeights, scale: float = 1.0) -> dict:
    found = adapter_arrays(lora, shapes())
    return nested({path: array * np.float32(scale) if path.endswith(SCALE) else array for path, array in found.items()})


def nested(flat: dict) -> dict:
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def relative_error(output: np.ndarray, name: str) -> float:
    expected = arrays()[name]
    return float(np.abs(output - expected).max() / np.abs(expected).max())
