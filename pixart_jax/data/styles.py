"""Styles: words around a prompt, and what to move away from (PixArt-α, fig. 16: prompt mixing is no more than that)."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from collections.abc import Sequence

from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_fields

# Where a style has the prompt.
_PLACE = "{prompt}"
OWN_STYLES = pathlib.Path(__file__).with_name("styles.json")


@dataclasses.dataclass(frozen=True)
class Style:
    """Words around a prompt.

    Attributes:
      prompt: a text with {prompt} in it, once.
      negative: what it moves away from; "" is nothing of its own.
    """

    prompt: str
    negative: str = ""

    def of(self, prompt: str, negative_prompt: str | None) -> tuple[str, str | None]:
        """A prompt and its negative prompt, of which None is the null caption, in this style."""
        negative = ", ".join(filter(None, (negative_prompt, self.negative)))
        return self.prompt.replace(_PLACE, prompt), negative or negative_prompt


def read_styles(path: pathlib.Path = OWN_STYLES) -> dict[str, Style]:
    """Styles by name, of a JSON file {NAME: {"prompt": "... {prompt} ...", "negative": "..."}}.

    Raises:
      InputError: there is no such file, or it is not like that; names the style.
    """
    fields = read_fields(path, 'it should be {NAME: {"prompt": "... {prompt} ...", "negative": "..."}}')
    styles = {}
    for name in fields:
        style = fields.fields(name)
        prompt = style.text("prompt")
        if prompt.count(_PLACE) != 1:
            raise InputError(f"{path}: the prompt of style {name!r} should hold {_PLACE} once; it is {prompt!r}")
        if unknown := sorted(set(style) - {"prompt", "negative"}):
            raise InputError(f"{path}: style {name!r} has an unknown {unknown[0]!r}; it takes prompt and negative")
        styles[name] = Style(prompt, style.text("negative", ""))
    if not styles:
        raise InputError(f"{path} holds no style")
    return styles


def chosen(styles: dict[str, Style], names: Sequence[str]) -> list[Style]:
    """Styles by their names; raises InputError, with the nearest there is, for one that is none."""
    for name in names:
        if name not in styles:
            near = difflib.get_close_matches(name, styles, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(styles)}"
            raise InputError(f"--style {name}: is no style; {hint}")
    return [styles[name] for name in names]
