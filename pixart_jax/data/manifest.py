"""`manifest.json`: what a directory of feature shards holds, and the checks made before work starts."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import re

from array_record.python import array_record_module

from pixart_jax.data.records import FORMAT_VERSION
from pixart_jax.errors import InputError

MANIFEST_FILE = "manifest.json"
LATENT_KINDS = ("mean_std", "plain")

_MAKE_DATA = "`python -m tools.make_quickstart_data` makes a small set to start with"
_JSON_TYPES = {"int": (int,), "float": (int, float), "str": (str,)}


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name within the directory, number of records and size in bytes."""

    file: str
    num_records: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the samples of one directory have in common, and where they are.

    Attributes:
      format_version: of the records and of this file.
      latent_channels: C of the latents [h, w, C].
      latent_scale: what latents are multiplied by before training (0.18215 or 0.13025); the stored ones are not.
      latent_kind: "mean_std" (posterior mean and standard deviation) or "plain" (the latents themselves).
      downsample: pixels per latent cell, along each side.
      patch_size: latent cells per token, along each side, that every bucket is a multiple of.
      autoencoder: name of the encoder of the latents, such as "linear" or "sdxl-vae".
      text_encoder: name of the encoder of the text features.
      text_dim: their width.
      max_text_tokens: the text encoder's token limit; no sample has more.
      num_classes: labels are in [0, num_classes); 0 if samples carry none.
      num_samples: in all shards together.
      shards: in order; sample i of the set is counted through them.
      bucket_histogram: samples per bucket, keyed "{height}x{width}" in pixels.

    Raises:
      InputError: a descriptive field is out of range; names the field and its value.
    """

    format_version: int
    latent_channels: int
    latent_scale: float
    latent_kind: str
    downsample: int
    patch_size: int
    autoencoder: str
    text_encoder: str
    text_dim: int
    max_text_tokens: int
    num_classes: int
    num_samples: int
    shards: tuple[Shard, ...]
    bucket_histogram: dict[str, int]

    def __post_init__(self):
        for field in ("latent_channels", "downsample", "patch_size", "text_dim", "max_text_tokens"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, not {getattr(self, field)!r}")
        if self.num_classes < 0:
            raise InputError(f"num_classes must be 0 (no labels) or more, not {self.num_classes!r}")
        if not (math.isfinite(self.latent_scale) and self.latent_scale > 0):
            raise InputError(f"latent_scale must be a positive number, not {self.latent_scale!r}")
        if self.latent_kind not in LATENT_KINDS:
            raise InputError(f"latent_kind must be one of {', '.join(LATENT_KINDS)}, not {self.latent_kind!r}")
        for field in ("autoencoder", "text_encoder"):
            if not getattr(self, field):
                raise InputError(f"{field} must name the encoder, not be empty")

    @property
    def buckets(self) -> dict[tuple[int, int], int]:
        """Number of samples per bucket (height, width) in pixels."""
        return {tuple(int(n) for n in name.split("x")): count for name, count in self.bucket_histogram.items()}

    def latent_grid(self, bucket: tuple[int, int]) -> tuple[int, int]:
        """Latent rows and columns of a bucket (height, width) in pixels."""
        return bucket[0] // self.downsample, bucket[1] // self.downsample


def write_manifest(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Writes `manifest.json` into `directory`."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2)
    pathlib.Path(directory, MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """The manifest of a directory of feature shards, checked against itself but not yet against the shards.

    Raises:
      InputError: the directory or its manifest is missing, broken, of another version, inconsistent or empty.
    """
    directory = pathlib.Path(directory)
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise InputError(
            f"data directory {directory} does not exist; give a directory of feature shards ({_MAKE_DATA})"
        )
    if not path.is_file():
        found = "is empty" if not any(directory.iterdir()) else f"has no {MANIFEST_FILE}"
        raise InputError(f"data directory {directory} {found}, so it holds no feature shards; {_MAKE_DATA}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy it again from where the set was made") from error
    try:
        manifest = _parse(raw)
        _check_totals(manifest)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return manifest


def _parse(raw: object) -> Manifest:
    if not isinstance(raw, dict):
        raise InputError(f"expected a JSON object with the manifest's fields, found {type(raw).__name__}")
    # The version comes first: the fields of another version are not this one's to judge.
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"format_version is {version!r}, this code reads {FORMAT_VERSION}; "
            "update pixart_jax, or encode the set again with this version"
        )
    values = _checked_fields(Manifest, raw, "field")
    shards = values["shards"]
    if not isinstance(shards, list):
        raise InputError(f"field shards must be a list, not {shards!r}")
    values["shards"] = tuple(
        Shard(**_checked_fields(Shard, shard, f"shards[{i}]: field")) for i, shard in enumerate(shards)
    )
    histogram = values["bucket_histogram"]
    if not isinstance(histogram, dict):
        raise InputError(f"field bucket_histogram must be an object, not {histogram!r}")
    for name, count in histogram.items():
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", name) or not _has_type(count, "int") or count < 1:
            raise InputError(
                f'field bucket_histogram must map "{{height}}x{{width}}" to counts, not {name!r}: {count!r}'
            )
    return Manifest(**values)


def _checked_fields(cls: type, raw: object, what: str) -> dict:
    if not isinstance(raw, dict):
        raise InputError(f"{what.removesuffix(': field')} must be an object, not {raw!r}")
    names = {field.name: field.type for field in dataclasses.fields(cls)}
    if missing := sorted(names.keys() - raw.keys()):
        raise InputError(
            f"{what} {missing[0]} is missing; encode the set again, or restore the manifest it was made with"
        )
    if unknown := sorted(raw.keys() - names.keys()):
        raise InputError(f"{what} {unknown[0]} is unknown; remove it, or update pixart_jax if a newer version wrote it")
    for name, type_name in names.items():
        if type_name in _JSON_TYPES and not _has_type(raw[name], type_name):
            raise InputError(f"{what} {name} must be of type {type_name}, not {raw[name]!r}")
    return dict(raw)


def _has_type(value: object, type_name: str) -> bool:
    return isinstance(value, _JSON_TYPES[type_name]) and not isinstance(value, bool)


def _check_totals(manifest: Manifest) -> None:
    if not manifest.num_samples:
        raise InputError(f"the set holds no samples (num_samples is 0); encode at least one, or {_MAKE_DATA}")
    totals = {
        "the records of shards": sum(shard.num_records for shard in manifest.shards),
        "the counts of bucket_histogram": sum(manifest.bucket_histogram.values()),
    }
    for what, total in totals.items():
        if total != manifest.num_samples:
            raise InputError(
                f"num_samples is {manifest.num_samples}, but {what} add up to {total}; encode the set again"
            )
    for shard in manifest.shards:
        if shard.file != os.path.basename(shard.file) or shard.num_records < 1 or shard.num_bytes < 1:
            raise InputError(f"shards: {shard} must be a plain file name, with at least one record and one byte")
    for bucket in manifest.buckets:
        if any(n % (manifest.downsample * manifest.patch_size) for n in bucket):
            raise InputError(
                f"bucket_histogram: bucket {bucket[0]}x{bucket[1]} is no multiple of downsample x patch_size = "
                f"{manifest.downsample * manifest.patch_size} pixels; encode the set again"
            )


def check_shards(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Checks that every shard exists, has the manifest's size and opens with the manifest's number of records.

    Cheap: it reads the files' footers only. A record damaged inside a file of the right size is found when it is read.

    Raises:
      InputError: one line per bad shard, with the samples it held.
    """
    directory = pathlib.Path(directory)
    firsts = [0]
    for shard in manifest.shards:
        firsts.append(firsts[-1] + shard.num_records)
    # Threads, because on network storage opening a file is all waiting.
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
        problems = list(pool.map(lambda shard: _shard_problem(directory / shard.file, shard), manifest.shards))
    lines = [
        f"{directory / shard.file} {problem}; it holds samples {first} to {first + shard.num_records - 1} of the set "
        f"(records 0 to {shard.num_records - 1} of the file)"
        for shard, first, problem in zip(manifest.shards, firsts, problems, strict=False)
        if problem
    ]
    if lines:
        more = [f"... and {len(lines) - 10} more shards"] if len(lines) > 10 else []
        cure = f"Copy the bad files again from where {directory} was made, or encode the set again."
        raise InputError("\n".join([*lines[:10], *more, cure]))


def _shard_problem(path: pathlib.Path, shard: Shard) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != shard.num_bytes:
        verb = "is truncated: it" if size < shard.num_bytes else "is not the file the manifest describes: it"
        return f"{verb} has {size} bytes, the manifest says {shard.num_bytes}"
    # A damaged file may also open without complaint, as one of no records.
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        num_records = reader.num_records()
        reader.close()
    except RuntimeError as error:
        return f"is damaged: {error}"
    if num_records != shard.num_records:
        return f"is damaged: it opens with {num_records} records, the manifest says {shard.num_records}"
    return None
