"""What is to be published: which files, and what they are to those who open them."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping

from pixart_jax.commands import command
from pixart_jax.conversion.formats.lora_reading import read_lora
from pixart_jax.conversion.names.lora import CONFIG_FILE, WEIGHT_FILES
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import StoredModel, read_stored_model
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_fields

CARD = "README.md"
# Of the model card.
IMAGES = "images"
# What a model of ours consists of. In its folder tools.sample puts what it draws, and people what they like.
_PARTS = ("model.json", "params", "controlnet", "text_encoder", "vae", "encoders", IMAGES)
_FOR_ALL = re.compile(r"(licen[cs]es?|copying|notice)([-_.].*)?", re.IGNORECASE)
_CURE = "convert the weights again"
_KINDS = (
    "a folder that tools.convert wrote, a pipeline or transformer of diffusers, an adapter, a .pth of PixArt, or the "
    "workdir of a run"
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What something published is.

    Attributes:
      title: in words.
      library: what opens it, as hubs call it.
      tags: what it is found by.
    """

    title: str
    library: str
    tags: tuple[str, ...]


MODEL = Kind("a PixArt in the format of pixart_jax", "pixart_jax", ("jax", "flax", "orbax"))
PIPELINE = Kind("a pipeline of diffusers", "diffusers", ("diffusers", "safetensors"))
TRANSFORMER = Kind("a transformer of diffusers", "diffusers", ("diffusers", "safetensors"))
LORA = Kind("a LoRA", "peft", ("lora", "peft"))
CONTROLNET = Kind("a ControlNet", "diffusers", ("controlnet", "safetensors"))
CHECKPOINT = Kind("a checkpoint of PixArt's own code", "pytorch", ("pytorch",))


@dataclasses.dataclass(frozen=True)
class Contents:
    """Files to be published.

    Attributes:
      kind: what they are.
      files: each by its path in the repository; the card is not among them.
      class_name: of diffusers, which opens them; "" where it has none.
      stored: what a model of ours says of itself.
      left_out: what else lies there, and is no part of it: files and folders, by name.
    """

    kind: Kind
    files: Mapping[str, pathlib.Path]
    class_name: str = ""
    stored: StoredModel | None = None
    left_out: tuple[str, ...] = ()


def look(source: pathlib.Path) -> Contents:
    """What there is to publish in a folder, or in a file.

    Raises:
      InputError: it is nothing that can be published, or it is damaged.
    """
    if source.is_file():
        files = {source.name: source}
        if source.suffix == ".pth":
            open_source(source)
            return Contents(CHECKPOINT, files)
        read_lora(source)
        return Contents(LORA, files)
    if not source.is_dir():
        raise InputError(f"{source} does not exist; what can be published is {_KINDS}")
    files = {
        path.relative_to(source).as_posix(): path
        for path in sorted(source.rglob("*"))
        # Not what git, a hub's client and file systems leave there; arrays have files that begin with a dot.
        if path.is_file() and not path.relative_to(source).parts[0].startswith(".") and path.name != ".DS_Store"
    }
    for path in files.values():
        if path.suffix == ".incomplete":
            raise InputError(f"{path}: a download that is not whole; {_CURE}, or download it again")
    files.pop(CARD, None)
    if "model.json" in files:
        parts = {name: path for name, path in files.items() if _is_part(name.split("/")[0])}
        others = dict.fromkeys(name.split("/")[0] for name in files.keys() - parts.keys())
        return Contents(MODEL, parts, stored=read_stored_model(source), left_out=tuple(sorted(others)))
    if "model_index.json" in files:
        return Contents(PIPELINE, files, class_name=_class_of(files["model_index.json"]))
    if CONFIG_FILE in files or any(name in files for name in WEIGHT_FILES):
        read_lora(source)
        return Contents(LORA, files)
    if "config.json" in files and (name := _class_of(files["config.json"])):
        return Contents(CONTROLNET if "ControlNet" in name else TRANSFORMER, files, class_name=name)
    if (source / "checkpoints").is_dir():
        raise InputError(f"{source} is a run: it is published by {command('publish')} {source} USER/NAME")
    raise InputError(f"{source} is nothing that can be published: that is {_KINDS}")


def _is_part(name: str) -> bool:
    return name in _PARTS or _FOR_ALL.fullmatch(name) is not None


def _class_of(path: pathlib.Path) -> str:
    return read_fields(path, _CURE).text("_class_name", "")
