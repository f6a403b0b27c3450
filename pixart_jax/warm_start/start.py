"""A run that starts from weights that exist already: `config.init_from`, described in docs/init_from.md."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import posixpath
from collections.abc import Callable, Iterable
from typing import BinaryIO

import jax
import numpy as np
import optax

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.checkpoints.state import Birth
from pixart_jax.config import ConfigDict, build_adapter, build_model, holds_weights, load_config
from pixart_jax.conversion.control import Control
from pixart_jax.conversion.describe import describe
from pixart_jax.conversion.formats.base import Hints, ModelWeights
from pixart_jax.conversion.formats.lora import LoraWeights
from pixart_jax.conversion.hub import fetch
from pixart_jax.conversion.lora import merge
from pixart_jax.conversion.runs import describe_run, load_run, load_run_control, load_run_lora
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.conversion.transfer import load_weights, read_null_text
from pixart_jax.data.shards.manifest import ENCODERS, Manifest, read_manifest
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.encoding.pretrained import T5TextEncoder, local_mesh
from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically
from pixart_jax.models.params import parameter_shapes
from pixart_jax.tokens import same_latent_scale
from pixart_jax.warm_start.transitions import Arrays, Choices, Transition, plan_transition

# Below a run's workdir: what it started from.
RECORD = "init_from.json"
NULL_TEXT_FILE = "null_text.npy"
WHICH = {"auto": None, "ema": True, "raw": False}


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Weights found to fit, and not read yet.

    Attributes:
      path: as the user wrote it.
      stored: what they are.
      transition: what becomes of them.
      table: the same, to be read.
      null_text: the null caption that it was given, of a run whose checkpoints do not hold it; None of others.
    """

    path: str
    stored: StoredModel
    transition: Transition
    table: list[str]
    open: Callable[[], ModelWeights]
    null_text: np.ndarray | None = None

    def load(self) -> Arrays:
        """The target's parameters by path, on the host.

        Raises:
          InputError: the weights are damaged, or not what they say they are.
        """
        try:
            weights = self.open()
            arrays = {path: weights.read(path) for path in weights.paths}
            self.transition.apply(arrays)
        except InputError as error:
            raise _at(self.path, error) from error
        return arrays

    def write_record(self, workdir: pathlib.Path) -> None:
        """Writes workdir/init_from.json, and the null caption where it is to be found again: an encoder would make one
        on other devices that differs in its last bits."""
        record = {"init_from": self.path, "provenance": self.stored.provenance, "table": self.table}
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        write_atomically(workdir / RECORD, lambda file: file.write(text.encode()))
        if self.null_text is not None:
            write_atomically(workdir / NULL_TEXT_FILE, functools.partial(_write_npy, self.null_text))


def open_warm_start(path: str, target: StoredModel, *, weights: str, null_text: str, choices: Choices) -> WarmStart:
    """Finds weights and what has to change for the target to start from them; reads names and shapes only.

    Args:
      path: what tools.convert takes: a file or folder in any format, a run's workdir, a hub id; or one checkpoint of a
        run, `workdir/checkpoints/STEP`.
      weights: a key of WHICH: where there are both, the averaged ones or the raw ones; "auto" is the averaged ones, but
        of PixArt's own checkpoints `state_dict`, as in tools.convert.
      null_text: file of the null caption, or text encoder that makes it, or "".
      choices: with null_text None; the null caption that is found takes its place.

    Raises:
      InputError: there are no weights, or they are damaged or of a model that the target cannot start from; then with
        the table of differences.
    """
    if null_text:
        choices = dataclasses.replace(choices, null_text=_given_null_text(null_text, target))
    try:
        stored, control, opener = _open(path, target, WHICH[weights])
        transition = plan_transition(stored, target, choices)
    except InputError as error:
        raise _at(path, error) from error
    return WarmStart(path, stored, transition, _table(stored, target, transition, control), opener)


def open_base(config: ConfigDict, manifest: Manifest, workdir: pathlib.Path) -> WarmStart:
    """config.init_from, found to fit the config's model.

    Args:
      manifest: of the data.
      workdir: of the run, which may have kept the null caption.

    Raises:
      InputError: as `open_warm_start`.
    """
    init, target, kept = config.init, describe_run(config, manifest, {}), workdir / NULL_TEXT_FILE
    holds = holds_weights(config)
    null_text = None
    if init.null_text:
        null_text = _given_null_text(str(kept) if holds and kept.is_file() else init.null_text, target)
    choices = Choices(init.reparameterize, init.unconditional, init.kv_compress, null_text, config.seed)
    try:
        start = open_warm_start(config.init_from, target, weights=init.weights, null_text="", choices=choices)
    except InputError as error:
        if not holds:
            raise
        raise InputError(
            f"{error}\nWhat is trained here is laid over these weights, which no checkpoint holds"
        ) from error
    if holds and start.stored.prediction != target.prediction:
        raise InputError(
            f"{config.init_from}: it predicts {start.stored.prediction!r}, and what is trained here is laid over that; "
            f"set config.diffusion.prediction to it, not to {target.prediction!r}"
        )
    return dataclasses.replace(start, null_text=null_text if holds else None)


def load_run_weights(workdir: pathlib.Path, *, ema: bool, step: int | None = None) -> ModelWeights:
    """A model as a run trains it: of one that trains an adapter, with that merged into the weights below it, or, if it
    is a ControlNet, beside them.

    Args, errors: as `runs.load_run`; or the weights below are not there any more, or others.
    """
    config = load_config(workdir)
    if config.adapter.kind == "full":
        return load_run(workdir, ema=ema, step=step)
    adapter: Control | LoraWeights
    if config.adapter.kind == "controlnet":
        adapter, arrays = load_run_control(workdir, None, ema=ema, step=step)
    else:
        adapter, arrays = load_run_lora(workdir, ema=ema, step=step)
    manifest = read_manifest(workdir / ENCODERS, may_be_empty=True)
    base = open_base(config, manifest, workdir)
    loaded: Arrays | None = None

    def read(path: str) -> np.ndarray:
        nonlocal loaded
        if loaded is None:
            loaded = base.load()
            _check_base(workdir, config, arrays.step, dict(loaded))
        return loaded.pop(path)

    provenance = {"source": workdir.name, "format": "run", "weights": f"{arrays.name} over {config.init_from}"}
    stored = describe_run(config, manifest, provenance)
    weights = ModelWeights(stored, list(parameter_shapes(stored.model)), read)
    if isinstance(adapter, Control):
        return dataclasses.replace(weights, control=adapter)
    merged = merge(weights, [(adapter, 1.0)])
    return dataclasses.replace(merged, stored=stored)


def _check_base(workdir: pathlib.Path, config: ConfigDict, step: int, arrays: Arrays) -> None:
    model = build_model(config)
    mesh = make_mesh(devices=jax.local_devices()[:1])
    birth = Birth(model, build_adapter(config, model), optax.identity(), mesh, config.seed)
    check_frozen(
        workdir, config, Checkpoints(workdir, read_only=True), step, birth.frozen_checksum(birth.frozen(arrays))
    )


def check_frozen(
    workdir: pathlib.Path, config: ConfigDict, checkpoints: Checkpoints, step: int, checksum: str | None
) -> None:
    """Raises InputError unless these are the frozen weights that a run has trained beside.

    Args:
      checksum: `Birth.frozen_checksum`.
    """
    before = checkpoints.read_progress(step)[1].get("frozen")
    if checksum != before:
        raise InputError(
            f"{workdir}: config.init_from = {config.init_from!r} holds other weights now than the run's adapter was "
            f"trained beside (checksum {checksum}, then {before}); put those back"
        )


def _given_null_text(name: str, target: StoredModel) -> np.ndarray:
    """f32[max_text_tokens, text_dim], from a file or by a text encoder that `tools.convert` wrote."""
    path = pathlib.Path(name)
    try:
        if not path.is_dir():
            return read_null_text(path)
        encoder = T5TextEncoder(path, max_tokens=target.model.max_text_tokens, mesh=local_mesh())
        return encoder.encode([""])[0][0]
    except InputError as error:
        raise InputError(f"config.init.null_text: {error}") from error


def _write_npy(array: np.ndarray, file: BinaryIO) -> None:
    np.save(file, array)


def _at(path: str, error: InputError) -> InputError:
    return InputError(f"config.init_from = {path!r}: {error}")


def _open(path: str, target: StoredModel, ema: bool | None) -> tuple[StoredModel, bool, Callable[[], ModelWeights]]:
    """What the weights are, whether a ControlNet is with them, and what reads them."""
    local = fetch(path, encoders=False)
    if (local / "checkpoints").is_dir():
        weights = load_run_weights(local, ema=ema is not False)
        return weights.stored, False, lambda: weights
    if local.parent.name == "checkpoints" and local.name.isdigit() and local.is_dir():
        weights = load_run_weights(local.parents[1], ema=ema is not False, step=int(local.name))
        return weights.stored, False, lambda: weights
    source, model = open_source(local, ema=ema), target.model
    # What a file does not tell is taken to be as in the config.
    family = "sigma" if model.max_text_tokens > 120 else "alpha"
    fallback = Hints(family, model.num_heads, target.resolution, target.position_scale)
    without_control = source.format.without_control
    if without_control:
        source = without_control(source)
    stored = describe(source, fallback=fallback)
    provenance = stored.provenance | ({} if source.format.says_all else {"source": path})
    stored = dataclasses.replace(stored, provenance=provenance)
    return stored, without_control is not None, lambda: load_weights(source, fallback=fallback)


def _table(source: StoredModel, target: StoredModel, transition: Transition, control: bool) -> list[str]:
    """The lines that tell the user what happens to the weights."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in transition.rows:
        groups.setdefault((row.action, row.why), []).append(row.path)
    order = ("copied", "made", "left out")
    lines = []
    for (action, why), paths in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
        lines.append(f"{action:9}{len(paths):4}  {_names(paths)}" + (f": {why}" if why else ""))
    lines += [f"left out       {line}" for line in ["the ControlNet"] if control]
    sizes = [f"{stored.resolution} px, scale {stored.position_scale:g}" for stored in (source, target)]
    lines.append("positions      " + " → ".join(dict.fromkeys(sizes)) + ": computed, nothing to copy")
    scales = [f"{stored.latent_scale:g}" for stored in (source, target)]
    if "assumed_family" in source.provenance:
        lines.append(f"latents        scale {scales[1]}; the source does not tell its own")
    elif not same_latent_scale(source.latent_scale, target.latent_scale):
        lines.append(f"latents        scale {' → '.join(scales)}: WARNING, of another autoencoder, to be learnt anew")
    cleaning = [source.caption_cleaning, target.caption_cleaning]
    if len(set(cleaning)) > 1 and not source.model.num_classes:
        lines.append(f"captions       cleaned by {cleaning[0]!r} → {cleaning[1]!r}: WARNING, they read differently")
    if source.prediction != target.prediction:
        both = f"{source.prediction!r} → {target.prediction!r}"
        lines.append(f"predicts       {both}: WARNING, to be learnt anew (config.diffusion.prediction)")
    lines.append("EMA            starts as a copy; the optimizer and the count of steps start afresh")
    return lines


def _names(paths: Iterable[str]) -> str:
    """Paths with what they begin with said once: "t_block (2), blocks_0/cross_attn (6)"."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        parts = path.split("/")
        groups.setdefault("/".join(parts[: 2 if parts[0].startswith("blocks_") else 1]), []).append(path)
    names = []
    for found in groups.values():
        common = posixpath.commonpath(found)
        names.append(common if len(found) == 1 else f"{common} ({len(found)})")
    return ", ".join(names)
