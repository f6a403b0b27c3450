"""From the model that weights belong to, to the one that is to be trained: the changes that make sense, and only those.

A plan is made from the two descriptions alone and says of every parameter whether it is copied, made or left out; the
arrays are looked at when it is carried out. What each change means, and which of them leave the function as it was, is
in docs/init_from.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pixart_jax.conversion.names.diffusers import NULL_TEXT
from pixart_jax.conversion.stored import ARCHITECTURE, StoredModel
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.warm_start.fresh import fresh_params
from pixart_jax.warm_start.from_dit import reparameterization_target
from pixart_jax.warm_start.kv_compression import INSERTED, insert
from pixart_jax.warm_start.reparameterize import check_method, embed, no_class, reparameterize

Arrays = dict[str, np.ndarray]
# Changes a model's arrays, by path, in place.
Step = Callable[[Arrays], None]

# What no change makes sense of: the same weights would mean something else.
_FIXED = (
    "hidden_size", "depth", "num_heads", "mlp_ratio", "patch_size", "latent_channels", "qk_norm", "learn_sigma",
)  # fmt: skip
_MICRO = ("csize_embedder", "ar_embedder")
_LABELS = "y_embedder/embedding_table"


@dataclasses.dataclass(frozen=True)
class Choices:
    """Where a change can be made in several ways.

    Attributes:
      reparameterize: from full adaLN to adaLN-single: a method of `reparameterize`, or "none": what both have is
        copied, and t_block and the tables are fresh.
      unconditional: see `reparameterize`; when captions take the place of classes.
      kv_compress: "reference" or "preserve"; see `kv_compression`.
      null_text: f32[max_text_tokens, text_dim], the null caption in place of the source's, or None.
      seed: of what is fresh.
    """

    reparameterize: str = "t500"
    unconditional: str = "null"
    kv_compress: str = "reference"
    null_text: np.ndarray | None = None
    seed: int = 0


class Row(NamedTuple):
    """What becomes of a parameter: action is "copied", "made" (of the target) or "left out" (of the source)."""

    action: str
    path: str
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Transition:
    """A plan.

    Attributes:
      rows: of each parameter of the target, then of those of the source that have no place in it.
      model: the target.
      steps: carried out one after the other they turn the source's arrays into the target's.
    """

    rows: list[Row]
    model: PixArt
    steps: list[Step]

    def apply(self, arrays: Arrays) -> None:
        """Turns the source's arrays, by path, into the target's, in place.

        Raises:
          InputError: they are not the source's, by their shapes or because a number in them is not finite.
        """
        # A null caption that is missing is NaN, and about to be replaced.
        broken = (path for path, array in arrays.items() if path != NULL_TEXT and not np.isfinite(array).all())
        if names := sorted(broken):
            raise InputError("the weights hold numbers that are not finite:\n  " + "\n  ".join(names))
        for step in self.steps:
            step(arrays)
        shapes, expected = {path: array.shape for path, array in arrays.items()}, parameter_shapes(self.model)
        if wrong := sorted(path for path in shapes | expected if shapes.get(path) != expected.get(path)):
            lines = (f"{path}: {shapes.get(path, 'nothing')}, the model has {expected.get(path)}" for path in wrong)
            raise InputError("the weights do not fit the model:\n  " + "\n  ".join(lines))
        if not np.isfinite(arrays.get(NULL_TEXT, 0)).all():
            raise InputError(f"the weights hold numbers that are not finite:\n  {NULL_TEXT}")


def plan_transition(source: StoredModel, target: StoredModel, choices: Choices) -> Transition:
    """How the target starts from the source's weights.

    Raises:
      InputError: a difference that makes no sense, with the table of all differences; or a choice that does not fit.
    """
    check_differences(source, target, choices)
    draft = _Draft(source.model)
    if source.model.num_classes and not target.model.num_classes:
        _captions_for_classes(draft, target.model, choices)
    if target.model.micro_condition and not draft.model.micro_condition:
        _add_micro_conditions(draft, choices)
    if draft.model.micro_condition and not target.model.micro_condition:
        _remove_micro_conditions(draft, source.resolution)
    if not target.model.num_classes:
        _set_null_text(draft, target.model, choices)
    if draft.model.segments() != target.model.segments():
        _restack(draft, target.model, choices)
    return Transition([*draft.rows.values(), *draft.left_out], target.model, draft.steps)


def check_differences(source: StoredModel, target: StoredModel, choices: Choices) -> None:
    """Raises InputError, with the table of all differences, where one of them makes no sense."""
    refused = dict(_refused(source, target.model, choices))
    if not refused:
        return
    rows = [("", "there", "here", "")]
    theirs, ours = _described(source), _described(target)
    for name in theirs:
        if theirs[name] != ours[name] or name in refused:
            rows.append((name, theirs[name], ours[name], refused.get(name, "can change")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows)
    raise InputError("the model there cannot become the one that the config describes:\n  " + "\n  ".join(lines))


def _described(stored: StoredModel) -> dict[str, str]:
    """What two models may differ in, in words."""
    fields = {name: str(getattr(stored.model, name)) for name in ARCHITECTURE}
    ratios = stored.model.kv_compress
    blocks = [i for i, ratio in enumerate(ratios) if ratio > 1]
    fields["kv_compress"] = f"{max(ratios)} in {len(blocks)} of {len(ratios)} blocks" if blocks else "none"
    others = {name: f"{getattr(stored, name):g}" for name in ("resolution", "position_scale", "latent_scale")}
    return fields | others | {"null caption": stored.null_text}


def _refused(source: StoredModel, ours: PixArt, choices: Choices) -> Iterator[tuple[str, str]]:
    """(what, why) of each difference that makes no sense."""
    theirs = source.model
    for name in _FIXED:
        if getattr(theirs, name) != getattr(ours, name):
            yield name, "must be equal"
    if ours.num_classes and not theirs.num_classes:
        yield "num_classes", "captions cannot become classes"
    elif ours.num_classes != theirs.num_classes and ours.num_classes:
        yield "num_classes", "must be equal, because labels would mean something else"
    gains_captions = theirs.num_classes and not ours.num_classes
    if theirs.adaln != ours.adaln:
        if not gains_captions or ours.adaln == "full":
            yield "adaln", "can change only from full to single, and where captions take the place of classes"
        elif choices.reparameterize != "none":
            if theirs.micro_condition:
                yield "micro_condition", "is in the way of the re-parameterization"
            if len(theirs.segments()) > 1:
                yield "kv_compress", "is in the way of the re-parameterization"
    if not ours.num_classes and not theirs.num_classes and theirs.text_dim != ours.text_dim:
        yield "text_dim", "must be equal"
    if not ours.num_classes and source.null_text == "missing" and choices.null_text is None:
        yield (
            "null caption",
            "the format does not keep it; set config.init.null_text to the text encoder that tools.convert wrote, or "
            "to a file of its features of the empty caption",
        )
    if theirs.depth == ours.depth:
        pairs = zip(_ratios(theirs), _ratios(ours), strict=True)
        if any(before not in (1, after) for before, after in pairs):
            yield "kv_compress", "can appear, but neither go nor change its ratio"
    if theirs.kv_compress and ours.kv_compress and theirs.kv_sampling != ours.kv_sampling:
        yield "kv_sampling", "must be equal where both compress"


def _ratios(model: PixArt) -> tuple[int, ...]:
    return model.kv_compress or (1,) * model.depth


class _Draft:
    """A plan in the making: the model so far, what becomes of each of its parameters, and the steps that led to it."""

    def __init__(self, model: PixArt):
        self.model = model
        self.rows = {path: Row("copied", path) for path in parameter_shapes(model)}
        self.left_out: list[Row] = []
        self.steps: list[Step] = []

    def become(self, model: PixArt, why: Callable[[str], str], why_not: Callable[[str], str], step: Step) -> None:
        """The next model.

        Args:
          why: says of a parameter that the model before did not have what it is made of.
          why_not: likewise of one that goes.
        """
        new = parameter_shapes(model)
        self.left_out += [Row("left out", path, why_not(path)) for path in self.rows if path not in new]
        self.rows = {path: self.rows.get(path) or Row("made", path, why(path)) for path in new}
        self.model = model
        self.steps.append(step)

    def remake(self, path: str, why: str) -> None:
        """Says that a parameter of the source is changed."""
        self.rows[path] = Row("made", path, why)


def _captions_for_classes(draft: _Draft, ours: PixArt, choices: Choices) -> None:
    before, method = draft.model, choices.reparameterize
    after = before.clone(num_classes=0, adaln=ours.adaln, text_dim=ours.text_dim, max_text_tokens=ours.max_text_tokens)
    by_name = before.adaln == after.adaln or method == "none"
    if not by_name:
        check_method(method)

    def why(path: str) -> str:
        if "/cross_attn/" in path:
            return "fresh, and projecting to zero: captions count nothing at first"
        if path.startswith("y_embedder/") or by_name:
            return "fresh"
        return "re-parameterized " + ("over all timesteps" if method == "mean" else f"at t = {method[1:]}")

    def rename(arrays: Arrays) -> None:
        shapes = parameter_shapes(after)
        if before.adaln == after.adaln:
            _add_to(arrays, "t_embedder/mlp_2/bias", no_class(arrays, choices.unconditional))
        for path in arrays.keys() - shapes.keys():
            del arrays[path]
        arrays |= fresh_params(after, choices.seed, lambda path: path in shapes.keys() - arrays.keys())

    def fit(arrays: Arrays) -> None:
        target = reparameterization_target(after, choices.seed)
        params = reparameterize(arrays, target, method=method, unconditional=choices.unconditional)
        arrays.clear()
        arrays |= params

    def why_not(path: str) -> str:
        return "captions take its place" if path == _LABELS else "t_block and the tables take its place"

    draft.become(after, why, why_not, rename if by_name else fit)
    if choices.unconditional == "null" and (before.adaln == after.adaln or not by_name):
        draft.remake("t_embedder/mlp_2/bias", "with the embedding of DiT's null class added")


def _add_micro_conditions(draft: _Draft, choices: Choices) -> None:
    def step(arrays: Arrays) -> None:
        arrays |= fresh_params(after, choices.seed, lambda path: path.startswith(_MICRO))
        for name in _MICRO:
            arrays[f"{name}/mlp_2/kernel"] = np.zeros_like(arrays[f"{name}/mlp_2/kernel"])

    after = draft.model.clone(micro_condition=True)
    draft.become(after, lambda path: "fresh, with a zero last layer: adds nothing at first", str, step)


def _remove_micro_conditions(draft: _Draft, resolution: int) -> None:
    def step(arrays: Arrays) -> None:
        size, ratio = embed(arrays, np.full(2, resolution, np.float64), _MICRO[0]), embed(arrays, np.ones(1), _MICRO[1])
        _add_to(arrays, "t_embedder/mlp_2/bias", np.concatenate([size.ravel(), ratio.ravel()]))
        for path in [path for path in arrays if path.startswith(_MICRO)]:
            del arrays[path]

    after = draft.model.clone(micro_condition=False)
    draft.become(after, str, lambda path: "what it says of a square picture becomes part of t_embedder", step)
    draft.remake("t_embedder/mlp_2/bias", f"with the micro-conditions of a {resolution} px square added")


def _add_to(arrays: Arrays, path: str, value: np.ndarray | float) -> None:
    arrays[path] = (arrays[path] + value).astype(np.float32)


def _set_null_text(draft: _Draft, ours: PixArt, choices: Choices) -> None:
    before, after = draft.model.max_text_tokens, ours.max_text_tokens
    if choices.null_text is None and before == after:
        return
    if choices.null_text is not None:
        expected = (ours.max_text_tokens, ours.text_dim)
        if choices.null_text.shape != expected or not np.isfinite(choices.null_text).all():
            raise InputError(
                f"the null caption has shape {choices.null_text.shape}; the model takes {expected}, all finite: the "
                "text encoder's features of the empty caption, padded to as many tokens as captions have"
            )
        why = "from config.init.null_text"
    else:
        why = f"the first {after} of {before} tokens" if after < before else f"the {before} tokens, repeated"

    def step(arrays: Arrays) -> None:
        # The text has no positions: attention to repeated tokens is attention to the tokens.
        rows = np.arange(after) % before
        arrays[NULL_TEXT] = arrays[NULL_TEXT][rows] if choices.null_text is None else choices.null_text.copy()

    draft.model = draft.model.clone(max_text_tokens=after)
    draft.steps.append(step)
    draft.remake(NULL_TEXT, why)


def _restack(draft: _Draft, ours: PixArt, choices: Choices) -> None:
    """Blocks into the target's stacks, and the compression of keys and values where it appears."""
    before = draft.model

    def pieces(first: int, length: int) -> Iterator[tuple[str, slice, int]]:
        """Stack of the source, its rows and its ratio, of each that some of these blocks are in."""
        for start, count, ratio in before.segments():
            low, high = max(first, start), min(first + length, start + count)
            if low < high:
                yield f"blocks_{start}", slice(low - start, high - start), ratio

    def step(arrays: Arrays) -> None:
        blocks = {path: arrays.pop(path) for path in list(arrays) if path.startswith("blocks_")}
        for first, length, ratio in ours.segments():
            parts = []
            for stack, rows, old_ratio in pieces(first, length):
                prefix = f"{stack}/"
                part = {path[len(prefix) :]: array[rows] for path, array in blocks.items() if path.startswith(prefix)}
                # The other samplings have no parameters.
                same = ratio == old_ratio or ours.kv_sampling != "conv"
                parts.append(part if same else insert(part, ratio, ours, choices.kv_compress))
            for name in parts[0]:
                # A view where it can be one, lest the model be in memory twice.
                found = [part[name] for part in parts]
                arrays[f"blocks_{first}/{name}"] = found[0] if len(found) == 1 else np.concatenate(found)

    rows = {path: row for path, row in draft.rows.items() if not path.startswith("blocks_")}
    for path in parameter_shapes(ours):
        stack, _, name = path.partition("/")
        if not stack.startswith("blocks_"):
            continue
        first, length, ratio = next(segment for segment in ours.segments() if stack == f"blocks_{segment[0]}")
        is_new = any(old_ratio != ratio for *_, old_ratio in pieces(first, length))
        if is_new and (why := INSERTED[choices.kv_compress].get(name)):
            rows[path] = Row("made", path, why)
        else:
            origins = (draft.rows.get(f"{old}/{name}") for old, *_ in pieces(first, length))
            rows[path] = next(row for row in origins if row is not None)._replace(path=path)
    draft.rows, draft.model = rows, ours
    draft.steps.append(step)
