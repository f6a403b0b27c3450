"""How much of its collectives a compiled program can run beside arithmetic, from the schedule in the text of its HLO.

A TPU's program is one list of instructions in the order in which they are issued. A collective that stands there as a
pair, or as a fusion that begins it, others that work beside it and one that waits for it, has the work between the two
to run beside; one that stands there alone holds everything behind it up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator

from pixart_jax.devices.hardware import Hardware

from .aot_cycles import kernel_of, noted_cycles
from .aot_hlo import (
    Computation,
    Instruction,
    Module,
    array_bytes,
    collective_kind,
    goes_on,
    parse,
    sent_bytes,
    trip_count,
)


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Of one execution on one chip.

    Attributes:
      seconds: of all collectives one after the other, what they send at the speed of all links of the chip: no less.
      exposed_seconds: what of it has no work beside it.
      pairs: how many are begun before they are waited for; alone: how many are not.
    """

    seconds: float
    exposed_seconds: float
    pairs: int
    alone: int


def count_overlap(text: str, num_devices: int, hardware: Hardware) -> Overlap:
    """From `compiled.as_text()`. Work is what the compiler estimates for it (`tools.aot_cycles`). Of collectives that
    are under way at once the first has the links to itself, and the work between the two halves of a pair is taken to
    be free for them: less than this is exposed on no chip.

    Args:
      hardware: with its clock and the speed of its links.

    Raises:
      ValueError: the text is not HLO, or has a collective whose devices cannot be read.
    """
    module, entry = parse(text)
    schedule = _Schedule(module, num_devices, hardware)
    schedule.run(entry, 1)
    return Overlap(schedule.seconds, schedule.exposed, schedule.pairs, schedule.alone)


class _Schedule:
    """Goes through computations in the order of their instructions, loops as often as they run."""

    def __init__(self, module: Module, num_devices: int, hardware: Hardware):
        self.module, self.num_devices, self.hardware = module, num_devices, hardware
        self.seconds = self.exposed = 0.0
        self.pairs = self.alone = 0

    def run(self, name: str, times: int) -> float:
        """Seconds of the work in one pass, collectives left out."""
        computation, work = self.module[name], 0.0
        # Of each under way: what tells its other half, and the seconds that it still needs.
        under_way: list[list] = []
        for title, instruction in computation.instructions.items():
            done = self._work(title, instruction, computation, times)
            work += done
            for pending in under_way:
                beside = min(done, pending[1])
                done, pending[1] = done - beside, pending[1] - beside
            for key, begins, seconds in self._halves(name, title, instruction, computation):
                self.seconds += times * seconds
                if begins:
                    self.pairs += times
                    under_way.append([key, seconds])
                elif key is None:
                    self.alone += times
                    self.exposed += times * seconds
                elif ended := next((pending for pending in under_way if pending[0] == key), None):
                    under_way.remove(ended)
                    self.exposed += times * ended[1]
        # What the next pass of a loop would wait for.
        self.exposed += times * sum(pending[1] for pending in under_way)
        return work

    def _work(self, title: str, instruction: Instruction, computation: Computation, times: int) -> float:
        if instruction.opcode == "while":
            trips = trip_count(instruction, computation, self.module) or 1
            return sum(trips * self.run(body, times * trips) for body in instruction.called())
        if instruction.opcode in ("call", "conditional", "async-start"):
            return sum(self.run(called, times) for called in instruction.called())
        seconds = noted_cycles(instruction) / (self.hardware.clock or float("inf"))
        if kernel := kernel_of(title, instruction, computation, 1):
            seconds += kernel.flops(self.hardware.matrix_rows) / self.hardware.peak_flops
        return seconds

    def _halves(
        self, name: str, title: str, instruction: Instruction, computation: Computation
    ) -> Iterator[tuple[Hashable, bool, float]]:
        """The collectives that an instruction begins (its key, True, seconds), waits for (key, False, 0), or does as a
        whole (None, False, seconds)."""
        opcode, links = instruction.opcode, self.hardware.interconnect or float("inf")
        if opcode == "fusion":
            yield from self._fused(instruction.called()[0])
        elif opcode == "call-start":  # A sparse core has the collective.
            called = instruction.called()[0]
            body = self.module[called]
            kinds = [(each, collective_kind(called, each)) for each in body.instructions.values()]
            parts = [sent_bytes(kind, each, body, self.num_devices) for each, kind in kinds if kind]
            if parts:
                yield title, True, sum(parts) / links
        elif opcode == "send" and "xla_megascale_runtime" in instruction.attributes:
            sent = array_bytes(computation.instructions[instruction.operands[0]].type)
            yield title, True, sent / (self.hardware.network or float("inf"))
        elif kind := collective_kind(name, instruction):
            seconds = sent_bytes(kind, instruction, computation, self.num_devices) / links
            pair = opcode.endswith("-start")
            yield title if pair else None, pair, seconds
        elif opcode.endswith("-done"):
            yield instruction.operands[0], False, 0.0

    def _fused(self, name: str) -> Iterator[tuple[Hashable, bool, float]]:
        fused, links = self.module[name], self.hardware.interconnect or float("inf")
        attributes = [instruction.attributes for instruction in fused.instructions.values()]
        marks = {mark for mark in ("Start", "Done") if any(f"AsyncCollective{mark}" in text for text in attributes)}
        for instruction in fused.instructions.values():
            if instruction.opcode == "fusion":
                yield from self._fused(instruction.called()[0])
            if not (kind := collective_kind(name, instruction)):
                continue
            # One whose halves have the same channel is done before it begins again.
            key = kind, instruction.attributes.partition("channel_id=")[2].partition(",")[0]
            if "Done" in marks:
                yield key, False, 0.0
            elif not goes_on(name, fused):
                begins = "Start" in marks
                yield key if begins else None, begins, sent_bytes(kind, instruction, fused, self.num_devices) / links
