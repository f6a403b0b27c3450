"""`manifest.json`: what a directory of feature shards holds, and the checks made before work starts."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import re

import numpy as np
from array_record.python import array_record_module

from pixart_jax.commands import command
from pixart_jax.data.buckets import RESOLUTIONS, training_buckets
from pixart_jax.data.captions import CLEANING
from pixart_jax.data.npy import load_array
from pixart_jax.data.shards.ends import ends_crc32
from pixart_jax.data.shards.fields import check_ranges, checked_fields, is_count
from pixart_jax.data.shards.records import FORMAT_VERSION, TEXT_DTYPES
from pixart_jax.errors import InputError
from pixart_jax.files import open_regular, reason
from pixart_jax.files.typed_json import parse, read_bytes

MANIFEST_FILE = "manifest.json"
BUCKETS_FILE = "buckets.npy"
LATENT_KINDS = ("mean_std", "plain", "drawn")
# What control pictures are: there are none, they were given beside the pictures, or are these edges of them.
CONTROLS = ("none", "given", "canny", "hed")
# The `text_dtype` of a set without text.
NO_TEXT = "none"


def how_to_make(directory: pathlib.Path) -> str:
    """What makes the set that is missing: a quickstart's or a recipe's is known by its usual place."""
    for name, tool in (("quickstart", "make_quickstart_data"), ("recipe", "make_recipe_data")):
        if name in (directory.name, directory.parent.name):
            return f"`{command(tool)}` makes it"
    return f"`{command('extract_features')}` makes one of your pictures (docs/data.md)"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name within the directory, number of records and size in bytes.

    ends_crc32: of `ends.ends_crc32`, which tells it from another of its size; None in sets made before there was one.
    """

    file: str
    num_records: int
    num_bytes: int
    ends_crc32: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the samples of one directory have in common, and where they are.

    Attributes:
      format_version: of the records and of this file.
      latent_channels: C of the latents [h, w, C].
      latent_scale: what latents are multiplied by before training (0.18215 or 0.13025); the stored ones are not.
      latent_kind: "mean_std" (posterior mean and standard deviation), "plain" (the latents themselves) or "drawn"
        (latents that a model drew, with the noise that it drew them of).
      downsample: pixels per latent cell, along each side.
      patch_size: latent cells per token, along each side, that every bucket is a multiple of.
      autoencoder: name of the encoder of the latents, such as "linear" or "sdxl-vae".
      resolution: pixels along the side of the square that no bucket has more pixels than; 0 for none in particular.
      text_encoder: name of the encoder of the text features.
      caption_cleaning: what captions went through before it, a key of `captions.CLEANING`.
      text_dim: width of the text features; 0 for a set without text, for class-conditional training alone.
      max_text_tokens: the text encoder's token limit; no text has more. 0 for a set without text.
      text_dtype: what every text is stored as, one of `records.TEXT_DTYPES`; "none" for a set without text.
      num_classes: labels are in [0, num_classes); 0 if samples carry none.
      control: one of CONTROLS: what the samples' control pictures are.
      align: name of the network whose features the samples have, such as "dinov2-base"; "none" where they have none.
      align_dim: their width; 0 where they have none.
      num_samples: in all shards together; 0, like no shards and no histogram, in what describes a set still to be made.
      shards: in order; sample i of the set is counted through them.
      bucket_histogram: samples per bucket, keyed "{height}x{width}" in pixels.
      skipped: items of the source that are not in the set, by reason; with num_samples they add up to the source.

    Raises:
      InputError: a descriptive field is out of range; names the field and its value.
    """

    format_version: int = FORMAT_VERSION
    latent_channels: int
    latent_scale: float
    latent_kind: str
    downsample: int
    patch_size: int
    resolution: int
    autoencoder: str
    text_encoder: str
    caption_cleaning: str
    text_dim: int
    max_text_tokens: int
    text_dtype: str
    num_classes: int = 0
    control: str = "none"
    align: str = "none"
    align_dim: int = 0
    num_samples: int = 0
    shards: tuple[Shard, ...] = ()
    bucket_histogram: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_ranges(self)
        if (self.max_text_tokens == 0) != (self.text_dim == 0):
            raise InputError(
                f"max_text_tokens must be at least 1, or 0 together with text_dim for a set without text, not "
                f"{self.max_text_tokens!r} with text_dim {self.text_dim!r}"
            )
        if self.text_dtype not in (dtypes := TEXT_DTYPES if self.text_dim else (NO_TEXT,)):
            raise InputError(
                f"text_dtype must be one of {', '.join(dtypes)} with text_dim {self.text_dim}, not "
                f"{self.text_dtype!r:.80}"
            )
        if self.caption_cleaning not in CLEANING:
            raise InputError(
                f"caption_cleaning must be one of {', '.join(CLEANING)}, not {self.caption_cleaning!r:.80}"
            )
        if not (self.num_classes or self.text_dim):
            raise InputError(
                "num_classes must be above 0 in a set without text (text_dim 0): nothing would say what a picture shows"
            )
        if self.latent_kind not in LATENT_KINDS:
            raise InputError(f"latent_kind must be one of {', '.join(LATENT_KINDS)}, not {self.latent_kind!r:.80}")
        if self.control not in CONTROLS:
            raise InputError(f"control must be one of {', '.join(CONTROLS)}, not {self.control!r:.80}")
        if not self.align or (self.align == "none") != (self.align_dim == 0):
            raise InputError(
                f"align must name a network, with its width as align_dim, or be 'none' with 0, not {self.align!r:.80} "
                f"with {self.align_dim!r}"
            )
        for field in ("autoencoder", "text_encoder"):
            if not getattr(self, field):
                raise InputError(f"{field} must name the encoder, not be empty")

    @property
    def buckets(self) -> dict[tuple[int, int], int]:
        """Number of samples per bucket (height, width) in pixels, by rising height, then width."""
        sizes = ((name.split("x"), count) for name, count in self.bucket_histogram.items())
        return dict(sorted(((int(height), int(width)), count) for (height, width), count in sizes))

    def latent_grid(self, bucket: tuple[int, int]) -> tuple[int, int]:
        """Latent rows and columns of a bucket (height, width) in pixels."""
        return bucket[0] // self.downsample, bucket[1] // self.downsample

    def size_problem(self, bucket: tuple[int, int]) -> str | None:
        """What is wrong with a bucket (height, width) in pixels for the set's resolution; None for nothing."""
        if self.resolution and bucket[0] * bucket[1] > self.resolution**2:
            return f"bucket {bucket_name(bucket)} has more pixels than the square of resolution {self.resolution}"
        return None

    def aspect_ratio(self, bucket: tuple[int, int]) -> float:
        """The height/width that α's micro-condition is trained on, of a bucket (height, width) in pixels.

        The reference trains on its bucket's label, 0.48 for 704×1472 at 1024 px, so that is the answer where one of its
        tables has the bucket; elsewhere it is the quotient.
        """
        return _labels(self.resolution).get(bucket, bucket[0] / bucket[1])


@functools.cache
def _labels(resolution: int) -> dict[tuple[int, int], float]:
    if resolution not in RESOLUTIONS:
        return {}
    return {(bucket.height, bucket.width): bucket.label for bucket in training_buckets(resolution)}


def bucket_name(bucket: tuple[int, int]) -> str:
    """ "{height}x{width}" as in `Manifest.bucket_histogram`."""
    return f"{bucket[0]}x{bucket[1]}"


def write_manifest(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Writes `manifest.json` into `directory`."""
    pathlib.Path(directory, MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")


def manifest_text(manifest: Manifest) -> str:
    """What `manifest.json` says. What sets of before there was a field do not have is not said of their like."""
    content = dataclasses.asdict(manifest)
    for shard in content["shards"]:
        if shard["ends_crc32"] is None:
            del shard["ends_crc32"]
    if manifest.control == "none":
        del content["control"]
    if manifest.align == "none":
        del content["align"], content["align_dim"]
    return json.dumps(content, indent=2) + "\n"


def read_manifest(directory: str | os.PathLike, *, may_be_empty: bool = False) -> Manifest:
    """The manifest of a directory of feature shards, checked against itself but not yet against the shards.

    Args:
      may_be_empty: also take what describes samples that are on no disk: those that a run encodes as it goes.

    Raises:
      InputError: the directory or its manifest is missing, broken, of another version, inconsistent or empty.
    """
    directory = pathlib.Path(directory)
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise InputError(
            f"data directory {directory} does not exist; give a directory of feature shards ({how_to_make(directory)})"
        )
    if not path.is_file():
        found = "is empty" if not any(directory.iterdir()) else f"has no {MANIFEST_FILE}"
        raise InputError(f"data directory {directory} {found}, so it holds no feature shards; {how_to_make(directory)}")
    try:
        raw = parse(read_bytes(path, "copy it again from where the set was made"))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy it again from where the set was made") from error
    try:
        manifest = _parse(raw)
        if manifest.num_samples or not may_be_empty:
            check_totals(manifest)
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
            f"format_version is {version!r:.80}, this code reads {FORMAT_VERSION}; make the set again with this "
            "version of pixart_jax, or update pixart_jax if a newer one made it"
        )
    values = checked_fields(Manifest, raw, "field")
    shards = values["shards"]
    if not isinstance(shards, list):
        raise InputError(f"field shards must be a list, not {shards!r:.80}")
    values["shards"] = tuple(_parse_shard(shard, f"shards[{i}]") for i, shard in enumerate(shards))
    histogram = values["bucket_histogram"]
    if not isinstance(histogram, dict):
        raise InputError(f"field bucket_histogram must be an object, not {histogram!r:.80}")
    for name, count in histogram.items():
        if not re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", name) or not is_count(count):
            raise InputError(
                f'field bucket_histogram must map "{{height}}x{{width}}" to counts, not {name!r:.80}: {count!r:.80}'
            )
    skipped = values["skipped"]
    if not isinstance(skipped, dict) or not all(map(is_count, skipped.values())):
        raise InputError(f"field skipped must map reasons to counts, not {skipped!r:.80}")
    return Manifest(**values)


def _parse_shard(raw: object, what: str) -> Shard:
    shard = Shard(**checked_fields(Shard, raw, f"{what}: field"))
    try:
        check_ranges(shard)
    except InputError as error:
        raise InputError(f"{what}: field {error}") from None
    # What a folder can hold: no path, nothing that no file system takes.
    name = shard.file
    if name in ("", ".", "..") or len(name) > 255 or re.search(r"[/\0\ud800-\udfff]", name):
        raise InputError(f"{what}: field file must be a plain file name, not {name!r:.80}")
    return shard


def check_totals(manifest: Manifest) -> None:
    """Raises InputError where the shards and counts of a manifest contradict each other or its descriptive fields."""
    if not manifest.num_samples:
        raise InputError("the set holds no samples (num_samples is 0); encode at least one")
    totals = {
        "the records of shards": sum(shard.num_records for shard in manifest.shards),
        "the counts of bucket_histogram": sum(manifest.bucket_histogram.values()),
    }
    for what, total in totals.items():
        if total != manifest.num_samples:
            raise InputError(
                f"num_samples is {manifest.num_samples}, but {what} add up to {total}; encode the set again"
            )
    names = [shard.file for shard in manifest.shards]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"shards: {twice!r} is listed twice; encode the set again")
    for bucket in manifest.buckets:
        if any(n % (manifest.downsample * manifest.patch_size) for n in bucket):
            raise InputError(
                f"bucket_histogram: bucket {bucket[0]}x{bucket[1]} is no multiple of downsample x patch_size = "
                f"{manifest.downsample * manifest.patch_size} pixels; encode the set again"
            )
        if problem := manifest.size_problem(bucket):
            raise InputError(f"bucket_histogram: {problem}; encode the set again")


def check_shards(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Checks that every shard exists, has the manifest's size, ends and number of records.

    Cheap: it reads both ends of every shard and one byte per sample (`read_buckets`). A record damaged between the
    ends is found when it is read. That no key occurs in two shards is the writer's promise: nothing here relies on it.

    Raises:
      InputError: one line per bad shard, with the samples it held; or see `read_buckets`.
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
    read_buckets(directory, manifest)


def read_buckets(directory: str | os.PathLike, manifest: Manifest) -> np.ndarray:
    """The bucket of every sample, without reading the samples.

    Returns:
      unsigned integers [num_samples]: places in `list(manifest.buckets)`.

    Raises:
      InputError: the file is missing, damaged or of another set.
    """
    path = pathlib.Path(directory, BUCKETS_FILE)
    cure = f"copy it again from where {directory} was made, or encode the set again"
    try:
        with open_regular(path) as file:
            places = load_array(file, os.fstat(file.fileno()).st_size)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} (the bucket of every sample) cannot be read: {error}; {cure}") from error
    counts = list(manifest.buckets.values())
    if not (isinstance(places, np.ndarray) and places.dtype in (np.uint8, np.uint16) and places.ndim == 1):
        raise InputError(f"{path} must be a one-dimensional array of uint8 or uint16; {cure}")
    if np.bincount(places, minlength=len(counts)).tolist() != counts:
        raise InputError(f"{path} counts other samples per bucket than {MANIFEST_FILE}: they are of two sets; {cure}")
    return places


def buckets_array(manifest: Manifest, sizes: np.ndarray) -> np.ndarray:
    """What `read_buckets` gives for samples of these buckets, int[num_samples, 2] (height, width) in pixels."""
    # One number per size, because pairs take a hundred times as long.
    known = np.array([height << 32 | width for height, width in manifest.buckets], np.int64)
    places = np.searchsorted(known, sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1])
    return places.astype(np.uint8 if len(known) <= 256 else np.uint16)


def _shard_problem(path: pathlib.Path, shard: Shard) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != shard.num_bytes:
        verb = "is truncated: it" if size < shard.num_bytes else "is not the file the manifest describes: it"
        return f"{verb} has {size} bytes, the manifest says {shard.num_bytes}"
    if shard.ends_crc32 is not None:
        try:
            found = ends_crc32(path)
        except OSError as error:
            return f"cannot be read: {reason(error)}"
        if found != shard.ends_crc32:
            return "is damaged, or another shard's content is under its name: it begins or ends otherwise than written"
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


# Where a run keeps the encoders of its (first) data set, below its workdir.
ENCODERS = "encoders"
