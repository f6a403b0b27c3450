"""Lists of prompts that pictures are measured on: text, COCO's captions, MJHQ-30K's meta data, a data set's own."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from pixart_jax.data.prompts import read_prompts
from pixart_jax.data.shards.records import SampleSource
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import parse, read_bytes

# COCO's captions of 118,000 pictures are 92 MB.
_MOST_BYTES = 1 << 30
_KINDS = (
    'COCO\'s captions ("images" and "annotations"), MJHQ-30K\'s meta_data.json ({ID: {"prompt"}}), {NAME: prompt} or '
    "[prompt, ...]"
)


def read_prompt_list(path: pathlib.Path) -> list[str]:
    """The prompts of a file, in its order.

    | file                                  | prompts                                                             |
    |---------------------------------------|---------------------------------------------------------------------|
    | .json with `images` and `annotations` | COCO's: of each picture, by rising id, the caption of the lowest id |
    | .json {ID: {"prompt": ...}}           | MJHQ-30K's: one each                                                |
    | .json {NAME: prompt} or [prompt, ...] | one each                                                            |
    | any other                             | its lines that are not blank                                        |

    Raises:
      InputError: it cannot be read, is none of these, or holds no prompt; or one is blank.
    """
    if path.suffix.lower() != ".json":
        return read_prompts(path, "--prompts")
    cure = f"name a text file with a prompt a line, or a .json of {_KINDS}"
    try:
        content = parse(read_bytes(path, cure, _MOST_BYTES))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {error}; {cure}") from error
    found: Any
    if isinstance(content, dict) and "annotations" in content and "images" in content:
        found = _coco(content)
    elif isinstance(content, dict):
        found = [value.get("prompt") if isinstance(value, dict) else value for value in content.values()]
    else:
        found = content
    if not isinstance(found, list):
        raise InputError(f"{path} is no list of prompts; {cure}")
    if not found:
        raise InputError(f"{path}: holds no prompt; {cure}")
    for place, prompt in enumerate(found):
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{path}: entry {place} holds no prompt, but {prompt!r:.80}; {cure}")
    return [prompt.strip() for prompt in found]


def _coco(content: dict[str, Any]) -> list[str] | None:
    """A caption of each picture that has one; None where the lists are not COCO's."""
    first: dict[int, tuple[int, str]] = {}
    try:
        for annotation in content["annotations"]:
            image, number, caption = annotation["image_id"], annotation["id"], annotation["caption"]
            if image not in first or number < first[image][0]:
                first[image] = number, caption
        return [first[image["id"]][1] for image in sorted(content["images"], key=_id) if image["id"] in first]
    except (KeyError, TypeError):
        return None


def _id(image: dict[str, Any]) -> int:
    return image["id"]


def captions_of_shards(samples: SampleSource, places: Sequence[int], name: str) -> list[str]:
    """The captions of some samples of a data set; raises InputError, which calls it `name`, if one has none."""
    found = [samples[place].caption for place in places]
    if blank := [place for place, caption in zip(places, found, strict=True) if not caption.strip()]:
        raise InputError(f"{name}: sample {blank[0]} has no caption; name a data set whose pictures have captions")
    return found


def chosen(total: int, count: int | None) -> list[int]:
    """The places of `count` of `total` prompts, rising: the same for everybody, and among those of any larger count.

    They are those whose place, as decimal digits, has the least SHA-256: a list that is sorted by subject, as MJHQ-30K
    is, is so represented evenly.

    Raises:
      InputError: there are not so many, or fewer than two are wanted, which no metric takes.
    """
    count = total if count is None else count
    if count < 2:
        raise InputError(f"{count} picture(s): metrics need two or more; name more prompts, or a larger --num-pictures")
    if count > total:
        raise InputError(f"--num-pictures {count}: there are {total} prompts")
    return sorted(sorted(range(total), key=lambda place: hashlib.sha256(str(place).encode()).digest())[:count])


def seed_of(seed: int, place: int) -> int:
    """The seed of the picture of the prompt at a place: 64 bits that no other seed or place shares, but by chance."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:8], "big")


def prompts_hash(prompts: Sequence[str]) -> str:
    """SHA-256 in hex of prompts in their order: two sets of pictures compare where it is the same."""
    return hashlib.sha256("".join(f"{prompt}\0" for prompt in prompts).encode()).hexdigest()
