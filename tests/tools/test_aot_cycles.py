"""Cycles and kernels read off the text of a compiled program."""

import pytest

from pixart_jax.devices.hardware import HARDWARE
from tools.aot_cycles import Kernel, estimate

TEXT = """HloModule jit_step, is_scheduled=true

%body (arg: (s32[], bf16[2,16,1024,72])) -> (s32[], bf16[2,16,1024,72]) {
  %arg = (s32[]{:T(128)}, bf16[2,16,1024,72]{3,2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %q = bf16[2,16,1024,72]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %k = bf16[2,16,72,256]{3,2,1,0:T(8,128)(2,1)} copy(%q), backend_config={"estimated_cycles":"100"}
  %l = f32[2,16,1,1024]{3,2,1,0:T(1,128)} copy(%q), backend_config={"estimated_cycles":"10"}
  %splash_mha_fwd_segmented.1 = (f32[2,512,128]{2,1,0}, bf16[2,16,1024,72]{3,2,1,0}) custom-call(%one, %q, %k, %k), custom_call_target="tpu_custom_call"
  %splash_mha_dkv_segmented.2 = (f32[2,256,72]{2,1,0}, f32[2,256,72]{2,1,0}, bf16[2,16,256,72]{3,2,1,0}, bf16[2,16,256,72]{3,2,1,0}) custom-call(%one, %q, %k, %k, %l), custom_call_target="tpu_custom_call"
  %splash_mha_dkv_segmented.3 = (f32[2,256,72]{2,1,0}, f32[2,256,72]{2,1,0}, bf16[1,2,16,1024,72]{4,3,2,1,0}, bf16[2,16,256,72]{3,2,1,0}, bf16[2,16,256,72]{3,2,1,0}) custom-call(%one, %q, %k, %k, %l), custom_call_target="tpu_custom_call"
  %another.3 = bf16[2,16,1024,72]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call"
  ROOT %end = (s32[]{:T(128)}, bf16[2,16,1024,72]{3,2,1,0:T(8,128)(2,1)}) tuple(%next, %another.3)
}

%condition (arg: (s32[], bf16[2,16,1024,72])) -> pred[] {
  %arg = (s32[]{:T(128)}, bf16[2,16,1024,72]{3,2,1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %less = pred[]{:T(512)} constant(true)
}

ENTRY %main (q: bf16[2,16,1024,72]) -> bf16[2,16,1024,72] {
  %q = bf16[2,16,1024,72]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0), backend_config={"estimated_cycles":"7"}
  %init = (s32[]{:T(128)}, bf16[2,16,1024,72]{3,2,1,0:T(8,128)(2,1)}) tuple(%zero, %q)
  %loop = (s32[]{:T(128)}, bf16[2,16,1024,72]{3,2,1,0:T(8,128)(2,1)}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"28"}}
  ROOT %y = bf16[2,16,1024,72]{3,2,1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_run():
    found = estimate(TEXT)
    assert found.cycles == 28 * 110 + 7
    assert found.others == 28


def test_kernels_are_told_by_their_shapes():
    """Heads first, and where the tokens lie along the lanes; one for dk and dv, and one for dq beside them."""
    kinds = ("fwd", "dkv", "dqkv")
    assert estimate(TEXT).kernels == tuple(Kernel(kind, 32, 1024, 256, 72, 28) for kind in kinds)


@pytest.mark.parametrize(("chip", "width"), [("v5e", 128), ("v6e", 256)])
def test_heads_of_72_fill_a_matrix_unit_in_part(chip, width):
    kernel = Kernel("fwd", 1, 1000, 500, 72, 1)
    assert kernel.flops() == 4 * 1000 * 500 * 72
    assert kernel.flops(HARDWARE[chip].matrix_rows) == 4 * 1000 * 500 * width


def test_seconds():
    found, v5e = estimate(TEXT), HARDWARE["v5e"]
    products = 2 * (2 + 4 + 5) * 32 * 1024 * 256 * 128 * 28
    assert found.kernel_flops(v5e) == products
    assert found.seconds(v5e) == pytest.approx(found.cycles / 1.5e9 + products / 197e12)
    assert found.seconds(HARDWARE["h200"]) is None
