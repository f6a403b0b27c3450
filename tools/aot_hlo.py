"""Bytes that a compiled program moves, from the text of its HLO: through memory, and through each kind of collective.

XLA's own count of bytes takes every loop for one pass and does not tell collectives apart. Here loops count as often as
they run.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict

# What is handed to the network between slices of TPUs; within a slice the program has collectives of its own.
BETWEEN_SLICES = "between-slices"
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# They name or regroup buffers, or stand for work that is counted where it is done.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "optimization-barrier", "add-dependency", "async-start", "async-update",
}  # fmt: skip
# They read no more of their first operand than they return.
SLICES = {"dynamic-slice", "slice", "gather"}

_BITS = re.compile(r"(?:f|s|u|bf|c|f8e\w*?)(\d+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
# Axes from the innermost on, then rows and lanes of a tile.
_TILE = re.compile(r"\{([\d,]+):T\((\d+),(\d+)\)")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"\b(?:calls|body|to_apply|branch_computations)=(?:\{([^}]*)\}|(%[\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_CONDITION = re.compile(r"\bcondition=%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one execution moves, on each device.

    Attributes:
      memory_bytes: read from and written to the device's main memory. A fusion reads its operands and writes its
        results once, and of what it slices only the slice; so does a custom kernel, whatever it reads again. Arrays
        count with the padding of their layout.
      collective_bytes: kind -> bytes that a device sends, if the collective sends no more than it must: an all-reduce
        of S bytes over n devices 2·S·(n-1)/n, an all-gather to S bytes S·(n-1)/n. BETWEEN_SLICES is what it hands over.
      collective_counts: kind -> how many are executed.
      unknown_loops: loops of which it cannot be told how often they run, and which count as one pass.
    """

    memory_bytes: float
    collective_bytes: dict[str, float]
    collective_counts: dict[str, int]
    unknown_loops: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str

    def called(self) -> list[str]:
        """Names of the computations it runs; of a loop, the body alone."""
        found = (braced or single for braced, single in _CALLED.findall(self.attributes))
        return [name.strip().lstrip("%") for names in found for name in names.split(",")]


@dataclasses.dataclass
class Computation:
    """Instructions by name, the root's name, and the parameters' names by their number."""

    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""
    parameters: dict[int, str] = dataclasses.field(default_factory=dict)


Module = dict[str, Computation]


def count_traffic(text: str, num_devices: int) -> Traffic:
    """The traffic of a module, from `compiled.as_text()`.

    Raises:
      ValueError: the text is not HLO, or has a collective whose devices cannot be read.
    """
    module, entry = parse(text)
    memory, unknown = 0.0, 0
    sent: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()

    def visit(name: str, times: int, fused: bool) -> None:
        nonlocal memory, unknown
        computation = module[name]
        begun = fused and goes_on(name, computation)
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if (kind := collective_kind(name, instruction)) and not begun:
                sent[kind] += times * sent_bytes(kind, instruction, computation, num_devices)
                counts[kind] += times
            if opcode == "send" and "xla_megascale_runtime" in instruction.attributes:
                sent[BETWEEN_SLICES] += times * array_bytes(computation.instructions[instruction.operands[0]].type)
                counts[BETWEEN_SLICES] += times
            if opcode == "while":
                trips = trip_count(instruction, computation, module)
                unknown += trips is None
                for body in instruction.called():
                    visit(body, times * (trips or 1), fused)
            elif opcode in ("call", "conditional", "async-start", "call-start", "fusion"):
                # What a call-start begins on a sparse core reads and writes what the call does.
                for called in instruction.called():
                    visit(called, times, fused or opcode in ("fusion", "call-start"))
            if not fused:
                memory += times * memory_bytes(instruction, computation, module)

    visit(entry, 1, False)
    return Traffic(memory, dict(sent), dict(counts), unknown)


# --- the text


def parse(text: str) -> tuple[Module, str]:
    """Computations by name, and the name of the entry."""
    module, entry, current = {}, None, None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = module[match[2]] = Computation()
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            instruction = current.instructions[match[2]] = _parse_instruction(match[3])
            if match[1]:
                current.root = match[2]
            if instruction.opcode == "parameter":
                current.parameters[int(instruction.operands[0])] = match[2]
    if entry is None:
        raise ValueError("the text of a compiled program has no ENTRY; is it HLO?")
    return module, entry


def _parse_instruction(text: str) -> Instruction:
    """From "TYPE opcode(operands), attributes"."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    opcode, inside = text[end:opening].strip(), text[opening + 1 : closing]
    # A parameter's is its number, a constant's its value.
    operands = (inside,) if opcode in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(opcode, text[:end], operands, text[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"no closing bracket in {text[:200]}")


def array_bytes(type_text: str) -> float:
    """Bytes of an array's numbers, or of all in a tuple."""
    return padded_bytes(type_text, padded=False)


def padded_bytes(type_text: str, *, main_memory: bool = False, padded: bool = True) -> float:
    """Bytes that an array takes, or all in a tuple: whole tiles, T(rows, lanes) of its layout's two innermost axes.

    With `main_memory` without those that the compiler keeps nearer.
    """
    total = 0.0
    for name, sizes, layout in _ARRAY.findall(type_text):
        if main_memory and re.search(r"S\([1-9]", layout):
            continue
        bits = 8 if name == "pred" else int(match[1]) if (match := _BITS.match(name)) else 0
        shape = [int(size) for size in sizes.split(",") if size]
        if padded and (tile := _TILE.match(layout)) and len(shape) > 1:
            for axis, unit in zip(map(int, tile[1].split(",")), (int(tile[3]), int(tile[2])), strict=False):
                shape[axis] = -(-shape[axis] // unit) * unit
        total += math.prod(shape) * bits / 8
    return total


def tuple_elements(type_text: str) -> list[str]:
    """The types in a tuple's type."""
    parts, depth, start = [], 0, 1
    for i, char in enumerate(type_text):
        depth += (char in "([{") - (char in ")]}")
        if (char == "," and depth == 1) or not depth:
            parts.append(type_text[start:i].strip())
            start = i + 1
    return parts


# --- loops


def trip_count(loop: Instruction, computation: Computation, module: Module) -> int | None:
    """How often a loop runs: as the compiler notes, or told from a counter that steps by 1: from 1 where the compiler
    has taken the first pass out of the loop."""
    if noted := _TRIPS.search(loop.attributes):
        return int(noted[1])
    condition, body = module[_found(_CONDITION, loop.attributes)], module[loop.called()[0]]
    compare = condition.instructions[condition.root]
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (_behind_copies(condition, name) for name in compare.operands)
    start, end = _behind_copies(computation, loop.operands[0]), body.instructions[body.root]
    if (counter.opcode, limit.opcode, start.opcode, end.opcode) != ("get-tuple-element", "constant", "tuple", "tuple"):
        return None
    index = int(_found(_INDEX, counter.attributes))
    first, step = _behind_copies(computation, start.operands[index]), _behind_copies(body, end.operands[index])
    steps = [_behind_copies(body, name) for name in step.operands] if step.opcode == "add" else []
    by_one = any(part.opcode == "constant" and part.operands == ("1",) for part in steps)
    return int(limit.operands[0]) - int(first.operands[0]) if first.opcode == "constant" and by_one else None


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    if match is None:
        raise ValueError(f"no {pattern.pattern} in the attributes of an HLO instruction: {text}")
    return match[1]


def _behind_copies(computation: Computation, name: str) -> Instruction:
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "copy-start", "copy-done"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


# --- collectives


def collective_kind(computation: str, instruction: Instruction) -> str:
    """One of COLLECTIVES, "" of what is none; of an asynchronous pair, its first half."""
    kind = instruction.opcode.removesuffix("-start")
    # The TPU compiler writes a reduce-scatter as a fusion that cuts a slice out of an all-reduce.
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return kind if kind in COLLECTIVES else ""


def goes_on(name: str, fused: Computation) -> bool:
    """Whether a fusion works beside a collective that another one began, or waits for it: the compiler prints the
    collective again in each. The channel does not tell: blocks that were one loop's body share theirs."""
    return name.startswith("async_collective_fusion") or any(
        "AsyncCollectiveDone" in instruction.attributes for instruction in fused.instructions.values()
    )


def sent_bytes(kind: str, instruction: Instruction, computation: Computation, num_devices: int) -> float:
    """What each device has to send for one collective."""
    sizes = [array_bytes(computation.instructions[name].type) for name in instruction.operands]
    if kind == "collective-permute":
        # The asynchronous form may name its result and offsets as operands too.
        return sizes[0]
    group = group_size(instruction.attributes, num_devices)
    share = (group - 1) / group
    return sum(sizes) * {"all-gather": group - 1, "all-reduce": 2 * share}.get(kind, share)


def group_size(attributes: str, num_devices: int) -> int:
    """Devices that take part in one collective together."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        # 'axis', or 'axis':(m)k for k of its devices.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(match[1].split(","))
    if "replica_groups={}" in attributes:
        return num_devices
    raise ValueError(f"cannot read the devices of a collective: {attributes[:200]}")


# --- memory


def memory_bytes(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Main memory that an instruction outside of fusions reads and writes."""
    opcode, result = instruction.opcode, instruction.type
    if opcode in FREE or opcode.endswith("-done"):
        return 0.0
    if opcode == "custom-call" and not is_kernel(instruction):  # The compiler's own notes.
        return 0.0
    operands = [computation.instructions[name].type for name in instruction.operands]
    read = [padded_bytes(operand, main_memory=True) for operand in operands]
    if opcode.endswith("-start") and result.startswith("("):
        # (operands, results, ...), but (result, operand, ...) of a copy.
        result = tuple_elements(result)[0 if opcode == "copy-start" else 1]
    written = padded_bytes(result, main_memory=True)
    if opcode == "dynamic-update-slice":
        return 2 * read[1]
    if opcode in ("send", "recv"):
        return read[0] if opcode == "send" else padded_bytes(tuple_elements(result)[0], main_memory=True)
    if opcode.removesuffix("-start") in SLICES:
        return written + min(read[0], padded_bytes(result))
    if opcode == "fusion":
        fused = module[instruction.called()[0]]
        needed = (_fused_read(fused, fused.parameters[i], module) for i in range(len(operands)))
        return sum(map(min, read, needed)) + min(written, _fused_write(fused, fused.root, module))
    return written + sum(read)


def is_kernel(instruction: Instruction) -> bool:
    return 'custom_call_target="tpu_custom_call"' in instruction.attributes


def _waits(fused: Computation) -> bool:
    """Whether a fusion works while a collective runs, or waits for it, whose bytes the fusion that starts it has."""
    return any(
        (instruction.opcode in COLLECTIVES and fused.instructions[fused.root].opcode == "tuple")
        or "AsyncCollectiveDone" in instruction.attributes
        for instruction in fused.instructions.values()
    )


def _fused_read(fused: Computation, name: str, module: Module) -> float:
    """What a fusion reads of one of its values: all, unless it only slices it, or writes a slice into it."""
    whole = padded_bytes(fused.instructions[name].type)
    total = 0.0
    for user, instruction in fused.instructions.items():
        places = [i for i, operand in enumerate(instruction.operands) if operand == name]
        if not places or instruction.opcode in ("parameter", "constant", "tuple"):
            continue
        if (instruction.opcode in COLLECTIVES or instruction.opcode == "custom-call") and _waits(fused):
            continue
        if instruction.opcode in SLICES and places == [0]:
            total += padded_bytes(instruction.type)
        elif instruction.opcode == "bitcast":
            total += _fused_read(fused, user, module)
        elif instruction.opcode == "fusion":
            inner = module[instruction.called()[0]]
            total += sum(_fused_read(inner, inner.parameters[i], module) for i in places)
        elif not (instruction.opcode == "dynamic-update-slice" and places == [0]):
            return whole
    return min(total, whole)


def _fused_write(fused: Computation, name: str, module: Module) -> float:
    """What a fusion writes of one of its values: all, unless it only updates a slice of it, or passes it on."""
    instruction = fused.instructions[name]
    if instruction.opcode == "parameter" and name != fused.root:
        return 0.0
    if (instruction.opcode in COLLECTIVES or instruction.opcode == "custom-call") and _waits(fused):
        return 0.0
    if instruction.opcode == "dynamic-update-slice":
        return padded_bytes(fused.instructions[instruction.operands[1]].type)
    if instruction.opcode == "bitcast" or "AsyncCollectiveStart" in instruction.attributes:
        return _fused_write(fused, instruction.operands[0], module)
    if instruction.opcode == "tuple":
        return sum(_fused_write(fused, operand, module) for operand in instruction.operands)
    if instruction.opcode == "fusion":
        inner = module[instruction.called()[0]]
        return _fused_write(inner, inner.root, module)
    return padded_bytes(instruction.type)
