"""How a step grows with the chips, the pictures on each chip staying the same: weak scaling, by the compiler alone.

Whole models take minutes to compile on each topology. Their blocks are alike, so two models of few blocks tell what a
block costs and what all else does; the figures of the whole one are theirs, carried on in a straight line.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence

from pixart_jax.config import architecture, read_config_file
from pixart_jax.errors import InputError
from pixart_jax.figures.images import save_png
from pixart_jax.figures.trade_off import lines_picture
from pixart_jax.models.remat import AUTO, BY_WEIGHT

from .aot_compile import STATE_SHARE, Case, case_config, kept_bytes, parse_topology

# Blocks of the two models.
BLOCKS = (2, 4)
# How far a figure may lie from that on the most chips and count as constant.
CONSTANT = 0.05


@dataclasses.dataclass(frozen=True)
class Point:
    """The whole model's step on one topology; all figures per chip.

    Attributes:
      seconds: the compiler's estimate of the work, and what of the collectives has no work beside it.
      collective_seconds, exposed_seconds: see `tools.aot_overlap`.
      sent_bytes: by all collectives; by_kind: of each.
    """

    config: str
    topology: str
    chips: int
    pictures: int
    remat: str
    fsdp: int
    seconds: float
    collective_seconds: float
    exposed_seconds: float
    scratch_bytes: float
    total_bytes: float
    capacity_bytes: float
    sent_bytes: float
    by_kind: dict[str, float]

    @property
    def chip(self) -> str:
        return self.topology.partition(":")[0].rpartition("x")[2]

    @property
    def hidden(self) -> float | None:
        """The share of the collectives' time that has work beside it; None without collectives."""
        return 1 - self.exposed_seconds / self.collective_seconds if self.collective_seconds else None


def growth_cases(config: str, settings: Sequence[str], topologies: Sequence[str]) -> list[Case]:
    """What is compiled: two models for each topology. A chip has as many pictures as the config's batch comes to on the
    most chips.

    Where the config leaves rematerialisation open, it is the lightest with which what the backward pass keeps of the
    whole model leaves room for the chip's share of the state: the same on all topologies of a chip.

    Raises:
      InputError: the config or a topology is none.
    """
    whole = read_config_file(config, tuple(settings))
    pictures = max(whole.data.batch_size // max(parse_topology(text).chips for text in topologies), 1)
    cases = []
    for text in topologies:
        topology = parse_topology(text)
        own = [*settings, f"--config.data.batch_size={pictures * topology.chips}"]
        if whole.model.remat == AUTO:
            room = (1 - STATE_SHARE) * topology.hardware.memory_bytes / pictures
            own.append(f"--config.model.remat={lightest(Case(config, tuple(own), text), room)}")
        cases += [Case(config, tuple(own), text, blocks=blocks) for blocks in BLOCKS]
    return cases


def lightest(case: Case, room: float) -> str:
    """The first policy with which no more than `room` is kept for a picture, "full" if none."""
    for policy in BY_WEIGHT[1:-1]:
        named = dataclasses.replace(case, settings=(*case.settings, f"--config.model.remat={policy}"))
        if kept_bytes(case_config(named)) <= room:
            return policy
    return BY_WEIGHT[-1]


def point(few: tuple[Case, dict], more: tuple[Case, dict]) -> Point:
    """From the figures of the two models (`tools.aot_compile`), of BLOCKS blocks.

    Raises:
      InputError: the compiler ran out of memory, or the figures are of an older tools.aot.
    """
    (case, one), (_, another) = few, more
    depth = architecture(read_config_file(case.config, case.settings))["depth"]
    name = f"{pathlib.Path(case.config).stem} on {case.topology}"
    for result in (one, another):
        if "total_bytes" not in result:
            raise InputError(f"{name}: even a few blocks do not fit: {result['compiler']}")
        if "exposed_seconds" not in result:
            raise InputError(f"{name}: --out has figures of an older version, without overlap; name another --out")

    def whole(first: float, second: float) -> float:
        return max(first + (second - first) * (depth - BLOCKS[0]) / (BLOCKS[1] - BLOCKS[0]), 0.0)

    kinds = sorted({*one["collective_bytes"], *another["collective_bytes"]})
    sent = {kind: whole(*(result["collective_bytes"].get(kind, 0.0) for result in (one, another))) for kind in kinds}
    names = ("estimated_seconds", "collective_seconds", "exposed_seconds", "scratch_bytes", "total_bytes")
    figures = {name: whole(one[name], another[name]) for name in names}
    return Point(
        config=pathlib.Path(case.config).stem,
        topology=case.topology,
        chips=one["chips"],
        pictures=one["batch_size"] // one["chips"],
        remat=one["remat"],
        fsdp=one["fsdp"],
        seconds=figures.pop("estimated_seconds") + figures["exposed_seconds"],
        **figures,
        capacity_bytes=one["capacity_bytes"],
        sent_bytes=sum(sent.values()),
        by_kind=sent,
    )


def lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each config on each kind of chip, by ascending chips."""
    found: dict[str, list[Point]] = {}
    for each in sorted(points, key=lambda each: each.chips):
        found.setdefault(f"{each.config}, {each.chip}", []).append(each)
    return dict(sorted(found.items()))


def against_most(figures: Sequence[float]) -> list[float]:
    """Of ascending chips, each one's figure as a multiple of the last one's."""
    return [figure / figures[-1] if figures[-1] else math.nan for figure in figures]


def growth_table(points: Sequence[Point]) -> Iterator[str]:
    """Markdown. What differs by more than CONSTANT from the most chips stands in bold."""
    head = (
        "step", "topology", "chips", "pictures", "remat", "fsdp", "step s", "collectives s", "beside work",
        "scratch GB", "total / capacity GB", "sent GB",
    )  # fmt: skip
    yield "| " + " | ".join(head) + " |"
    yield "| --- " * len(head) + "|"
    for label, line in lines(points).items():
        ratios = zip(*(against_most([getattr(each, name) for each in line]) for name in COMPARED), strict=True)
        for each, (seconds, scratch, sent) in zip(line, ratios, strict=True):
            cells = (
                label.partition(",")[0], each.topology, str(each.chips), str(each.pictures), each.remat, str(each.fsdp),
                compared(f"{each.seconds:.3g}", seconds),
                f"{each.collective_seconds:.3g}", "" if each.hidden is None else f"{each.hidden:.0%}",
                compared(f"{each.scratch_bytes / 1e9:.3g}", scratch),
                f"{each.total_bytes / 1e9:.3g} / {each.capacity_bytes / 1e9:g}",
                compared(f"{each.sent_bytes / 1e9:.3g}", sent),
            )  # fmt: skip
            yield "| " + " | ".join(cells) + " |"


COMPARED = ("seconds", "scratch_bytes", "sent_bytes")


def compared(text: str, ratio: float) -> str:
    """With how far it is from that on the most chips."""
    if math.isnan(ratio) or ratio == 1:
        return text
    said = f"{text} ({ratio - 1:+.1%})"
    return f"**{said}**" if abs(ratio - 1) > CONSTANT else said


def growth_png(path: str | os.PathLike, points: Sequence[Point]) -> None:
    """Draws time, scratch and bytes sent against chips, and how much of the collectives has work beside it.

    Args:
      path: PNG file to write, atomically.
    """
    grown = lines(points)
    panels: dict[str, dict[str, dict[int, float]]] = {
        "step time / that on the most chips": {},
        "scratch / that on the most chips": {},
        "GB sent by each chip and step": {},
        "share of collectives' time beside work": {},
    }
    time, scratch, sent, hidden = panels.values()
    for label, line in grown.items():
        chips = [each.chips for each in line]
        time[label] = dict(zip(chips, against_most([each.seconds for each in line]), strict=True))
        scratch[label] = dict(zip(chips, against_most([each.scratch_bytes for each in line]), strict=True))
        sent[label] = {each.chips: each.sent_bytes / 1e9 for each in line}
        if own := {each.chips: each.hidden for each in line if each.hidden is not None}:
            hidden[label] = own
    save_png(path, lines_picture("chips", {name: panel for name, panel in panels.items() if panel}))
