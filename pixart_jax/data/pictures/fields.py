"""What the fields of a record, or the columns of a table, mean: the picture, its captions, its label."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from pixart_jax.data.pictures.base import GREATEST_WEIGHT, LEAST_WEIGHT, MOST_CLASSES, BadItem, shown
from pixart_jax.errors import InputError

# The reference's two, its own prompt and the long one by ShareGPT4V (spec §6.2), and what other tools call theirs.
CAPTION_FIELDS = ("prompt", "sharegpt4v", "caption", "text")
# A picture's path: the reference's, Hugging Face's imagefolder's, and what other tables call it.
PATH_FIELDS = ("path", "file_name", "filename", "image_path", "image", "file")


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which fields are read.

    Attributes:
      captions: those of captions.
      weights: sampling weight of some of them; 1 where not given, 0 leaves the field out.
      picture: that of the picture or its path; "" for the first that is there of those with a known name.
      chosen: whether the user named `captions`.
    """

    captions: tuple[str, ...] = CAPTION_FIELDS
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    picture: str = ""
    chosen: bool = False

    @classmethod
    def of(cls, weights: Mapping[str, float], captions: str, picture: str) -> Fields:
        """From what the user named.

        Args:
          weights: see the class.
          captions: names with commas between them; "" for CAPTION_FIELDS.
          picture: see the class.

        Raises:
          InputError: a weight is none, or of a field that is not read.
        """
        chosen = tuple(name.strip() for name in captions.split(",") if name.strip())
        names = chosen or CAPTION_FIELDS
        for field, weight in weights.items():
            if field not in names:
                raise InputError(f"caption_weights: no caption field is called {field!r}; know {', '.join(names)}")
            if weight != 0 and not _is_weight(weight):
                raise InputError(f"caption_weights[{field!r}] must be 0, or {_WEIGHTS}, not {weight!r}")
        return cls(names, dict(weights), picture.strip(), bool(chosen))

    @property
    def digest(self) -> list[Any]:
        """Of what a fingerprint is made, besides the weights; [] where nothing was named."""
        return [[list(self.captions), self.picture]] if self.chosen or self.picture else []

    def check_named(self, there: Collection[str], where: object) -> None:
        """Raises InputError where a field that the user named is none of those that are `there`."""
        for option, names in (
            ("caption column", self.captions if self.chosen else ()),
            ("image column", [self.picture]),
        ):
            for name in names:
                if name and name not in there:
                    raise InputError(f"{where}: has no {option} {name!r}; it has {', '.join(sorted(there)) or 'none'}")

    def path(self, record: Mapping) -> object:
        """A record's path, whatever it is."""
        if self.picture:
            return record.get(self.picture)
        return next((record[name] for name in PATH_FIELDS if name in record), None)

    def texts(self, record: Mapping, key: str) -> list[tuple[str, float]]:
        """(text, weight) of a record's captions, empty ones and all: those in its `captions`, else in the fields.

        `captions` without any text in it hides no other field. Where fields were named, they alone are looked at. Equal
        weights where none are given, as the reference mixes a prompt and its long form (spec §6.2). A field that is
        null is not there. One that holds a list, of texts or of {"text", "weight"}, shares its weight among them.

        Raises:
          BadItem: "bad-record" for a caption or a weight of the wrong type.
        """
        found: list[_Text] = []
        if not self.chosen and record.get("captions") is not None:
            if not isinstance(record["captions"], list):
                _fail(key, "captions", f"must be a list, not {shown(record['captions'])}")
            found = _texts("captions", record["captions"], 1.0)
        if not any(not isinstance(text.value, str) or text.value.strip() for text in found):
            empty, found = found, []
            for field in self.captions:
                weight = self.weights.get(field, 1.0)
                if (value := record.get(field)) is not None and weight > 0:
                    found += _texts(field, value, weight)
            found = found or empty
        for text in found:
            if not isinstance(text.value, str):
                _fail(key, text.field, f"must be text, not {shown(text.value)}")
            if not _is_weight(text.weight):
                _fail(key, text.field, f"has weight {shown(text.weight)}; it must be {_WEIGHTS}")
        return [(text.value, float(text.weight) * text.share) for text in found]

    def label(self, record: Mapping, key: str) -> int | None:
        """Raises BadItem "bad-record" for a label that is none."""
        label = record.get("label")
        if label is not None and not is_label(label):
            _fail(key, "label", f"must be a number from 0 to {MOST_CLASSES - 1}, not {shown(label)}")
        return label


@dataclasses.dataclass(frozen=True)
class _Text:
    """A caption as found: of which field, of what type and weight ever, and what its field leaves it."""

    field: str
    value: Any
    weight: Any
    share: float


def _texts(field: str, value: object, share: float) -> list[_Text]:
    if not isinstance(value, list):
        return [_Text(field, value, 1.0, share)]
    entries = [entry if isinstance(entry, dict) else {"text": entry} for entry in value]
    return [
        _Text(f"{field}[{number}]", entry.get("text"), entry.get("weight", 1.0), share / len(entries))
        for number, entry in enumerate(entries)
    ]


def _fail(key: str, field: str, problem: str) -> NoReturn:
    raise BadItem(key, "bad-record", f"{field} {problem}")


def is_label(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_CLASSES


_WEIGHTS = f"a number from {LEAST_WEIGHT} to {GREATEST_WEIGHT:.0f}"


def _is_weight(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return LEAST_WEIGHT <= value <= GREATEST_WEIGHT
