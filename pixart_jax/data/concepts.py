"""How much captions name: nouns per picture, and how many distinct ones are more than accidents (PixArt-α, Table 1)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# Appearances are whole numbers of this share of one, rounded down, so that sums are the same in whatever order.
WHOLE = 1 << 20
# Table 1: "valid nouns" appear more than ten times.
VALID_ABOVE = 10


class Row(NamedTuple):
    """A line of Table 1.

    Attributes:
      data: its name.
      valid: distinct nouns that appear more than VALID_ABOVE times.
      distinct: nouns.
      ratio: valid of distinct nouns; 0 of none.
      total: appearances of any.
      per_picture: their mean.
    """

    data: str
    valid: float
    distinct: float
    ratio: float
    total: float
    per_picture: float


# PixArt-α, Table 1, as printed.
PAPER = (
    Row("LAION (paper)", 210e3, 2461e3, 0.085, 72.0e6, 6.4),
    Row("LAION-LLaVA (paper)", 85e3, 646e3, 0.133, 233.9e6, 20.9),
    Row("SAM-LLaVA (paper)", 23e3, 124e3, 0.186, 327.9e6, 29.3),
    Row("Internal (paper)", 152e3, 582e3, 0.261, 136.6e6, 12.2),
)


@dataclasses.dataclass
class Concepts:
    """Counts of nouns, which add up over parts of a source.

    A noun of a caption appears as often as the caption is drawn when each picture is once: by its weight among the
    picture's captions. Where each picture has one caption, as in the paper, that is once.

    Attributes:
      pictures: that have a caption.
      captions: of all of them.
      nouns: appearances of each noun, in units of 1/WHOLE.
      per_picture: pictures by the number of nouns that they have on average over their captions, rounded.
    """

    pictures: int = 0
    captions: int = 0
    nouns: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    per_picture: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def add(self, captions: Sequence[tuple[Iterable[str], float]]) -> None:
        """A picture: the nouns and the weight of each of its captions, of which it has at least one."""
        total = sum(weight for _, weight in captions)
        of_picture = 0
        for nouns, weight in captions:
            # Weights that are equal but for rounding sum to a little less than one; only a lone caption is whole.
            share = int(weight / total * WHOLE)
            for noun in nouns:
                self.nouns[noun] += share
                of_picture += share
        self.pictures += 1
        self.captions += len(captions)
        self.per_picture[round(of_picture / WHOLE)] += 1

    def merge(self, counts: Mapping) -> None:
        """Adds what `as_json` gave of another part."""
        self.pictures += counts["pictures"]
        self.captions += counts["captions"]
        for noun, count in counts["nouns"].items():
            self.nouns[noun] += count
        for number, count in counts["per_picture"].items():
            self.per_picture[int(number)] += count

    def as_json(self) -> dict:
        return dict(vars(self))

    def row(self, data: str) -> Row:
        total = self.nouns.total() / WHOLE
        valid = sum(count > VALID_ABOVE * WHOLE for count in self.nouns.values())
        distinct = len(self.nouns)
        return Row(data, valid, distinct, valid / max(distinct, 1), total, total / max(self.pictures, 1))


def table(rows: Iterable[Row]) -> str:
    """Markdown, in the columns of Table 1."""
    lines = ["| data | valid / distinct nouns | total nouns | nouns per picture |", "|---|---|---|---|"]
    for row in rows:
        data = row.data.replace("|", "\\|")
        ratio = f"{_short(row.valid)} / {_short(row.distinct)} = {row.ratio:.1%}"
        lines.append(f"| {data} | {ratio} | {_short(row.total)} | {row.per_picture:.1f} |")
    return "\n".join(lines)


def _short(count: float) -> str:
    """As the paper writes counts, where they are the paper's or as large."""
    if count >= 10e6:
        return f"{count / 1e6:.1f}M"
    is_rounded = count >= 10e3 and count % 1e3 == 0
    return f"{count / 1e3:.0f}K" if is_rounded or count >= 1e6 else f"{count:,.0f}"
