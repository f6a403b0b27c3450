"""tools.aot_hlo: modules whose traffic is counted by hand, and XLA's own count where there is no loop."""

import jax
import jax.numpy as jnp
import pytest

from tools.aot_hlo import array_bytes, count_traffic, group_size, padded_bytes, tuple_elements

# As the TPU compiler prints them, cut down: names, layouts, memory spaces and asynchronous pairs are its own.
MODULE = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%x, %y)
}

%slice_layer (p0: bf16[10,64,128], p1: s32[]) -> bf16[1,64,128] {
  %p0 = bf16[10,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %layer = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,128}
}

%keep_layer (p0: f32[10,128], p1: f32[128], p2: s32[]) -> f32[10,128] {
  %p0 = f32[10,128]{1,0:T(8,128)} parameter(0)
  %p1 = f32[128]{0:T(128)} parameter(1)
  %row = f32[1,128]{1,0:T(1,128)} bitcast(%p1)
  %p2 = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %kept = f32[10,128]{1,0:T(8,128)} dynamic-update-slice(%p0, %row, %p2, %zero)
}

%all-reduce-scatter.1 (p: f32[128]) -> f32[32] {
  %p = f32[128]{0:T(128)} parameter(0)
  %reduced = f32[128]{0:T(128)} all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  %place = s32[]{:T(128)} constant(0)
  ROOT %part = f32[32]{0:T(128)} dynamic-slice(%reduced, %place), dynamic_slice_sizes={32}
}

%body (arg: (s32[], bf16[10,64,128], /*index=2*/f32[10,128])) -> (s32[], bf16[10,64,128], f32[10,128]) {
  %arg = (s32[]{:T(128)}, bf16[10,64,128]{2,1,0:T(8,128)(2,1)}, f32[10,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %weights = bf16[10,64,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %rows = f32[10,128]{1,0:T(8,128)} get-tuple-element(%arg), index=2
  %weight = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} fusion(%weights, %i), kind=kLoop, calls=%slice_layer
  %gather-start = (bf16[1,64,128]{2,1,0:T(8,128)(2,1)}, bf16[1,256,128]{2,1,0:T(8,128)(2,1)S(1)}) all-gather-start(%weight), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}
  %gathered = bf16[1,256,128]{2,1,0:T(8,128)(2,1)S(1)} all-gather-done(%gather-start)
  %row = f32[128]{0:T(128)} custom-call(%gathered), custom_call_target="tpu_custom_call"
  %updated = f32[10,128]{1,0:T(8,128)} fusion(%rows, %row, %i), kind=kLoop, calls=%keep_layer
  %part = f32[32]{0:T(128)} fusion(%row), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[]{:T(128)}, bf16[10,64,128]{2,1,0:T(8,128)(2,1)}, f32[10,128]{1,0:T(8,128)}) tuple(%i, %weights, %updated)
}

%condition (arg: (s32[], bf16[10,64,128], f32[10,128])) -> pred[] {
  %arg = (s32[]{:T(128)}, bf16[10,64,128]{2,1,0:T(8,128)(2,1)}, f32[10,128]{1,0:T(8,128)}) parameter(0)
  ROOT %less = pred[]{:T(512)} constant(true)
}

ENTRY %main (w: bf16[10,64,128], r: f32[10,128]) -> f32[10,128] {
  %w = bf16[10,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %r = f32[10,128]{1,0:T(8,128)} parameter(1)
  %start = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[10,64,128]{2,1,0:T(8,128)(2,1)}, f32[10,128]{1,0:T(8,128)}) tuple(%start, %w, %r)
  %loop = (s32[]{:T(128)}, bf16[10,64,128]{2,1,0:T(8,128)(2,1)}, f32[10,128]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"},"used_scoped_memory_configs":[]}
  %rows = f32[10,128]{1,0:T(8,128)} get-tuple-element(%loop), index=2
  %sum = f32[10,128]{1,0:T(8,128)} all-reduce(%rows), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %near = f32[10,128]{1,0:T(8,128)S(1)} copy(%sum)
  ROOT %sent = f32[10,128]{1,0:T(8,128)} collective-permute(%near), channel_id=4, source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501
LAYER, ROWS, ROW = 2 * 64 * 128, 4 * 10 * 128, 4 * 128


def test_collectives_count_as_often_as_their_loop_runs():
    traffic = count_traffic(MODULE, 8)
    assert traffic.collective_counts == {
        "all-gather": 10, "reduce-scatter": 10, "all-reduce": 1, "collective-permute": 1
    }  # fmt: skip
    assert traffic.collective_bytes == {
        "all-gather": 10 * 3 * LAYER,
        "reduce-scatter": 10 * ROW * 3 / 4,
        "all-reduce": ROWS * 2 * 7 / 8,
        "collective-permute": ROWS,
    }
    assert traffic.unknown_loops == 0


def test_memory_counts_slices_and_leaves_out_what_stays_on_the_chip():
    i = 4  # The loop's counter.
    slicing = LAYER + i + LAYER
    gathering = LAYER  # Its result lies in space 1.
    kernel = ROW
    updating = ROW + i + ROW
    scattering = ROW + ROW // 4
    rows = ROWS // 10 * 16  # Tiles of eight.
    after = 2 * rows + rows + rows  # The sum; its copy into space 1; from there to the other device.
    assert count_traffic(MODULE, 8).memory_bytes == 10 * (slicing + gathering + kernel + updating + scattering) + after


def test_a_loop_that_does_not_say_how_often_it_runs_is_told():
    traffic = count_traffic(MODULE.replace('"known_trip_count":{"n":"10"},', ""), 8)
    assert traffic.unknown_loops == 1
    assert traffic.collective_counts["all-gather"] == 1


def test_agrees_with_xla_where_there_is_no_loop():
    """Products of matrices, with element-wise work for XLA to fuse, on a CPU: its memory has no spaces."""

    def function(x, w, v):
        hidden = jax.nn.gelu(x @ w)
        return jax.lax.dynamic_slice(hidden, (3, 0), (8, 96)) @ v, hidden.sum(0)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 48), (48, 96), (96, 32))]
    compiled = jax.jit(function).lower(*shapes).compile()
    ours = count_traffic(compiled.as_text(), 1).memory_bytes
    assert ours == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.02)


# A gather that runs beside a product: the compiler prints it where it starts, in the product and where it is awaited.
# The loop's length stands in its condition alone.
BESIDE = """HloModule jit_step, is_scheduled=true

%start (p: bf16[120,32]) -> (bf16[120,32], bf16[120,64], u32[]) {
  %p = bf16[120,32]{0,1:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[120,64]{0,1:T(8,128)(2,1)} all-gather(%p), channel_id=71, replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_1'}, dimensions={1}
  ROOT %begun = (bf16[120,32]{0,1:T(8,128)(2,1)}, bf16[120,64]{0,1:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[120,32], q: bf16[120,64], x: f32[256]) -> (f32[256], bf16[120,32], bf16[120,64]) {
  %p = bf16[120,32]{0,1:T(8,128)(2,1)} parameter(0)
  %q = bf16[120,64]{0,1:T(8,128)(2,1)} parameter(1)
  %x = f32[256]{0:T(256)} parameter(2)
  %y = f32[256]{0:T(256)} multiply(%x, %x)
  %gather.2 = bf16[120,64]{0,1:T(8,128)(2,1)} all-gather(%p), channel_id=71, replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_1'}, dimensions={1}
  ROOT %both = (f32[256]{0:T(256)}, bf16[120,32]{0,1:T(8,128)(2,1)}, bf16[120,64]{0,1:T(8,128)(2,1)}) tuple(%y, %p, %gather.2)
}

%done (p: bf16[120,32], q: bf16[120,64]) -> bf16[120,64] {
  %p = bf16[120,32]{0,1:T(8,128)(2,1)} parameter(0)
  %q = bf16[120,64]{0,1:T(8,128)(2,1)} parameter(1)
  %gather.3 = bf16[120,64]{0,1:T(8,128)(2,1)} all-gather(%p), channel_id=71, replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_1'}, dimensions={1}
  ROOT %ended = bf16[120,64]{0,1:T(8,128)(2,1)} custom-call(%p, %q, %gather.3), custom_call_target="AsyncCollectiveDone"
}

%body (arg: (s32[], bf16[120,32], f32[256])) -> (s32[], bf16[120,32], f32[256]) {
  %arg = (s32[]{:T(128)}, bf16[120,32]{0,1:T(8,128)(2,1)}, f32[256]{0:T(256)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %p = bf16[120,32]{0,1:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %x = f32[256]{0:T(256)} get-tuple-element(%arg), index=2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %s = (bf16[120,32]{0,1:T(8,128)(2,1)}, bf16[120,64]{0,1:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%start
  %s0 = bf16[120,32]{0,1:T(8,128)(2,1)} get-tuple-element(%s), index=0
  %s1 = bf16[120,64]{0,1:T(8,128)(2,1)} get-tuple-element(%s), index=1
  %m = (f32[256]{0:T(256)}, bf16[120,32]{0,1:T(8,128)(2,1)}, bf16[120,64]{0,1:T(8,128)(2,1)}) fusion(%s0, %s1, %x), kind=kOutput, calls=%async_collective_fusion.1
  %m0 = f32[256]{0:T(256)} get-tuple-element(%m), index=0
  %d = bf16[120,64]{0,1:T(8,128)(2,1)} fusion(%s0, %s1), kind=kCustom, calls=%done
  ROOT %end = (s32[]{:T(128)}, bf16[120,32]{0,1:T(8,128)(2,1)}, f32[256]{0:T(256)}) tuple(%next, %p, %m0)
}

%condition (arg: (s32[], bf16[120,32], f32[256])) -> pred[] {
  %arg = (s32[]{:T(128)}, bf16[120,32]{0,1:T(8,128)(2,1)}, f32[256]{0:T(256)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %limit = s32[]{:T(128)} constant(28)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[120,32], x: f32[256]) -> f32[256] {
  %p = bf16[120,32]{0,1:T(8,128)(2,1)} parameter(0)
  %x = f32[256]{0:T(256)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %first = s32[]{:T(128)} copy(%zero)
  %init = (s32[]{:T(128)}, bf16[120,32]{0,1:T(8,128)(2,1)}, f32[256]{0:T(256)}) tuple(%first, %p, %x)
  %loop = (s32[]{:T(128)}, bf16[120,32]{0,1:T(8,128)(2,1)}, f32[256]{0:T(256)}) while(%init), condition=%condition, body=%body
  ROOT %y = f32[256]{0:T(256)} get-tuple-element(%loop), index=2
}
"""  # noqa: E501


def test_a_collective_beside_other_work_counts_once():
    traffic = count_traffic(BESIDE, 4)
    part = 2 * 120 * 32
    assert traffic.collective_counts == {"all-gather": 28}
    assert traffic.collective_bytes == {"all-gather": 28 * part}
    part = 2 * 128 * 32  # In tiles of 128.
    counter = 4 + 4  # Read, with the constant; its new value lies elsewhere.
    assert traffic.memory_bytes == 28 * (part + 2 * part + 2 * 4 * 256 + counter) + 4 + 4
    assert traffic.unknown_loops == 0


def test_collectives_of_one_channel_are_as_many_as_are_printed():
    """Blocks that the compiler wrote out of one loop's body share their channels."""
    gather = "all-gather(%p), channel_id=71, replica_groups=[2,2]<=[4], dimensions={1}"
    twice = "".join(f"  %alone.{n} = bf16[120,64]{{0,1:T(8,128)(2,1)}} {gather}\n" for n in (1, 2))
    zero = "  %zero = s32[]{:T(128)} constant(0)\n"
    assert count_traffic(BESIDE.replace(zero, zero + twice), 4).collective_counts == {"all-gather": 28 + 2}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=NE"),
        ("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(2)"),
    ],
)
def test_only_counters_by_one_are_trusted(old, new):
    assert old in BESIDE
    assert count_traffic(BESIDE.replace(old, new), 4).unknown_loops == 1


def test_a_loop_whose_first_pass_was_taken_out():
    assert count_traffic(BESIDE.replace("constant(0)", "constant(1)"), 4).collective_counts == {"all-gather": 27}


def test_what_goes_to_other_slices():
    """Handed to the runtime in every pass of a loop, beside a transfer to the host that is none of it."""
    row = "%row = f32[128]{0:T(128)} custom-call"
    sends = "".join(
        f"  %{name}.send = (f32[64,128]{{1,0}}, u32[], token[]) send(%half, %token), channel_id={channel}, "
        f'is_host_transfer=true, frontend_attributes={{_xla_host_transfer_handler_name="{name}"}}\n'
        for name, channel in (("xla_megascale_runtime", 11), ("tpu_host_transfer", 12))
    )
    half = "  %half = f32[64,128]{1,0} convert(%weight)\n  %token = token[] after-all()\n"
    assert row in MODULE
    traffic = count_traffic(MODULE.replace(f"  {row}", f"{half}{sends}  {row}"), 8)
    assert traffic.collective_bytes["between-slices"] == 10 * 4 * 64 * 128
    assert traffic.collective_counts["between-slices"] == 10


def test_types():
    assert array_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
    assert array_bytes("(f32[2,3]{1,0}, pred[5]{0}, s4[10]{0}, f8e4m3fn[4]{0}, token[])") == 24 + 5 + 5 + 4
    assert padded_bytes("(f32[2]{0:T(128)S(1)}, f32[3]{0:T(128)})", main_memory=True) == 12
    # Heads of 72 fill lanes of 128, unless the tokens lie along them.
    assert padded_bytes("bf16[3,20,72]{2,1,0:T(8,128)(2,1)}") == 3 * 24 * 128 * 2
    assert padded_bytes("bf16[3,128,72]{1,2,0:T(8,128)(2,1)}") == 3 * 128 * 72 * 2
    nested = "((f32[2]{0}, s32[]{:T(128)}), f32[4,8]{1,0:T(4,128)}, u32[])"
    assert tuple_elements(nested) == ["(f32[2]{0}, s32[]{:T(128)})", "f32[4,8]{1,0:T(4,128)}", "u32[]"]


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,2},{1,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("{}", 16),
        ("mesh['axis_0'=2,'axis_1'=3,'axis_2'=4] {'axis_0','axis_2'}", 8),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_1'}", 2),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", 4),
    ],
)
def test_devices_of_a_collective(groups, size):
    assert group_size(f", channel_id=1, replica_groups={groups}, dimensions={{0}}", 16) == size


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="is it HLO"):
        count_traffic("nothing", 1)
    with pytest.raises(ValueError, match="devices of a collective"):
        count_traffic(MODULE.replace("replica_groups={{0,1,2,3,4,5,6,7}}", "replica_groups=other"), 8)
