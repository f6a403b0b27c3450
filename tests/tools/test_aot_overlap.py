"""What collectives have to run beside, read off the schedule of a compiled program."""

import pytest

from pixart_jax.devices.hardware import HARDWARE
from tools.aot_hlo import count_traffic
from tools.aot_overlap import count_overlap

# As the TPU compiler prints them, cut down. Of four chips each gathers 2 MB from three others, in a loop beside a
# product, and scatters a sum behind it; then it permutes in the entry's pair, and reduces.
TEXT = """HloModule jit_step, is_scheduled=true

%begin (p: bf16[1024,1024]) -> (bf16[1024,1024], bf16[4096,1024]) {
  %p = bf16[1024,1024]{1,0} parameter(0)
  %gather.1 = bf16[4096,1024]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %begun = (bf16[1024,1024]{1,0}, bf16[4096,1024]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[1024,1024], q: bf16[4096,1024], x: f32[256]) -> (f32[256], bf16[4096,1024]) {
  %p = bf16[1024,1024]{1,0} parameter(0)
  %q = bf16[4096,1024]{1,0} parameter(1)
  %x = f32[256]{0} parameter(2)
  %y = f32[256]{0} multiply(%x, %x)
  %gather.2 = bf16[4096,1024]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %both = (f32[256]{0}, bf16[4096,1024]{1,0}) tuple(%y, %gather.2)
}

%wait (p: bf16[1024,1024], q: bf16[4096,1024]) -> bf16[4096,1024] {
  %p = bf16[1024,1024]{1,0} parameter(0)
  %q = bf16[4096,1024]{1,0} parameter(1)
  %gather.3 = bf16[4096,1024]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %ended = bf16[4096,1024]{1,0} custom-call(%p, %q, %gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p: bf16[1024,1024]) -> bf16[256,1024] {
  %p = bf16[1024,1024]{1,0} parameter(0)
  %sum = bf16[1024,1024]{1,0} all-reduce(%p), channel_id=3, replica_groups=[1,4]<=[4], to_apply=%add
  %place = s32[] constant(0)
  ROOT %part = bf16[256,1024]{1,0} dynamic-slice(%sum, %place, %place), dynamic_slice_sizes={256,1024}
}

%body (arg: (bf16[1024,1024], f32[256])) -> (bf16[1024,1024], f32[256]) {
  %arg = (bf16[1024,1024]{1,0}, f32[256]{0}) parameter(0)
  %p = bf16[1024,1024]{1,0} get-tuple-element(%arg), index=0
  %x = f32[256]{0} get-tuple-element(%arg), index=1
  %s = (bf16[1024,1024]{1,0}, bf16[4096,1024]{1,0}) fusion(%p), kind=kCustom, calls=%begin
  %s1 = bf16[4096,1024]{1,0} get-tuple-element(%s), index=1
  %m = (f32[256]{0}, bf16[4096,1024]{1,0}) fusion(%p, %s1, %x), kind=kOutput, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"15000"}
  %m0 = f32[256]{0} get-tuple-element(%m), index=0
  %d = bf16[4096,1024]{1,0} fusion(%p, %s1), kind=kCustom, calls=%wait
  %after = bf16[4096,1024]{1,0} copy(%d), backend_config={"estimated_cycles":"900000"}
  %r = bf16[256,1024]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %end = (bf16[1024,1024]{1,0}, f32[256]{0}) tuple(%p, %m0)
}

%condition (arg: (bf16[1024,1024], f32[256])) -> pred[] {
  %arg = (bf16[1024,1024]{1,0}, f32[256]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (p: bf16[1024,1024], x: f32[256]) -> f32[256] {
  %p = bf16[1024,1024]{1,0} parameter(0)
  %x = f32[256]{0} parameter(1)
  %init = (bf16[1024,1024]{1,0}, f32[256]{0}) tuple(%p, %x)
  %permute = (bf16[1024,1024]{1,0}, bf16[1024,1024]{1,0}) collective-permute-start(%p), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %loop = (bf16[1024,1024]{1,0}, f32[256]{0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %permuted = bf16[1024,1024]{1,0} collective-permute-done(%permute)
  %sum = bf16[1024,1024]{1,0} all-reduce(%p), channel_id=2, replica_groups={}, to_apply=%add
  ROOT %y = f32[256]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
V5E = HARDWARE["v5e"]
PART = 2 * 1024**2 / 200e9  # Seconds of a part, at the speed of all links.
WORK = 15000 / 1.5e9  # Less than a gather takes.


def test_collectives_with_and_without_work_beside_them():
    found = count_overlap(TEXT, 4, V5E)
    gather, scatter, permute, reduce = 3 * PART, 3 / 4 * PART, PART, 2 * 3 / 4 * PART
    assert gather > WORK
    assert found.seconds == pytest.approx(10 * (gather + scatter) + permute + reduce)
    # The copy is behind the gather's end; the loop's work hides all of the permutation.
    assert found.exposed_seconds == pytest.approx(10 * (gather - WORK + scatter) + reduce)
    assert (found.pairs, found.alone) == (10 + 1, 10 + 1)


def test_work_is_beside_one_collective_at_a_time():
    """Two that are under way together share the links: what is left of the work when the first is done."""
    second = TEXT.replace(
        "  %m = ",
        "  %n = (bf16[1024,1024]{1,0}, bf16[1024,1024]{1,0}) collective-permute-start(%p), channel_id=11\n  %m = ",
    ).replace("  %after = ", "  %nd = bf16[1024,1024]{1,0} collective-permute-done(%n)\n  %after = ")
    more = count_overlap(second, 4, V5E)
    assert more.exposed_seconds == pytest.approx(count_overlap(TEXT, 4, V5E).exposed_seconds + 10 * PART)


def test_what_is_sent_to_other_slices_has_the_network():
    send = (
        "  %token = token[] after-all()\n"
        "  %send = (bf16[1024,1024]{1,0}, u32[], token[]) send(%p, %token), channel_id=12, "
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}\n'
        "  %sent = token[] send-done(%send), channel_id=12\n"
    )
    last = "  ROOT %y = "
    more = count_overlap(TEXT.replace(last, send + last), 4, V5E)
    assert more.exposed_seconds - count_overlap(TEXT, 4, V5E).exposed_seconds == pytest.approx(2 * 1024**2 / 3.125e9)


def test_a_sparse_core_has_the_collective():
    """As the TPU compiler prints it with xla_tpu_enable_sparse_core_collective_offload_all_reduce."""
    called = """%called (q: bf16[1024,1024], t: token[]) -> bf16[1024,1024] {
  %q = bf16[1024,1024]{1,0} parameter(0)
  %t = token[] parameter(1)
  ROOT %total = bf16[1024,1024]{1,0} all-reduce(%q), channel_id=2, replica_groups={}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY """
    begun = """  %ready = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %sum.call-start = ((bf16[1024,1024]{1,0}, token[]), bf16[1024,1024]{1,0}) call-start(%p, %ready), async_execution_thread="sparsecore", to_apply=%called
  %loop = """  # noqa: E501
    text = TEXT.replace("ENTRY ", called).replace("  %loop = ", begun)
    alone = "all-reduce(%p), channel_id=2, replica_groups={}, to_apply=%add\n  ROOT %y"
    assert alone in text
    text = text.replace(alone, "call-done(%sum.call-start)\n  ROOT %y")
    found, before = count_overlap(text, 4, V5E), count_overlap(TEXT, 4, V5E)
    assert found.seconds == pytest.approx(before.seconds)
    assert (found.pairs, found.alone) == (before.pairs + 1, before.alone - 1)
    assert before.exposed_seconds - found.exposed_seconds == pytest.approx(2 * 3 / 4 * PART)
    assert count_traffic(text, 4).collective_bytes == count_traffic(TEXT, 4).collective_bytes
