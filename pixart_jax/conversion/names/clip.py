"""Hugging Face transformers' CLIP checkpoints to `Clip` and back, strict in both directions. numpy only.

Takes CLIPModel, and CLIPVisionModelWithProjection and CLIPTextModelWithProjection, which hold one of its towers under
the same names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from pixart_jax.conversion.names.rules import COPY, TRANSPOSE, Misfit, Rule, convert, linear, norm, revert
from pixart_jax.conversion.names.vae import CONV_KERNEL

# Positions by number, integers, which files of before transformers 4.31 hold and nothing asks for.
POSITION_IDS = r"(text_model|vision_model)\.embeddings\.position_ids"


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of the parameters with names of its own.

    Attributes:
      ours: the module that has them, with a "/"; "" for what lies beside the towers.
      names: pattern of the reference's names.
      block: pattern of those in layers.
      rules: of the others.
    """

    ours: str
    names: str
    block: str
    rules: list[Rule]


def _tower(name: str, projection: str, rules: list[Rule]) -> _Part:
    embeddings: list[Rule] = [
        (rf"{name}\.embeddings\.position_embedding\.weight", "position_embedding/embedding_table", COPY),
        (rf"{projection}\.weight", f"{projection}/kernel", TRANSPOSE),
    ]
    block = rf"{name}\.encoder\.layers\.(\d+)\.(.+)"
    return _Part(f"{name}/", rf"{name}\..+|{projection}\..+", block, embeddings + rules)


_VISION = _tower(
    "vision_model",
    "visual_projection",
    [
        (r"vision_model\.embeddings\.class_embedding", "class_embedding", COPY),
        (r"vision_model\.embeddings\.patch_embedding\.weight", "patch_embedding/kernel", CONV_KERNEL),
        *norm(r"vision_model\.(pre_layrnorm|post_layernorm)", r"\1"),
    ],
)
_TEXT = _tower(
    "text_model",
    "text_projection",
    [
        (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding/embedding_table", COPY),
        *norm(r"text_model\.final_layer_norm", "final_layer_norm"),
    ],
)
_REST = _Part("", f"(?!{_VISION.names}|{_TEXT.names}).*", "(?!)", [(r"logit_scale", "logit_scale", COPY)])
_PARTS = (_VISION, _TEXT, _REST)

_BLOCK_RULES: list[Rule] = [
    *norm("(layer_norm1|layer_norm2)", r"\1"),
    *linear(r"self_attn\.(q_proj|k_proj|v_proj|out_proj)", r"self_attn/\1"),
    *linear(r"mlp\.(fc1|fc2)", r"mlp/\1"),
]


def convert_clip(
    state_dict: Mapping[str, np.ndarray], depths: Mapping[str, int], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Parameters of a `Clip`.

    Args:
      state_dict: PyTorch names to arrays, each read once; position ids are never read.
      depths: "vision_model" and "text_model" to number of layers, of each tower that the network has.
      expected: '/'-joined path to shape of each parameter.

    Returns:
      '/'-joined path to f32 array.

    Raises:
      InputError: as `rules.convert`.
    """
    params: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for part, paths in _paths(expected):
        taken = {name for name in state_dict if re.fullmatch(part.names, name) and not re.fullmatch(POSITION_IDS, name)}
        wanted = {path.removeprefix(part.ours): expected[path] for path in paths}
        try:
            found = convert(
                state_dict, part.rules, part.block, _BLOCK_RULES, _stacks(part, depths), wanted,
                dropped=state_dict.keys() - taken,
            )  # fmt: skip
        except Misfit as misfit:
            problems += misfit.problems
        else:
            params |= {part.ours + path: array for path, array in found.items()}
    if problems:
        raise Misfit(problems)
    return params


def revert_clip(
    paths: Iterable[str], read: Callable[[str], np.ndarray], depths: Mapping[str, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of the transformers model that holds these towers.

    Args, returns and errors as `rules.revert`; depths as in `convert_clip`.
    """
    for part, mine in _paths(paths):
        inner = [path.removeprefix(part.ours) for path in mine]
        read_inner = _prefixed(read, part.ours)
        yield from revert(inner, read_inner, part.rules, part.block, _BLOCK_RULES, _stacks(part, depths))


def _prefixed(read: Callable[[str], np.ndarray], prefix: str) -> Callable[[str], np.ndarray]:
    return lambda path: read(prefix + path)


def _paths(paths: Iterable[str]) -> list[tuple[_Part, list[str]]]:
    """Each part with its paths, which begin with its `ours`."""
    paths = list(paths)
    owner = {path: next(part for part in _PARTS if path.startswith(part.ours)) for path in paths}
    return [(part, [path for path in paths if owner[path] is part]) for part in _PARTS]


def _stacks(part: _Part, depths: Mapping[str, int]) -> dict[str, range]:
    return {"layers": range(depths.get(part.ours.rstrip("/"), 0))}
