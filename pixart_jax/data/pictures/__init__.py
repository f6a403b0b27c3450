"""Where pictures come from: folders, lists, tables, tars, Parquet and public data sets behind one interface."""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Mapping

from pixart_jax.data.pictures.base import BadItem, Picture, Pictures, Words
from pixart_jax.data.pictures.controls import MARK
from pixart_jax.data.pictures.csv_records import CsvRecords
from pixart_jax.data.pictures.fields import PATH_FIELDS, Fields
from pixart_jax.data.pictures.folders import FolderPictures
from pixart_jax.data.pictures.hub import PREFIX, download
from pixart_jax.data.pictures.json_records import JsonRecords
from pixart_jax.data.pictures.layouts import metadata_of, of_one_split, parquet_below
from pixart_jax.data.pictures.lists import ListPictures
from pixart_jax.data.pictures.parquet import ParquetPictures, holds_pictures
from pixart_jax.data.pictures.parquet_rows import ParquetRecords, ParquetRows
from pixart_jax.data.pictures.patterns import expand
from pixart_jax.data.pictures.tars import TarPictures
from pixart_jax.data.pictures.tfds_pictures import TfdsPictures
from pixart_jax.errors import InputError
from pixart_jax.files import local_path

__all__ = ["BadItem", "Picture", "Pictures", "Words", "is_spelled_out", "open_pictures"]

_LISTS = (".json", ".jsonl", ".csv", ".tsv")
_TARS = (".tar", ".tar.gz", ".tgz")
_PREFIXES = ("classes:", "tfds:", PREFIX)


def is_spelled_out(spec: str) -> bool:
    """Whether a name says by its beginning or its end that it is one of `open_pictures`, and no plain folder."""
    return spec.startswith(_PREFIXES) or spec.lower().endswith((*_LISTS, *_TARS, ".parquet"))


def open_pictures(
    spec: str,
    *,
    caption_weights: Mapping[str, float] = types.MappingProxyType({}),
    data_dir: str | None = None,
    caption: str = "",
    caption_column: str = "",
    image_column: str = "",
) -> Pictures:
    """Opens a source of pictures.

    | spec                                   | pictures, captions and labels                                         |
    |----------------------------------------|-----------------------------------------------------------------------|
    | a folder                               | files at any depth, a caption in the .txt beside each: `FolderPictures` |
    | one with metadata.csv, .jsonl, .parquet | Hugging Face's imagefolder: that list                                 |
    | one of Parquet files                   | all of them, see below                                                |
    | classes:FOLDER                         | a folder per class, as ImageNet's                                     |
    | LIST.json, .jsonl, .csv, .tsv          | records with paths and captions: `ListPictures`                       |
    | .parquet, a glob or {00000..00099}     | with pictures inside: `ParquetPictures`; with paths: a list           |
    | .tar, a glob or {00000..00099}         | WebDataset: `TarPictures`                                             |
    | tfds:NAME[/CONFIG][:SPLIT]             | a prepared TensorFlow dataset: `TfdsPictures`                         |
    | hf:OWNER/NAME[@REVISION][/PATH][:SPLIT] | a data set of the hub, downloaded: `hub.download`                     |

    Args:
      spec: see above.
      caption_weights: sampling weight by name of a record's caption field, for lists, Parquet and tars.
      caption: for a plain folder, of the pictures that have no text file beside them.
      data_dir: for lists, the folder that their paths are relative to; for tfds, where its datasets are kept.
      caption_column: for lists, Parquet and tars, the field or fields ("a,b") of captions in place of the usual ones.
      image_column: for lists and Parquet, the field of the picture or its path.

    Raises:
      InputError: the spec is none of these, its files are missing or not what they should be, or an argument is given
        that this kind of source does not take.
    """
    fields = Fields.of(caption_weights, caption_column, image_column)
    kind, spec, files = _found(spec)
    is_list = kind in ("list", "imagefolder", "parquet")
    given = {"caption_weights": caption_weights, "caption_column": caption_column, "image_column": image_column}
    for name, value in given.items():
        if value and not (is_list or (kind == "tars" and name != "image_column")):
            raise InputError(f"{spec}: {name} is for lists, tables, Parquet and tars; leave it out")
    if data_dir is not None and not (is_list or kind == "tfds"):
        raise InputError(f"{spec}: data_dir is for lists and tfds; leave it out")
    if caption and kind != "folder":
        raise InputError(f"{spec}: one caption for all is for a folder of pictures without a list; leave it out")
    match kind:
        case "tfds":
            return TfdsPictures(spec.removeprefix("tfds:"), data_dir=data_dir)
        case "classes":
            return FolderPictures(spec.removeprefix("classes:"), with_classes=True)
        case "folder":
            return FolderPictures(spec, caption=caption)
        case "tars":
            return TarPictures(spec, fields=fields, tars=files)
        case "list" | "imagefolder" if not files[0].lower().endswith(".parquet"):
            folder = spec if kind == "imagefolder" else None
            return ListPictures(files[0], data_dir=data_dir, fields=fields, records=_reader(files[0]), folder=folder)
        case _:
            return _of_parquet(spec, files, data_dir, fields, folder=spec if kind == "imagefolder" else None)


def _found(spec: str) -> tuple[str, str, list[str]]:
    """(kind of source, its name, its files where they are known) of a `spec`."""
    if spec.startswith(PREFIX):
        there = download(spec)
        if there.kind != "folder":
            return there.kind, spec, there.files
        spec = str(there.root)
    if spec.startswith("tfds:"):
        return "tfds", spec, []
    kind = "classes:" if spec.startswith("classes:") else ""
    path = spec.removeprefix(kind)
    if path.strip() or kind:
        # A URL would be looked for among the files here.
        home = local_path(path, "the source", any_bytes=True)
        path = str(home) if path.startswith("~") else path
    if kind:
        return "classes", kind + path, []
    if os.path.isdir(path):
        if metadata := metadata_of(path):
            return "imagefolder", path, [metadata]
        if files := parquet_below(path):
            return "parquet", path, of_one_split(files, path)
        return "folder", path, []
    lower = path.lower()
    if lower.endswith(_LISTS):
        return "list", path, [path]
    if lower.endswith(_TARS):
        return "tars", path, []
    if lower.endswith(".parquet"):
        return "parquet", path, list(expand(path, ".parquet"))
    raise InputError(
        f"{spec!r} is no source of pictures: name a folder, classes:FOLDER, a list (.json, .jsonl, .csv, .tsv), a "
        ".parquet or .tar (or a glob or a range {00000..00099} of them), tfds:NAME[/CONFIG][:SPLIT] or hf:OWNER/NAME"
    )


def _reader(path: str) -> type[CsvRecords] | type[JsonRecords]:
    return CsvRecords if path.lower().endswith((".csv", ".tsv")) else JsonRecords


def _of_parquet(spec: str, files: list[str], data_dir: str | None, fields: Fields, folder: str | None) -> Pictures:
    """Of files that hold pictures, or of one that holds paths."""
    root = spec if os.path.isdir(spec) else os.path.commonpath([os.path.dirname(file) for file in files])
    rows = ParquetRows(files, root)
    if holds_pictures(rows):
        if data_dir is not None:
            raise InputError(f"{spec}: data_dir is for lists, and this holds the pictures; leave it out")
        return ParquetPictures(rows, fields=fields)
    if len(files) > 1:
        raise InputError(f"{spec}: holds no pictures, and of lists with their paths one at a time is read; name one")
    light = [name for name in (fields.picture, *PATH_FIELDS, "label", MARK) if name]
    records = functools.partial(ParquetRecords, light=light)
    return ListPictures(files[0], data_dir=data_dir, fields=fields, records=records, folder=folder)
