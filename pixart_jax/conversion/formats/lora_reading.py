"""Reads adapters of every format that there is for PixArt; docs/adapting.md lists them.

The scale of an adapter is not among its arrays, and formats keep it in different places, or lose it. It is taken from
where the format keeps it, or from the user; where neither tells it, it is asked for.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors

from pixart_jax import samplers
from pixart_jax.adapters.layers import PATCH_EMBEDDING_NAME, by_pattern, require_patterns
from pixart_jax.commands import command
from pixart_jax.conversion.arrays import FileArrays, open_checkpoint
from pixart_jax.conversion.finite import check_finite
from pixart_jax.conversion.formats.lora import FewSteps, LoraLayer, LoraWeights
from pixart_jax.conversion.hub import fetch
from pixart_jax.conversion.names.lora import ALPHA, CONFIG_FILE, MAGNITUDE, WEIGHT_FILES, A, B, parse_names
from pixart_jax.conversion.weight_files import check_weight_file
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import Fields, parse, read_fields
from pixart_jax.samplers.few_steps import LCM_STEPS

# Where a safetensors file of diffusers keeps PEFT's configuration.
METADATA = "lora_adapter_metadata"
# Where ours say how they are drawn with that were distilled to few steps; released ones are known by their names alone.
FEW_STEPS = "pixart_jax_few_steps"
_LCM_NAME = re.compile(r"(?<![a-z])lcm[-_]?lora|lora[-_]?lcm(?![a-z])", re.IGNORECASE)
_CURE = "save the adapter again, or download it again"
# Beginnings of PEFT's that take something out of the base's weights.
_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# More than any layer has inputs.
_MAX_RANK = 1 << 16
_MAX_ALPHA = 1e6
_MAX_SCALE = 1e6


@dataclasses.dataclass(frozen=True)
class _Told:
    """What a configuration of PEFT says."""

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    base: str

    def of(self, name: str) -> tuple[int, float]:
        """Rank and alpha of a layer."""
        rank, alpha = by_pattern(self.rank_pattern, name), by_pattern(self.alpha_pattern, name)
        return self.rank if rank is None else int(rank), self.alpha if alpha is None else float(alpha)


def read_lora(path: str | pathlib.Path, *, alpha: float | None = None) -> LoraWeights:
    """An adapter from a file or a folder.

    Args:
      path: PEFT's folder; or a safetensors or PyTorch file with the names of PEFT, diffusers, kohya or OneTrainer; or
        the hub id of one of these, see `hub.fetch`.
      alpha: of a file that does not tell it.

    Raises:
      InputError: there is none, it is damaged, holds NaN, or has arrays that are no linear layer's (all are listed);
        its ranks are not those that it says; or it does not tell its alpha.
    """
    path = pathlib.Path(path)
    if alpha is not None and not 0 < alpha <= _MAX_ALPHA:
        raise InputError(f"--alpha {alpha}: must be a positive number up to {_MAX_ALPHA:g}")
    file = _find(fetch(str(path), encoders=False))
    arrays = open_checkpoint(file, None)[0]
    told = _told(file)
    try:
        found, patch_size = _layers(arrays)
        layers, asked = _with_alphas(found, told, alpha)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    # Alphas beside the arrays are kohya's, which knows no other scale.
    rslora = told is not None and told.rslora and not any(ALPHA in parts for parts in found.values())
    return LoraWeights(path, layers, rslora, told.base if told else "", patch_size, _few_steps(path, file), asked)


def read_loras(texts: Iterable[str], alpha: float | None) -> list[tuple[LoraWeights, float]]:
    """Adapters, and what the scale of each is multiplied by, from options of the form FILE or FILE:SCALE.

    Args:
      alpha: of those that do not tell it.

    Raises:
      InputError: as `read_lora`; or all of them tell their alpha, and it is given.
    """
    pairs = [split_scale(text) for text in texts]
    loras = [(read_lora(path, alpha=alpha), scale) for path, scale in pairs]
    if alpha is not None and not any(lora.alpha_was_asked for lora, _ in loras):
        why = "every adapter tells its own" if loras else "there is no adapter"
        raise InputError(f"--alpha {alpha:g}: nothing heeds it, as {why}; leave it out")
    return loras


def split_scale(text: str) -> tuple[pathlib.Path, float]:
    """FILE and SCALE of "FILE:SCALE"; 1 where there is none. What exists is a file, whatever its name.

    Raises:
      InputError: the scale is not finite, or so large that it must be a slip.
    """
    path, colon, number = text.rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        return pathlib.Path(text), 1.0
    if not colon or pathlib.Path(text).exists():
        return pathlib.Path(text), 1.0
    if not math.isfinite(scale) or abs(scale) > _MAX_SCALE:
        raise InputError(
            f"{text}: the scale of an adapter must be a finite number, from -{_MAX_SCALE:g} to {_MAX_SCALE:g}"
        )
    return pathlib.Path(path), scale


def _find(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        file = next((path / name for name in WEIGHT_FILES if (path / name).exists()), None)
        if file is None and (path / "checkpoints").is_dir():
            raise InputError(
                f"{path} is a run's workdir; {command('convert')} {path} DST --to peft has its adapter alone"
            )
        if file is None:
            raise InputError(
                f"{path} holds no adapter: there is none of {', '.join(WEIGHT_FILES)} in it; name its file"
            )
        path = file
    check_weight_file(path)
    return path


def _layers(arrays: FileArrays) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """Layer to what there is of it, as our arrays lie; and the patch size, 2 where nothing tells it."""
    names = parse_names(arrays)
    # kohya's alphas may be integers.
    arrays.check_kinds([name for name, (_, kind) in names.items() if kind == ALPHA])
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, (layer, kind) in names.items():
        array = np.asarray(arrays[name]).astype(np.float32)
        check_finite(array, name)
        found.setdefault(layer, {})[kind] = array
    problems, patch_size = [], 2
    for layer, parts in found.items():
        if layer == PATCH_EMBEDDING_NAME and A in parts and parts[A].ndim == 4:
            patch_size = parts[A].shape[-1]
        if missing := [kind for kind in (A, B) if kind not in parts]:
            problems.append(f"{layer} has no {' and no '.join(missing)}")
            continue
        problems += _to_matrices(layer, parts)
    if problems:
        raise InputError("the adapter is not whole:\n  " + "\n  ".join(problems))
    if not found:
        raise InputError("there are no arrays in it")
    return found, patch_size


def _to_matrices(layer: str, parts: dict[str, np.ndarray]) -> list[str]:
    """Brings A to [inputs, rank], B to [rank, outputs], magnitudes to [outputs] and alpha to []; says what is wrong."""
    a, b = parts[A], parts[B]
    shapes = f"{layer}: A is {a.shape}, B is {b.shape}"
    if a.ndim == 4 and b.ndim == 4 and b.shape[2:] == (1, 1):
        # The patch embedding: a convolution elsewhere, over (row, column, channel) here.
        a, b = a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]), b[:, :, 0, 0].T
    elif a.ndim == 2 and b.ndim == 2:
        a, b = a.T, b.T
    else:
        return [f"{shapes}, which are neither matrices nor the patch embedding's"]
    if a.shape[1] != b.shape[0] or not a.size or not b.size:
        return [f"{shapes}, which have no rank in common"]
    parts[A], parts[B] = a, b
    if MAGNITUDE in parts:
        outputs, shape = b.shape[1], parts[MAGNITUDE].shape
        # PEFT's, that of its convolutions, and kohya's. kohya's of the inputs, [1, inputs], follow another rule.
        if shape not in ((outputs,), (1, outputs, 1, 1), (outputs, 1), (outputs, 1, 1, 1)):
            return [f"{layer}: DoRA's magnitudes are {shape}, and should be {(outputs,)}, one for each output"]
        parts[MAGNITUDE] = parts[MAGNITUDE].reshape(-1)
    if ALPHA in parts:
        if parts[ALPHA].size != 1:
            return [f"{layer}: alpha is {parts[ALPHA].shape}, and should be one number"]
        parts[ALPHA] = parts[ALPHA].reshape(())
    return []


def _with_alphas(
    found: dict[str, dict[str, np.ndarray]], told: _Told | None, alpha: float | None
) -> tuple[dict[str, LoraLayer], bool]:
    """The layers, with the alphas that the file or else the user tells; and whether the user had to."""
    layers, problems, untold = {}, [], []
    for name, parts in found.items():
        rank, value = parts[A].shape[1], None
        if ALPHA in parts:
            value = float(parts[ALPHA])
        elif told:
            expected, value = told.of(name)
            if rank != expected:
                problems.append(f"{name}: of rank {rank}, and {expected} by its configuration")
            if told.dora != (MAGNITUDE in parts):
                has = "has" if MAGNITUDE in parts else "lacks"
                problems.append(f"{name}: {has} DoRA's magnitudes, and use_dora is {told.dora} in its configuration")
        else:
            untold.append(name)
        layers[name] = LoraLayer(parts[A], parts[B], (alpha or 0.0) if value is None else value, parts.get(MAGNITUDE))
    if problems:
        raise InputError("the arrays are not those that its configuration tells of:\n  " + "\n  ".join(problems))
    if untold and alpha is None:
        raise InputError(
            f"nothing tells the alpha of {untold[0]}{f' and {len(untold) - 1} other layers' if untold[1:] else ''}: no "
            f"{CONFIG_FILE} lies beside the file, and it has neither metadata nor alphas of its own. The strength of "
            "the adapter is alpha/rank: pass --alpha. PEFT's default, which the reference's scripts train with, is 8; "
            "diffusers takes the rank for a file that does not say"
        )
    return layers, bool(untold)


def _told(file: pathlib.Path) -> _Told | None:
    """What the configuration in a file's metadata says, or that beside it."""
    if (fields := _metadata(file)) is None:
        beside = file.with_name(CONFIG_FILE)
        if not beside.exists():
            return None
        fields = read_fields(beside, _CURE)
    if (kind := fields.text("peft_type", "LORA")) != "LORA":
        raise InputError(f"{fields.path} is of an adapter of the kind {kind}; only LORA can be read")
    init = fields.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGING_INITS):
        raise InputError(
            f"{fields.path}: init_lora_weights is {init!r}, which changes the base's weights too, so that this adapter "
            "does not belong to the base itself; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    patterns = {}
    for key, limit in (("rank_pattern", _MAX_RANK), ("alpha_pattern", _MAX_ALPHA)):
        patterns[key] = dict(fields.fields(key, Fields(fields.path, {}, _CURE)))
        require_patterns(patterns[key], f"{fields.path}: {fields.prefix}{key}")
        inner = Fields(fields.path, patterns[key], _CURE, f"{fields.prefix}{key}.")
        for name in patterns[key]:
            inner.integer(name, 1, _MAX_RANK) if key == "rank_pattern" else inner.number(name, 0, limit)
    return _Told(
        rank=fields.integer("r", 1, _MAX_RANK),
        alpha=fields.number("lora_alpha", 0, _MAX_ALPHA),
        rslora=fields.flag("use_rslora", False),
        dora=fields.flag("use_dora", False),
        base=fields.text("base_model_name_or_path", ""),
        **patterns,
    )


def _few_steps(path: pathlib.Path, file: pathlib.Path) -> FewSteps | None:
    """How an adapter is drawn with that was distilled to few steps: by its header, or the names that it goes by."""
    if (values := _header(file, FEW_STEPS)) is not None:
        fields = Fields(file, values, _CURE)
        sampler = fields.text("sampler")
        if sampler not in samplers.FEW_STEPS:
            raise InputError(
                f"{file}: its metadata {FEW_STEPS} names no sampler of few steps: {sampler[:40]!r}; {_CURE}"
            )
        return FewSteps(sampler, fields.integer("num_steps", 1, LCM_STEPS))
    names = {path.name, path.absolute().parent.name} if path.suffix else {path.name}
    return FewSteps("lcm", samplers.FEW_STEPS["lcm"]) if any(map(_LCM_NAME.search, names)) else None


def _header(file: pathlib.Path, key: str) -> dict[str, Any] | None:
    """The JSON object that a safetensors file has under a key of its header; None where there is none."""
    if file.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            text = (opened.metadata() or {}).get(key)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged, or no safetensors file: {error}; download it again") from error
    if text is None:
        return None
    try:
        values = parse(text)
    except ValueError as error:
        raise InputError(f"{file}: its metadata {key} is damaged: {error}; {_CURE}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: its metadata {key} should hold a JSON object; {_CURE}")
    return values


def _metadata(file: pathlib.Path) -> Fields | None:
    """PEFT's configuration in the header of diffusers' file, without the component's name before its keys."""
    if (values := _header(file, METADATA)) is None:
        return None
    prefixes = [prefix for prefix in ("transformer.", "unet.") if any(key.startswith(prefix) for key in values)]
    if prefixes:
        prefix = prefixes[0]
        values = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    return Fields(file, values, _CURE)
