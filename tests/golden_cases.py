"""Loads the cases of tests/golden: numbers computed by the reference PyTorch code (tests/golden/README.md)."""

import json
import pathlib

import flax
import jax
import numpy as np
import torch

from pixart_jax.conversion.names.pixart import convert_pixart
from pixart_jax.models.params import init_params
from pixart_jax.models.pixart import PixArt
from pixart_jax.tokens import block_order, grid_positions, patchify, unpatchify

GOLDEN = pathlib.Path(__file__).parent / "golden"


def load_arrays(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{case}.npz") as arrays:
        return dict(arrays)


def load_config(case: str) -> dict:
    return json.loads((GOLDEN / f"{case}.json").read_text())


def load_state_dict(case: str) -> dict[str, np.ndarray]:
    checkpoint = torch.load(GOLDEN / f"{case}.pth", weights_only=True)
    return {name: tensor.numpy() for name, tensor in checkpoint.get("state_dict", checkpoint).items()}


def build_model(config: dict) -> PixArt:
    """The PixArt that a case's json describes."""
    compress = config.get("kv_compress") or {"kv_compress_layer": [], "scale_factor": 1}
    depth = config["depth"]
    dit = config["variant"] == "dit"
    return PixArt(
        hidden_size=config["hidden_size"],
        depth=depth,
        num_heads=config["num_heads"],
        text_dim=config.get("caption_channels", 0),
        max_text_tokens=config.get("model_max_length", 0),
        num_classes=config.get("num_classes", 0),
        adaln="full" if dit else "single",
        micro_condition=config.get("micro_condition", False),
        qk_norm=config.get("qk_norm", False),
        kv_compress=tuple(compress["scale_factor"] if i in compress["kv_compress_layer"] else 1 for i in range(depth)),
    )


def abstract_params(model: PixArt) -> dict:
    """Shapes of the model's parameters."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def load_params(model: PixArt, state_dict: dict) -> dict:
    """The case's weights as the model's parameters."""
    expected = flax.traverse_util.flatten_dict(abstract_params(model), sep="/")
    flat = convert_pixart(state_dict, model.segments(), {path: leaf.shape for path, leaf in expected.items()})
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def model_inputs(config: dict, x: np.ndarray, pad_to: int | None = None) -> tuple[np.ndarray, dict]:
    """Tokens and grid conditions of NCHW latents, in block-major order where the case compresses keys and values."""
    batch, _, height, width = x.shape
    grid = (height // 2, width // 2)
    ratio = (config.get("kv_compress") or {"scale_factor": 1})["scale_factor"]
    order = block_order(grid, ratio)
    tokens = patchify(x.transpose(0, 2, 3, 1), 2)[:, order]
    scale = config.get("pe_interpolation", 1.0)
    positions = np.tile(grid_positions(grid, config["input_size"] // 2, scale)[order], (batch, 1, 1))
    num_tokens = np.full(batch, tokens.shape[1], np.int32)
    if pad_to:
        # Padding is filled with large numbers: whatever leaks from it shows.
        pad = ((0, 0), (0, pad_to - tokens.shape[1]), (0, 0))
        tokens = np.pad(tokens, pad, constant_values=7.0)
        positions = np.pad(positions, pad, constant_values=11.0)
    return tokens, {"positions": positions, "num_tokens": num_tokens}


def to_nchw(tokens: np.ndarray, config: dict, shape: tuple[int, ...]) -> np.ndarray:
    """Token-space output back to the layout of the golden arrays; padding is cut off."""
    grid = (shape[2] // 2, shape[3] // 2)
    ratio = (config.get("kv_compress") or {"scale_factor": 1})["scale_factor"]
    undo = np.argsort(block_order(grid, ratio))
    return unpatchify(np.asarray(tokens)[:, undo], grid, 2).transpose(0, 3, 1, 2)


def text_conditions(arrays: dict[str, np.ndarray]) -> dict:
    conditions = {
        "text": arrays["in/y"][:, 0],
        "text_length": arrays["in/mask"].sum(-1).astype(np.int32),
    }
    if "in/img_hw" in arrays:
        conditions |= {"image_size": arrays["in/img_hw"], "aspect_ratio": arrays["in/aspect_ratio"]}
    return conditions


def forward(model: PixArt, params: dict, tokens, t, conditions: dict) -> np.ndarray:
    """eps and variance values side by side, [B, N, p·p·C] each, as one NCHW-convertible pair."""
    output = jax.jit(model.apply)({"params": params}, tokens, t, **conditions)
    return np.asarray(output.eps), np.asarray(output.v)
