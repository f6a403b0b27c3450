"""Cycles that the TPU compiler estimates for a compiled program, and what its matrix units can reach with these shapes.

The compiler notes `estimated_cycles` at each fusion and copy. For kernels of Pallas it has none: they count by their
matrix products, as many rows and columns of a matrix unit as they take up, filled or not.
"""

from __future__ import annotations

import dataclasses
import math
import re

from pixart_jax.devices.hardware import Hardware

from .aot_hlo import Computation, Instruction, is_kernel, parse, trip_count

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPERAND = re.compile(r"\b(?:bf16|f16|f32)\[([\d,]+)\]")
# Matrix products of a kernel over queries × keys × the head's width. Forward: logits, and weighted values. Of the
# gradients: the logits again, that of the weights, and one for each of q, k and v that the kernel makes.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "dqkv": 5}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of splash attention, and how often it runs in a step.

    Attributes:
      kind: a key of PRODUCTS.
      heads: of all pictures together.
    """

    kind: str
    heads: int
    queries: int
    keys: int
    head_dim: int
    times: int

    def flops(self, rows: int = 1) -> float:
        """Of its products, the head's width filled up to a multiple of a matrix unit's rows."""
        width = math.ceil(self.head_dim / rows) * rows
        return 2 * PRODUCTS[self.kind] * self.heads * self.queries * self.keys * width * self.times


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one execution on one chip.

    Attributes:
      cycles: the compiler's own, of all but kernels.
      kernels: those of splash attention.
      others: kernels that are none of it, which count as nothing.
    """

    cycles: int
    kernels: tuple[Kernel, ...]
    others: int

    def seconds(self, hardware: Hardware) -> float | None:
        """The compiler's cycles, and the kernels' products at the matrix units' full rate, one after the other. None
        where the clock is not known."""
        if hardware.clock is None:
            return None
        return self.cycles / hardware.clock + self.kernel_flops(hardware) / hardware.peak_flops

    def kernel_flops(self, hardware: Hardware) -> float:
        """Of the kernels' products, unfilled rows of the matrix units included."""
        return sum(kernel.flops(hardware.matrix_rows) for kernel in self.kernels)


def estimate(text: str) -> Estimate:
    """From `compiled.as_text()`; loops count as often as they run.

    Raises:
      ValueError: the text is not HLO.
    """
    module, entry = parse(text)
    cycles, others, kernels = 0, 0, []

    def visit(name: str, times: int) -> None:
        nonlocal cycles, others
        computation = module[name]
        for title, instruction in computation.instructions.items():
            cycles += times * noted_cycles(instruction)
            if instruction.opcode == "while":
                for body in instruction.called():
                    visit(body, times * (trip_count(instruction, computation, module) or 1))
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in instruction.called():
                    visit(called, times)
            elif is_kernel(instruction):
                if kernel := kernel_of(title, instruction, computation, times):
                    kernels.append(kernel)
                else:
                    others += times

    visit(entry, 1)
    return Estimate(cycles, tuple(kernels), others)


def noted_cycles(instruction: Instruction) -> int:
    """What the compiler estimates for it, 0 where it says nothing."""
    noted = _CYCLES.search(instruction.attributes)
    return int(noted[1]) if noted else 0


def kernel_of(name: str, instruction: Instruction, computation: Computation, times: int) -> Kernel | None:
    """The kernel behind an instruction of splash attention: its first operands of floats are q and k [..., heads, N,
    head_dim], or with the last two the other way round."""
    if not (match := re.match(r"splash_mha_(fwd|dq|dkv)", name)):
        return None
    types = [computation.instructions[operand].type for operand in instruction.operands]
    shapes = [[int(size) for size in found[1].split(",")] for kind in types if (found := _OPERAND.match(kind))]
    q, k = [shape for shape in shapes if len(shape) >= 3][:2]
    queries, head_dim = max(q[-2:]), min(q[-2:])
    keys = k[-1] if k[-2] == head_dim else k[-2]
    # The fused kernel writes parts of dq beside dk and dv: one array more than the four that it has without.
    kind = match[1]
    if kind == "dkv" and len(_OPERAND.findall(instruction.type)) > 4:
        kind = "dqkv"
    return Kernel(kind, math.prod(q[:-2]), queries, keys, head_dim, times)
