"""Weights of the FID network that the golden numbers were made with, drawn anew as their recipe says."""

import json
import pathlib

import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).parent / "golden" / "extras"


def draw_weights() -> dict[str, torch.Tensor]:
    recipe = json.loads((GOLDEN / "fid_network.json").read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(recipe["seed"])
    drawn = {}
    for name, shape in sorted(recipe["shapes"].items()):
        if name.endswith("num_batches_tracked"):
            drawn[name] = torch.zeros((), dtype=torch.int64)
        elif name.endswith("running_var"):
            drawn[name] = 1 + 0.2 * torch.rand(shape, generator=generator)
        else:
            draw = torch.randn(shape, generator=generator)
            if name.endswith("conv.weight"):
                draw *= (2 / np.prod(shape[1:])) ** 0.5
            elif name.endswith("bn.weight"):
                draw = 1 + 0.1 * draw
            else:
                draw *= 0.05 if name == "fc.weight" else 0.1
            drawn[name] = draw
    total = sum(float(array.double().abs().sum()) for array in drawn.values())
    np.testing.assert_allclose(total, recipe["abs_sum_of_all_weights"], rtol=1e-9)
    return drawn
