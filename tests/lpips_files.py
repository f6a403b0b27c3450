"""LPIPS's two files with drawn weights, under PyTorch's names."""

import pathlib

import torch
from made_once import made_once

# Numbers of the convolutions among torchvision's layers, and their width.
CONVS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256} | dict.fromkeys((17, 19, 21, 24, 26, 28), 512)
VGG, HEADS = "vgg16.pth", "vgg_heads.pth"


def lpips_files(tmp_path_factory) -> pathlib.Path:
    """A folder of VGG and HEADS."""
    return made_once(tmp_path_factory, "lpips", _write)


def _write(folder: pathlib.Path) -> None:
    generator = torch.Generator().manual_seed(0)
    vgg, width = {"classifier.6.weight": torch.zeros(2, 2), "classifier.6.bias": torch.zeros(2)}, 3
    for number, features in CONVS.items():
        # As large after a ReLU as before it.
        scale = (2 / (9 * width)) ** 0.5
        vgg[f"features.{number}.weight"] = scale * torch.randn(features, width, 3, 3, generator=generator)
        vgg[f"features.{number}.bias"] = 0.1 * torch.randn(features, generator=generator)
        width = features
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1, generator=generator) for i, n in enumerate(widths)}
    torch.save(vgg, folder / VGG)
    torch.save(heads, folder / HEADS)
