"""Weights of EfficientNet-lite0 as its published file has them, drawn."""

import json
import pathlib

import torch

GOLDEN = pathlib.Path(__file__).parent / "golden" / "extras"


def draw(shapes, seed):
    """PyTorch names to tensors that keep a picture's scale from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            values = torch.zeros((), dtype=torch.int64)
        elif name.endswith("running_var"):
            values = 1 + values.abs() / 5
        elif "bn" in name and name.endswith(".weight"):
            values = 1 + values / 10
        elif name.endswith(".weight"):
            values *= (2 / values[0].numel()) ** 0.5
        else:
            values /= 10
        drawn[name] = values
    return drawn


def write_efficientnet(path: pathlib.Path) -> pathlib.Path:
    """Those that the golden features were made with, as a .pth; returns the path."""
    recipe = json.loads((GOLDEN / "efficientnet_lite0.json").read_text(encoding="utf-8"))
    torch.save(draw(recipe["shapes"], recipe["seed"]), path)
    return path
