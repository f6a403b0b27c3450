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
      folder: see `ControlledPictures`; None where the source names them.
      hed: HED's weights.
      options: what the user calls kind, folder and hed, for errors.

    Raises:
      InputError: options that do not go together, no such folder, or other weights.
    """
    of_kind, of_folder, of_hed = options
    if folder is not None and kind != "given":
        raise InputError(f"{of_kind}={kind} does not heed {of_folder}")
    if kind == "none":
        if hed is not None:
            raise InputError(f"{of_hed} is for {of_kind}=hed; leave it out")
        return pictures, None
    make = open_edges("none" if kind == "given" else kind, None if hed is None else pathlib.Path(hed), option=of_hed)
    if kind != "given":
        return pictures, make
    try:
        return ControlledPictures(pictures, folder), make
    except InputError as error:
        raise InputError(f"{of_kind}=given: {error} ({of_folder})") from error
