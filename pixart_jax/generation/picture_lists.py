"""Many prompts to a folder of pictures, each with a noise of its own, in groups that are drawn whole.

A group is always drawn in the same batches, whatever of it is there already and whoever draws it: so a killed list that
goes on, or that several processes share, has the same pictures to the last bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from pixart_jax.checkpoints.checksums import device_checksum
from pixart_jax.encoding.told import fingerprint
from pixart_jax.errors import InputError
from pixart_jax.figures.images import save_png
from pixart_jax.files import check_writable, open_regular, write_atomically
from pixart_jax.files.locks import hold_share
from pixart_jax.files.typed_json import read_fields
from pixart_jax.generation.controlled import ControlGiven
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import NOISE, Progress, Request
from pixart_jax.generation.starts import check_start
from pixart_jax.rng import check_seed

# In the folder of the pictures: what they are drawn with, and the prompt of each.
RECIPE, CAPTIONS = "recipe.json", "captions.json"
# Pictures drawn between two times that files are written: as much is lost when a list is killed, and as often text
# encoder, model and autoencoder take turns on the devices.
GROUP = 256
# What ends every PNG: length 0, the name, and their checksum.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One picture of a list.

    Attributes:
      name: of its file, a path below the folder that ends in .png.
      prompt: a caption as a person writes it.
      seed: up to 2⁶⁴ - 1; the picture starts from its first noise.
    """

    name: str
    prompt: str
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class PictureList:
    """A list of pictures and the folder that holds what is drawn of them.

    Attributes:
      pipeline: draws them.
      wanted: all of them, whoever draws which.
      folder: theirs alone; other files in it are left alone.
      request: the settings of every picture; its prompts and seed are not heeded.
      recipe: what the folder is of, as `recipe.json` says it.
      per_group: pictures in a group.
      control: what they follow, picture by picture, or None.
    """

    pipeline: TextToImage
    wanted: tuple[Wanted, ...]
    folder: pathlib.Path
    request: Request
    recipe: Mapping[str, Any]
    per_group: int
    control: ControlGiven | None = None

    @classmethod
    def open(
        cls,
        pipeline: TextToImage,
        wanted: Sequence[Wanted],
        folder: pathlib.Path,
        request: Request,
        *,
        per_group: int = GROUP,
        control: ControlGiven | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> PictureList:
        """Finds out what is wrong before anything is drawn or written, and reads the weights once for their checksum.

        Args:
          about: what else the recipe is to say, for people.

        Raises:
          InputError: no pictures; a name that is none below the folder, or twice there; a prompt or a seed that is
            none; a setting that is out of range, or concerns single pictures (noise, start, several negative prompts).
        """
        _check_wanted(wanted)
        if request.num_images != 1 or request.noise is not None or request.start is not NOISE:
            raise InputError("a list of pictures has one of each prompt, from pure noise of its seed")
        if not isinstance(request.negative_prompt, str | None):
            raise InputError("a list of pictures has one negative prompt for all")
        check_start(pipeline, request, 1.0)
        wanted = tuple(wanted)
        recipe = recipe_of(pipeline, wanted, request) | dict(about or {})
        if control:
            recipe |= control.about_all()
        return cls(pipeline, wanted, folder, request, recipe, max(1, per_group), control)

    def at_guidance(self, scale: float | None, folder: pathlib.Path) -> PictureList:
        """The same list, with the same noise, of another guidance scale, None the pipeline's, in another folder."""
        request = dataclasses.replace(self.request, guidance_scale=scale)
        recipe = {**self.recipe, **_manner(self.pipeline, request)}
        return dataclasses.replace(self, folder=folder, request=request, recipe=recipe)

    @property
    def num_groups(self) -> int:
        return -(-len(self.wanted) // self.per_group)

    def group(self, number: int) -> tuple[Wanted, ...]:
        return self.wanted[number * self.per_group : (number + 1) * self.per_group]

    def begin(self) -> None:
        """Says in the folder what it is of.

        Raises:
          InputError: it is of something else, or holds a file of the name of a picture that this list did not draw.
        """
        path = self.folder / RECIPE
        check_writable(self.folder, "the folder of pictures")
        if path.exists():
            begun = read_fields(path, f"remove {self.folder}, or name another folder")
            differing = sorted(key for key in {*begun, *self.recipe} if begun.get(key) != self.recipe.get(key))
            if differing:
                rows = [f"{key}: {begun.get(key)!r} there, {self.recipe.get(key)!r} now" for key in differing]
                raise InputError(
                    f"{self.folder} holds pictures drawn otherwise; name another folder, or remove it; they differ "
                    "in\n  " + "\n  ".join(rows)
                )
        for one in self.wanted:
            place = self.folder / one.name
            if (place.exists() or place.is_symlink()) and not (path.exists() and self._may_replace(one)):
                raise InputError(f"{place} is there, and was not drawn for this list; move it, or name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        captions = {one.name: one.prompt for one in self.wanted}
        _write_json(self.folder / CAPTIONS, captions)
        _write_json(path, self.recipe)

    def missing(self, number: int) -> list[Wanted]:
        """Those of a group that are not there, or not whole."""
        return [one for one in self.group(number) if not self.is_drawn(one)]

    def is_drawn(self, one: Wanted) -> bool:
        return read_text(self.folder / one.name) == self.text(one)

    def text(self, one: Wanted) -> dict[str, str]:
        """The text chunk of a picture, as `tools.sample` writes it."""
        about = {key: value for key, value in self.recipe.items() if key not in ("pictures", "prompts")}
        chunks = {"prompt": one.prompt, "seed": one.seed} | about
        return {key: str(value) for key, value in chunks.items() if value is not None}

    def draw_group(self, number: int, progress: Progress) -> None:
        """Draws a group and writes what is missing of it; nothing where nothing is.

        Raises:
          InputError: a file cannot be written.
          NotFinite: there is NaN or infinity on the way.
        """
        missing = set(self.missing(number))
        if not missing:
            return
        group = self.group(number)
        places = range(number * self.per_group, number * self.per_group + len(group))
        request = dataclasses.replace(
            self.request, prompts=[one.prompt for one in group], seed=[one.seed for one in group]
        )
        if self.control:
            request = self.control.under(self.pipeline, request, places)
        for one, picture in zip(group, self.pipeline.draw_each(request, progress), strict=True):
            if one in missing:
                save_png(self.folder / one.name, picture, self.text(one))

    def _may_replace(self, one: Wanted) -> bool:
        """Whether a file that has a picture's name is that picture, or a part of it that a crash left."""
        found = read_text(self.folder / one.name)
        return found is None or found == self.text(one)


def draw_list(
    pipeline: TextToImage,
    wanted: Sequence[Wanted],
    folder: pathlib.Path,
    request: Request,
    *,
    process_index: int = 0,
    process_count: int = 1,
    per_group: int = GROUP,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Draws what is not there yet of this process's share of a list: every `process_count`-th group.

    The folder says in `recipe.json` what it is of, and in `captions.json` which picture has which prompt.

    Args:
      folder: made if it is not there.
      request: a template: its prompts and seed are replaced.
      about: see `PictureList.open`.
      progress: told what is being done of a group and how far it is, and after each group, as "drawn", how many
        pictures of the share are there, of how many.

    Raises:
      InputError: see `PictureList`; or another process has this share.
    """
    if not 0 <= process_index < process_count:
        raise InputError(f"process {process_index} of {process_count}: they are counted from 0")
    pictures = PictureList.open(pipeline, wanted, folder, request, per_group=per_group, about=about)
    locks = folder / ".locks"
    check_writable(locks, "the folder of pictures")
    locks.mkdir(parents=True, exist_ok=True)
    with hold_share(locks, process_index, process_count, f"the folder of pictures {folder}"):
        pictures.begin()
        share = range(process_index, pictures.num_groups, process_count)
        total, done = sum(len(pictures.group(number)) for number in share), 0
        for number in share:
            pictures.draw_group(number, progress)
            done += len(pictures.group(number))
            progress("drawn", done, total)


def recipe_of(pipeline: TextToImage, wanted: Sequence[Wanted], request: Request) -> dict[str, Any]:
    """All that a list's pictures depend on, as JSON."""
    parts, canvas = pipeline.parts, request.canvas(pipeline.resolution)
    return {
        "checkpoint": pathlib.Path(parts.name).absolute().name,
        "step": parts.step(),
        "weights": weights_checksum(pipeline),
        **{kind: fingerprint(folder)[:8] for kind, folder in parts.encoders.items()},
        **_manner(pipeline, request),
        "negative_prompt": request.negative_prompt,
        "size": canvas.size,
        "height": canvas.height,
        "width": canvas.width,
        "pictures": len(wanted),
        "prompts": prompts_hash(wanted),
    }


def _manner(pipeline: TextToImage, request: Request) -> dict[str, Any]:
    """How a request is drawn, as JSON has it."""
    fields = dataclasses.asdict(pipeline.manner(request)).items()
    return {name: [*value] if isinstance(value, tuple) else value for name, value in fields}


def weights_checksum(pipeline: TextToImage) -> str:
    """8 hex digits of the denoiser's parameters as they are computed with, and of what adapters lay over them."""
    checksums = [device_checksum(leaf) for leaf in jax.tree.leaves(pipeline.parts.weights())]
    return f"{zlib.crc32(np.array(checksums, np.uint32).tobytes()):08x}"


def prompts_hash(wanted: Sequence[Wanted]) -> str:
    """SHA-256 in hex of names, prompts and seeds in their order."""
    digest = hashlib.sha256()
    for one in wanted:
        digest.update(f"{one.name}\0{one.prompt}\0{one.seed}\0".encode())
    return digest.hexdigest()


def read_text(path: pathlib.Path) -> dict[str, str] | None:
    """The text chunks of a PNG, without a look at its pixels; None where there is no whole one."""
    try:
        with open_regular(path) as file:
            file.seek(-len(_PNG_END), 2)
            if file.read() != _PNG_END:
                return None
            file.seek(0)
            with Image.open(file, formats=("PNG",)) as image:
                # Not `image.text`, which decodes all pixels for the sake of chunks that others write behind them.
                return {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _check_wanted(wanted: Sequence[Wanted]) -> None:
    if not wanted:
        raise InputError("a list of pictures to draw is empty")
    names = set()
    for one in wanted:
        path = pathlib.PurePosixPath(one.name)
        if path.is_absolute() or ".." in path.parts or path.suffix != ".png" or str(path) != one.name:
            raise InputError(f"{one.name!r}: a picture's name must be a path below the folder that ends in .png")
        if one.name in names:
            raise InputError(f"{one.name!r} is the name of two pictures of the list")
        names.add(one.name)
        check_seed(one.seed, f"the seed of {one.name}")
    Request([one.prompt for one in wanted])  # Says which prompt is none.


def _write_json(path: pathlib.Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, operator.methodcaller("write", text.encode()))
