"""The linear layers of a PixArt that adapters of weights change, by our paths and by diffusers' names.

Outside, adapters go by the names of diffusers' `PixArtTransformer2DModel`: those in files, and what the scripts of
both PixArt repositories train. Of queries, keys and values, side by side in one kernel of ours, each is a layer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from pixart_jax.errors import InputError

# What both repositories' LoRA scripts name, `proj_in` left out, which PixArt has not: every linear layer and the patch
# embedding.
REFERENCE_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_out", "ff.net.0.proj", "ff.net.2", "proj",
    "linear", "linear_1", "linear_2",
)  # fmt: skip

# The one layer that is a convolution elsewhere.
PATCH_EMBEDDING_NAME = "pos_embed.proj"

_EMBEDDER = "adaln_single.emb"
_LAYERS = {
    "x_embedder": (PATCH_EMBEDDING_NAME,),
    "t_embedder/mlp_0": (f"{_EMBEDDER}.timestep_embedder.linear_1",),
    "t_embedder/mlp_2": (f"{_EMBEDDER}.timestep_embedder.linear_2",),
    "csize_embedder/mlp_0": (f"{_EMBEDDER}.resolution_embedder.linear_1",),
    "csize_embedder/mlp_2": (f"{_EMBEDDER}.resolution_embedder.linear_2",),
    "ar_embedder/mlp_0": (f"{_EMBEDDER}.aspect_ratio_embedder.linear_1",),
    "ar_embedder/mlp_2": (f"{_EMBEDDER}.aspect_ratio_embedder.linear_2",),
    "t_block": ("adaln_single.linear",),
    "y_embedder/y_proj_fc1": ("caption_projection.linear_1",),
    "y_embedder/y_proj_fc2": ("caption_projection.linear_2",),
    "final_layer/linear": ("proj_out",),
}
_BLOCK_LAYERS = {
    "attn/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn/proj": ("attn1.to_out.0",),
    "cross_attn/q_linear": ("attn2.to_q",),
    "cross_attn/kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn/proj": ("attn2.to_out.0",),
    "mlp/fc1": ("ff.net.0.proj",),
    "mlp/fc2": ("ff.net.2",),
}
BLOCKS = "transformer_blocks"

# Every name that a model of any number of blocks may have, with a block's number left out.
NAMES = tuple(name for names in _LAYERS.values() for name in names)
BLOCK_NAMES = tuple(name for names in _BLOCK_LAYERS.values() for name in names)

Shape = tuple[int, ...]


def part_names(parts: int) -> tuple[str, ...]:
    """What the parts of a kernel are called that holds so many tensors side by side: queries, keys, values."""
    return ("q", "k", "v")[-parts:]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One linear layer, or equal ones of all blocks of a stack.

    Attributes:
      module: '/'-joined path of our module that holds its kernel.
      part, parts: which part of the kernel's columns it is, of how many.
      names: diffusers' name of each block's; of one where it is not stacked.
      stacked: whether its arrays have a leading axis of blocks.
      inputs, outputs: features.
    """

    module: str
    part: int
    parts: int
    names: tuple[str, ...]
    stacked: bool
    inputs: int
    outputs: int

    @property
    def path(self) -> str:
        """'/'-joined: the module, and which part of it."""
        return f"{self.module}/{part_names(self.parts)[self.part]}" if self.parts > 1 else self.module

    def columns(self, kernel):
        """Its part of the module's kernel [..., inputs, parts·outputs], or of its bias."""
        return kernel[..., self.part * self.outputs : (self.part + 1) * self.outputs]


def layers_of(shapes: Mapping[str, Shape]) -> list[Layer]:
    """The layers of a model, in the order of our paths, by '/'-joined path to shape of its parameters."""
    found = []
    for path, shape in sorted(shapes.items()):
        module, _, kind = path.rpartition("/")
        block = re.match(r"blocks_(\d+)/(.+)", module)
        names = _BLOCK_LAYERS.get(block[2], ()) if block else _LAYERS.get(module, ())
        if kind != "kernel" or not names:
            continue
        for part, name in enumerate(names):
            whole = [f"{BLOCKS}.{int(block[1]) + i}.{name}" for i in range(shape[0])] if block else [name]
            outputs = shape[-1] // len(names)
            found.append(Layer(module, part, len(names), tuple(whole), bool(block), shape[-2], outputs))
    return found


def is_target(name: str, targets: Sequence[str], pattern: str = "") -> bool:
    """Whether a layer is chosen, by PEFT's rules.

    Args:
      targets: names; whole ones, or what they end with after a dot.
      pattern: a regular expression of whole names, in place of them.
    """
    if pattern:
        return re.fullmatch(pattern, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def by_pattern(patterns: Mapping[str, float] | Iterable[tuple[str, float]], name: str) -> float | None:
    """The value of the first of some regular expressions that a name, or what follows one of its dots, matches: PEFT's
    `rank_pattern` and `alpha_pattern`."""
    pairs = patterns.items() if isinstance(patterns, Mapping) else patterns
    return next((value for key, value in pairs if re.match(rf"^(.*\.)?({key})$", name)), None)


def require_patterns(patterns: Iterable[str], where: str) -> None:
    """Raises InputError, beginning with `where`, unless all are regular expressions."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"{where}: {pattern!r} is no regular expression: {error}") from error
