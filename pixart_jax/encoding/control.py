"""The control pictures of a source: given beside its pictures, or made of them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from pixart_jax.data.pictures import Pictures
from pixart_jax.data.pictures.controls import ControlledPictures
from pixart_jax.encoding.edges import MakeControl, open_edges
from pixart_jax.errors import InputError


def open_control(
    pictures: Pictures,
    kind: str,
    *,
    folder: str | pathlib.Path | None,
    hed: str | pathlib.Path | None,
    options: Sequence[str],
) -> tuple[Pictures, MakeControl | None]:
    """The source with its control pictures, and what `EncodedPictures` makes them by; None where there are to be none.

    Args:
      kind: one of `manifest.CONTROLS`.
      folder: see `ControlledPictures`.
      hed: HED's weights.
      options: what the user calls kind, folder and hed, for errors.

    Raises:
      InputError: options that do not go together, no such folder, or other weights.
    """
    of_kind, of_folder, of_hed = options
    if (folder is not None) != (kind == "given"):
        what = (
            f"needs the folder of the control pictures ({of_folder})"
            if kind == "given"
            else f"does not heed {of_folder}"
        )
        raise InputError(f"{of_kind}={kind} {what}")
    if kind == "none":
        if hed is not None:
            raise InputError(f"{of_hed} is for {of_kind}=hed; leave it out")
        return pictures, None
    make = open_edges("none" if kind == "given" else kind, None if hed is None else pathlib.Path(hed), option=of_hed)
    return pictures if folder is None else ControlledPictures(pictures, folder), make
