"""A model on disk in our own format: a directory with `params/`, written by Orbax, and `model.json`, which says what
model they belong to and how it is to be used."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from pixart_jax.conversion.stored_arrays import StoredArrays, check_shapes, restore_tree, write_params
from pixart_jax.conversion.stored_fields import CHOICES, check_stored_fields
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import Fields, parse, read_bytes
from pixart_jax.models.params import parameter_shapes
from pixart_jax.models.path_drop import Stretch
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.predictions import Target
from pixart_jax.tokens import DOWNSAMPLE

FORMAT_VERSION = 1
# The fields of PixArt that say what it computes; the others say how, and are not stored.
ARCHITECTURE = (
    "hidden_size", "depth", "num_heads", "mlp_ratio", "patch_size", "latent_channels", "text_dim", "max_text_tokens",
    "num_classes", "micro_condition", "kv_compress", "kv_sampling", "qk_norm", "adaln", "learn_sigma",
)  # fmt: skip
# Fields that are only written where they say something else.
_USUAL: dict[str, Any] = {"num_steps": 20, "guidance": "cfg", "prediction": "eps", "flow_shift": 1.0, "path_drop": None}


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """What `model.json` says.

    Attributes:
      model: its architecture; remat, attention, dtype and scan_unroll are left at their defaults.
      position_base, position_scale: see `tokens.grid_positions`; the base is tokens along the resolution's square.
      latent_scale: what the autoencoder's latents are multiplied by.
      null_text: "stored": the null caption is among the parameters. "missing": its place there is filled with NaN,
        because the weights come from a format that does not keep it; guidance then needs the text encoder's features
        of the empty caption. "none": the model has classes instead of captions.
      caption_cleaning: what captions go through before they are tokenised: "alpha" (`captions.clean_alpha`), "sigma"
        (`captions.clean_sigma`), or "none": the text encoder does its own, or there are no captions.
      sampler: one of `samplers.SAMPLERS`, which the authors of the weights draw with by default.
      provenance: where the weights come from, for people.
      num_steps, guidance: of that sampler, likewise; the guidance one of `samplers.program.GUIDANCES`.
      prediction, flow_shift: see `samplers.predictions.Target`.
      path_drop: the first and the last of the blocks that it was trained to do without, see `models.path_drop`; None:
        it was not.
    """

    model: PixArt
    position_base: int
    position_scale: float
    latent_scale: float
    null_text: str
    caption_cleaning: str
    sampler: str
    provenance: dict[str, str]
    num_steps: int = 20
    guidance: str = "cfg"
    prediction: str = "eps"
    flow_shift: float = 1.0
    path_drop: Stretch | None = None

    @property
    def target(self) -> Target:
        """What it predicts."""
        return Target(self.prediction, self.flow_shift, self.model.learn_sigma)

    @property
    def resolution(self) -> int:
        """Pixels along one side of the resolution's square."""
        return self.position_base * self.model.patch_size * DOWNSAMPLE

    def to_json(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields = {name: value for name, value in fields.items() if name not in _USUAL or value != _USUAL[name]}
        fields["model"] = {name: getattr(self.model, name) for name in ARCHITECTURE}
        return json.dumps({"format_version": FORMAT_VERSION} | fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> StoredModel:
        """Raises InputError, beginning with `where`, unless the text is exactly what `to_json` writes."""
        try:
            fields = parse(text)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}; convert the weights again") from error
        if not isinstance(fields, dict) or fields.pop("format_version", None) != FORMAT_VERSION:
            raise InputError(f"{where} is not of format_version {FORMAT_VERSION}, the only one this version reads")
        fields = _USUAL | fields
        given = fields.get("model")
        # Models of before there were others have no such field.
        model: dict[str, Any] = {"kv_sampling": "conv"} | given if isinstance(given, dict) else {}
        wanted = {field.name for field in dataclasses.fields(cls)} | {f"model.{name}" for name in ARCHITECTURE}
        if odd := sorted(wanted ^ (fields.keys() | {f"model.{name}" for name in model})):
            raise InputError(f"{where}: missing or unknown fields: {', '.join(odd)}; convert the weights again")
        fields["model"] = model
        check_stored_fields(Fields(pathlib.Path(where), fields, "convert the weights again"))
        fields["model"] = PixArt(**model | {"kv_compress": tuple(model["kv_compress"])})
        if fields["path_drop"] is not None:
            fields["path_drop"] = tuple(fields["path_drop"])
        stored = cls(**fields)
        for name, choices in CHOICES.items():
            if getattr(stored, name) not in choices:
                raise InputError(f"{where}: {name} = {getattr(stored, name)!r} must be one of {', '.join(choices)}")
        return stored


def write_model(directory: pathlib.Path, stored: StoredModel, params: Mapping[str, np.ndarray]) -> None:
    """Writes a new directory.

    Args:
      params: '/'-joined path to f32 array of each parameter.

    Raises:
      OSError: as `write_params`.
    """
    directory.mkdir()
    write_params(directory / "params", params)
    (directory / "model.json").write_text(stored.to_json(), encoding="utf-8")


def read_stored_model(directory: str | pathlib.Path) -> StoredModel:
    """What `model.json` of a directory says.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = pathlib.Path(directory) / "model.json"
    data = read_bytes(path, f"{directory} is no model that tools.convert wrote", max_bytes=1 << 20)
    return StoredModel.from_json(data.decode("utf-8", "replace"), str(path))


class StoredParams(StoredArrays):
    """Those of a PixArt: `params/` of a directory of ours, or an item of a training run's checkpoint; float32."""

    def __init__(self, path: str | pathlib.Path, model: PixArt, checksums: Mapping[str, int | None] | None = None):
        super().__init__(path, parameter_shapes(model), checksums)


def restore_params(directory: str | pathlib.Path, abstract: Any):
    """The parameters of a directory as jax arrays.

    Args:
      abstract: tree of jax.ShapeDtypeStruct with shardings: `models.params.abstract_params`.

    Returns:
      A tree like `abstract`.

    Raises:
      InputError: the parameters are not those that `abstract` describes.
    """
    path = pathlib.Path(directory).absolute() / "params"
    flat = flax.traverse_util.flatten_dict(abstract, sep="/")
    check_shapes(path, {name: leaf.shape for name, leaf in flat.items()})
    return restore_tree(path, abstract)
