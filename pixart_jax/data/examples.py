"""One stored sample as the model takes it, and several as a batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import grain
import ml_dtypes
import numpy as np

from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample, Text
from pixart_jax.errors import InputError
from pixart_jax.tokens import block_order, grid_positions, patchify

_TEXT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The shapes of a batch: what the model needs of its data.

    Attributes:
      batch_size: samples per process per step.
      num_tokens: N that every image is padded to; those of the largest bucket.
      patch_size: latent cells per token along each side.
      latent_channels: C of the latents.
      position_base, position_scale: see `tokens.grid_positions`.
      max_text_tokens: L that every caption's features are padded to.
      text_dim: their width.
      text_dtype: "float32" or "bfloat16".
      num_classes: above 0 for class-conditional models, whose batches have `label` in place of the text.
      block_ratio: above 1, tokens are laid out block-major by this ratio (`tokens.block_order`).
      text_drop_prob: share of samples whose condition is replaced by the null embedding.
      group_buckets: every global batch holds pictures of one bucket only, and of one source.
      control: batches have the tokens of each sample's control picture.
      align_dim: above 0, batches have a target of this width for each token: a frozen network's features of its place.
      noise: batches have the tokens of the noise that each sample was drawn of, zeros where it was not drawn.

    Raises:
      InputError: a field is out of range; names it.
    """

    batch_size: int
    num_tokens: int
    patch_size: int
    latent_channels: int
    position_base: int
    position_scale: float
    max_text_tokens: int
    text_dim: int
    text_dtype: str
    num_classes: int = 0
    block_ratio: int = 1
    text_drop_prob: float = 0.1
    group_buckets: bool = False
    control: bool = False
    noise: bool = False
    align_dim: int = 0

    def __post_init__(self):
        for field in ("batch_size", "num_tokens", "patch_size", "latent_channels", "position_base", "block_ratio"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, not {getattr(self, field)!r}")
        if not self.position_scale > 0:
            raise InputError(f"position_scale must be positive, not {self.position_scale!r}")
        if self.text_dtype not in _TEXT_DTYPES:
            raise InputError(f"text_dtype must be one of {', '.join(_TEXT_DTYPES)}, not {self.text_dtype!r}")
        if self.num_classes < 0:
            raise InputError(f"num_classes must be 0 (text-conditional) or more, not {self.num_classes!r}")
        if not 0 <= self.text_drop_prob <= 1:
            raise InputError(f"text_drop_prob must lie in [0, 1], not {self.text_drop_prob!r}")


def make_example(
    sample: Sample, manifest: Manifest, spec: BatchSpec, rng: np.random.Generator | None = None
) -> dict[str, np.ndarray]:
    """One sample as the arrays of `make_iterator`'s batches, without their leading batch dimension.

    Args:
      sample: as stored.
      manifest: of the sample's set.
      spec: the batch it is made for.
      rng: draws the posterior sample, the caption and the text drop; None takes the posterior's mean and the caption of
        the largest weight, and drops nothing.

    Raises:
      InputError: the sample does not fit the batch; names its key and the field.
    """
    batch = pad_text(pack([MakeExample(manifest, spec).random_map(sample, rng)], spec), spec)
    return {name: rows[0] for name, rows in batch.items()}


@dataclasses.dataclass(frozen=True)
class Example:
    """A sample on its way into a batch: nothing is padded yet, and its text still as it was stored."""

    arrays: dict[str, np.ndarray]
    text: Text | None


@dataclasses.dataclass(frozen=True)
class MakeExample(grain.transforms.RandomMap):
    """Samples to examples, with the random numbers that Grain gives them or (None) without; see `make_example`."""

    # Kept out of Grain's messages: a manifest has thousands of shards.
    manifest: Manifest = dataclasses.field(repr=False)
    spec: BatchSpec

    def random_map(self, element: Sample, rng: np.random.Generator | None) -> Example:
        sample, manifest, spec = element, self.manifest, self.spec
        dropped = rng is not None and rng.random() < spec.text_drop_prob
        latents = _drawn(sample.latent_mean, sample.latent_std, rng) * np.float32(manifest.latent_scale)
        grid = (latents.shape[0] // spec.patch_size, latents.shape[1] // spec.patch_size)
        num_tokens = grid[0] * grid[1]
        if num_tokens > spec.num_tokens:
            raise InputError(
                f"sample {sample.key!r}: latent_mean makes {num_tokens} tokens, num_tokens is {spec.num_tokens}"
            )
        tokens, positions = self._tokens(latents), _positions(grid, spec.position_base, spec.position_scale)
        if spec.block_ratio > 1:
            positions = positions[_block_order(grid, spec.block_ratio)]
        arrays = {
            "tokens": tokens,
            "positions": positions,
            "num_tokens": np.asarray(num_tokens, np.int32),
            "image_size": np.asarray(sample.image_size, np.float32),
            "aspect_ratio": np.asarray([manifest.aspect_ratio(sample.bucket)], np.float32),
            "text_drop": np.asarray(dropped, np.bool_),
        }
        # Drawn later, so that a second caption changes none of the other random numbers.
        text = None if spec.num_classes else sample.draw_text(rng)
        if spec.control:  # And last what most models have none of.
            arrays["control"] = self._control(sample, rng)
        if spec.noise:
            arrays["noise"] = np.zeros_like(tokens) if sample.noise is None else self._tokens(sample.noise)
        if spec.align_dim:
            arrays["align"] = self._targets(sample, grid)
        if text is None:
            return Example(arrays | {"label": np.asarray(sample.label or 0, np.int32)}, None)
        length = len(text.features)
        if length > spec.max_text_tokens:
            raise InputError(
                f"sample {sample.key!r}: text has {length} tokens, max_text_tokens is {spec.max_text_tokens}"
            )
        return Example(arrays | {"text_length": np.asarray(length, np.int32)}, text)

    def _tokens(self, latents: np.ndarray) -> np.ndarray:
        """f32[N, p·p·C] in the model's order, of latents [h, w, C]."""
        size, ratio = self.spec.patch_size, self.spec.block_ratio
        tokens = patchify(latents.astype(np.float32, copy=False), size)
        return (
            tokens[_block_order((latents.shape[0] // size, latents.shape[1] // size), ratio)] if ratio > 1 else tokens
        )

    def _targets(self, sample: Sample, grid: tuple[int, int]) -> np.ndarray:
        """[N, F] in the model's order: of each token of the grid the features that cover its centre."""
        if sample.align is None:
            raise InputError(f"sample {sample.key!r} has no features to be aligned with")
        rows, columns = (
            (2 * np.arange(count) + 1) * size // (2 * count)
            for count, size in zip(grid, sample.align.shape[:2], strict=True)
        )
        targets = sample.align[rows][:, columns].reshape(grid[0] * grid[1], -1)
        return targets[_block_order(grid, self.spec.block_ratio)] if self.spec.block_ratio > 1 else targets

    def _control(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        """The tokens of the control picture."""
        if sample.control_mean is None:
            raise InputError(f"sample {sample.key!r} has no control picture, and the model follows one")
        latents = _drawn(sample.control_mean, sample.control_std, rng) * np.float32(self.manifest.latent_scale)
        return self._tokens(latents)


def _drawn(mean: np.ndarray, std: np.ndarray | None, rng: np.random.Generator | None) -> np.ndarray:
    """A sample of a posterior f32[h, w, C]; its mean without `rng`."""
    latents = mean.astype(np.float32)
    if rng is not None and std is not None:
        latents += std.astype(np.float32) * rng.standard_normal(latents.shape, dtype=np.float32)
    return latents


def pack(examples: Sequence[Example], spec: BatchSpec) -> dict[str, np.ndarray]:
    """A batch, except that `text` has the captions' real tokens one after another: [sum of lengths, text_dim].

    Batches go from process to process in this form: two thirds of most captions' places are padding, and a new page of
    shared memory costs more than what was read to fill it.
    """
    batch = {}
    for name in examples[0].arrays:
        rows = [example.arrays[name] for example in examples]
        if name in ("tokens", "positions", "control", "noise", "align"):
            dtype = _TEXT_DTYPES[spec.text_dtype] if name == "align" else np.float32
            batch[name] = np.zeros((len(rows), spec.num_tokens, rows[0].shape[-1]), dtype)
            for padded, row in zip(batch[name], rows, strict=True):
                padded[: len(row)] = row
        else:
            batch[name] = np.stack(rows)
    if not spec.num_classes:
        ends = np.cumsum(batch["text_length"])
        batch["text"] = np.empty((ends[-1], spec.text_dim), _TEXT_DTYPES[spec.text_dtype])
        texts = (example.text for example in examples if example.text is not None)
        for text, out in zip(texts, np.split(batch["text"], ends[:-1]), strict=True):
            text.decode_into(out)
    return batch


def pad_text(batch: dict[str, np.ndarray], spec: BatchSpec) -> dict[str, np.ndarray]:
    """What `pack` made, with `text` [B, L, text_dim]."""
    if spec.num_classes:
        return batch
    lengths = batch["text_length"]
    text = np.zeros((len(lengths), spec.max_text_tokens, spec.text_dim), batch["text"].dtype)
    for padded, rows in zip(text, np.split(batch["text"].view(np.ndarray), np.cumsum(lengths)[:-1]), strict=True):
        padded[: len(rows)] = rows
    return batch | {"text": text}


# A resolution has some forty buckets; beside these, the tables of a 2K image take longer to make than its noise.
_positions = functools.lru_cache(maxsize=128)(grid_positions)
_block_order = functools.lru_cache(maxsize=128)(block_order)


def stack_examples(examples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Conditions of several pictures side by side: everything of `make_example` but the tokens."""
    return {name: np.stack([e[name] for e in examples]) for name in examples[0] if name != "tokens"}
