"""Where pictures come from: folders, lists, WebDataset tars and TensorFlow datasets behind one interface."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping

from pixart_jax.data.pictures.base import BadItem, Picture, Pictures, Words
from pixart_jax.data.pictures.folders import FolderPictures
from pixart_jax.data.pictures.lists import ListPictures
from pixart_jax.data.pictures.tars import TarPictures
from pixart_jax.data.pictures.tfds_pictures import TfdsPictures
from pixart_jax.errors import InputError
from pixart_jax.files import local_path

__all__ = ["BadItem", "Picture", "Pictures", "Words", "open_pictures"]


def open_pictures(
    spec: str,
    *,
    caption_weights: Mapping[str, float] = types.MappingProxyType({}),
    data_dir: str | None = None,
    caption: str = "",
) -> Pictures:
    """Opens a source of pictures.

    | spec                              | pictures, captions and labels                                              |
    |-----------------------------------|----------------------------------------------------------------------------|
    | a folder                          | files at any depth, a caption in the .txt beside each: `FolderPictures`     |
    | classes:FOLDER                    | a folder per class, as ImageNet's                                          |
    | LIST.json, LIST.jsonl             | the reference's records and a little more: `ListPictures`                  |
    | a .tar, a glob or {00000..00099}  | WebDataset: `TarPictures`                                                  |
    | tfds:NAME[/CONFIG][:SPLIT]        | a prepared TensorFlow dataset: `TfdsPictures`                              |

    Args:
      spec: see above.
      caption_weights: sampling weight by name of a record's caption field, for lists and tars.
      caption: for a folder, of the pictures that have no text file beside them.
      data_dir: for lists, the folder that their paths are relative to; for tfds, where its datasets are kept.

    Raises:
      InputError: the spec is none of these, its files are missing or not what they should be, or an argument is given
        that this kind of source does not take.
    """
    # A URL would be looked for among the files here.
    kind = "classes:" if spec.startswith("classes:") else ""
    if spec.removeprefix(kind).startswith("~"):
        spec = kind + str(local_path(spec.removeprefix(kind), "the source", any_bytes=True))
    elif spec.removeprefix(kind).strip() and not spec.startswith("tfds:"):
        local_path(spec.removeprefix(kind), "the source", any_bytes=True)
    is_tfds, has_classes = spec.startswith("tfds:"), spec.startswith("classes:")
    is_folder = not (is_tfds or has_classes) and os.path.isdir(spec)
    is_list = not (is_tfds or has_classes or is_folder) and spec.lower().endswith((".json", ".jsonl"))
    is_tar = not (is_tfds or has_classes or is_folder) and spec.lower().endswith((".tar", ".tar.gz", ".tgz"))
    if caption_weights and not (is_list or is_tar):
        raise InputError(f"{spec}: caption_weights are for lists and tars; leave them out")
    if data_dir is not None and not (is_list or is_tfds):
        raise InputError(f"{spec}: data_dir is for lists and tfds; leave it out")
    if caption and not is_folder:
        raise InputError(f"{spec}: one caption for all is for a folder of pictures; leave it out")
    if is_tfds:
        return TfdsPictures(spec.removeprefix("tfds:"), data_dir=data_dir)
    if has_classes:
        return FolderPictures(spec.removeprefix("classes:"), with_classes=True)
    if is_folder:
        return FolderPictures(spec, caption=caption)
    if is_list:
        return ListPictures(spec, data_dir=data_dir, caption_weights=caption_weights)
    if is_tar:
        return TarPictures(spec, caption_weights=caption_weights)
    raise InputError(
        f"{spec!r} is no source of pictures: name a folder, classes:FOLDER, LIST.json, LIST.jsonl, a .tar (or a glob "
        "or a range {00000..00099} of them), or tfds:NAME[/CONFIG][:SPLIT]"
    )
