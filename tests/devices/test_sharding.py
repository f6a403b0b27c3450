"""The mesh follows the hardware, rules cover every parameter, and a step on any mesh is that of one device."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from tiny_run import ROOT, run_python

from pixart_jax.config import default_config
from pixart_jax.devices.sharding import AXES, MeshSpec, arrange_devices, batch_share, make_mesh, tree_shardings
from pixart_jax.errors import InputError
from pixart_jax.models.controlnet import copy_blocks
from pixart_jax.training.program import Program

MESH = AbstractMesh((2, 8, 1, 1), AXES)
SPLIT = AbstractMesh((1, 4, 1, 2), AXES)


# --- The mesh ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Device:
    """What the layout of a mesh asks of a device."""

    id: int
    process_index: int = 0
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "a GPU"


def make_devices(slices, per_slice, per_process=4):
    return [Device(i, i // per_process, i // per_slice) for i in range(slices * per_slice)]


@pytest.mark.parametrize(
    "spec,shape",
    [
        (MeshSpec(), (8, 1, 1, 1)),
        (MeshSpec(fsdp=4), (2, 4, 1, 1)),
        (MeshSpec(data=1, fsdp=2, context=2, tensor=2), (1, 2, 2, 2)),
        (MeshSpec(context=4), (2, 1, 4, 1)),
    ],
)
def test_data_takes_what_the_other_axes_leave(spec, shape):
    assert spec.shape(8) == arrange_devices(spec, make_devices(1, 8)).shape == shape


@pytest.mark.parametrize(
    "spec,message",
    [
        (MeshSpec(fsdp=3), "config.mesh.fsdp = 3 must divide the number of devices, 8"),
        (MeshSpec(fsdp=4, tensor=4), "config.mesh.fsdp = 4 times config.mesh.tensor = 4 must divide the number of"),
        (MeshSpec(data=2, fsdp=2), "config.mesh.data = 2 times config.mesh.fsdp = 2 must be the number of devices, 8"),
        (MeshSpec(data=1), "config.mesh.data = 1 must be the number of devices, 8; with config.mesh.data=-1"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        spec.shape(8)


def slices_along(array, axis):
    """In how many slices the neighbours along an axis lie, at most."""
    rows = np.moveaxis(array, AXES.index(axis), -1).reshape(-1, array.shape[AXES.index(axis)])
    return max(len({device.slice_index for device in row}) for row in rows)


@pytest.mark.parametrize(
    "spec,data,fsdp",
    [(MeshSpec(fsdp=4, tensor=2), 2, 1), (MeshSpec(fsdp=8, context=2), 1, 2), (MeshSpec(), 2, 1)],
    ids=str,
)
def test_only_data_goes_between_slices_and_fsdp_if_it_must(spec, data, fsdp):
    devices = make_devices(2, 8)
    array = arrange_devices(spec, devices)
    assert array.shape == spec.shape(16) and {device.id for device in array.flat} == set(range(16))
    assert [slices_along(array, axis) for axis in AXES] == [data, fsdp, 1, 1]


def test_context_and_tensor_stay_within_a_slice():
    with pytest.raises(InputError, match=r"config.mesh: 16 devices lie in 4 slices.*context = 8 .*stay within one"):
        arrange_devices(MeshSpec(context=8), make_devices(4, 4))


# --- What each process reads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec,shares",
    [
        (MeshSpec(fsdp=4), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (MeshSpec(tensor=4), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        # An image is on two processes, or on all.
        (MeshSpec(context=8), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        (MeshSpec(context=4, tensor=4), [(0, 1)] * 4),
    ],
    ids=str,
)
def test_processes_with_the_same_images_read_the_same_share(spec, shares):
    mesh = make_mesh(spec, make_devices(1, 16))
    assert [batch_share(mesh, process) for process in range(4)] == shares


def test_processes_that_share_some_images_only_are_refused():
    mesh = make_mesh(MeshSpec(context=6), make_devices(1, 12))
    with pytest.raises(InputError, match=r"config.mesh.context = 6 and config.mesh.tensor = 1: .* over 3 processes"):
        batch_share(mesh, 0)


# --- The state --------------------------------------------------------------------------------------------------------


def state_of(mesh=MESH, optimizer="adamw", **model):
    config = default_config()
    config.optimizer.name = optimizer
    config.model.update(model)
    return Program(config, mesh).state


@pytest.mark.parametrize("mesh", [MESH, SPLIT], ids=["fsdp", "fsdp and tensor"])
@pytest.mark.parametrize(
    "copies,settings",
    [
        (4, {"micro_condition": True}),
        (4, {"kv_compress_ratio": 2, "qk_norm": True, "max_text_tokens": 300}),
        (4, {"num_classes": 1000, "adaln": "full"}),
        (3, {"optimizer": "came", "kv_compress_ratio": 2, "qk_norm": True, "max_text_tokens": 300}),
    ],
    ids=str,
)
def test_full_size_state_is_an_eighth_on_each_device(mesh, copies, settings):
    """XL/2, nothing allocated. What stays whole (vectors) is less than a hundredth of the whole; what "tensor" does not
    split (embedders, modulation), a fiftieth of a PixArt and a third of a DiT."""
    leaves = jax.tree.leaves(state_of(mesh, **settings))
    total = sum(leaf.size for leaf in leaves)
    per_device = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves)
    assert total > copies * 600e6
    modulation = 1.35 if mesh is SPLIT and settings.get("adaln") == "full" else 1.07
    assert total / 8 <= per_device < total / 8 * modulation


def test_rules_split_pairs_of_matrices_over_tensor():
    params = state_of(SPLIT).params
    block = jax.tree.map(lambda leaf: leaf.sharding.spec, params["blocks_0"])
    first, second = PartitionSpec(None, "fsdp", "tensor"), PartitionSpec(None, "tensor", "fsdp")
    fused = PartitionSpec(None, ("fsdp", "tensor"), None)
    assert block["mlp"]["fc1"]["kernel"] == block["cross_attn"]["q_linear"]["kernel"] == first
    assert block["mlp"]["fc2"]["kernel"] == block["attn"]["proj"]["kernel"] == second
    assert block["cross_attn"]["proj"]["kernel"] == second
    assert block["attn"]["qkv"]["kernel"] == block["cross_attn"]["kv_linear"]["kernel"] == fused
    assert block["scale_shift_table"] == PartitionSpec(None, None, "fsdp")
    assert block["mlp"]["fc1"]["bias"] == PartitionSpec()
    assert params["t_block"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp")


def by_path(specs):
    leaves, _ = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda s: isinstance(s, PartitionSpec))
    return {jax.tree_util.keystr(path): spec for path, spec in leaves}


@pytest.mark.parametrize("optimizer", ["adamw", "came", "muon", "schedule_free"])
def test_optimizer_state_and_ema_lie_where_their_parameters_lie(optimizer):
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state_of(SPLIT, optimizer))
    assert specs.params == specs.ema_params
    if optimizer == "schedule_free":
        assert specs.opt_state[1][0].z == specs.params
        return
    # Muon's in two parts, of matrices and of the rest.
    parts = [s for s in jax.tree.leaves(specs.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    assert len(parts) == (2 if optimizer == "muon" else 1)
    momenta = [by_path(part.mu) for part in parts]
    assert sum(map(len, momenta)) == len(by_path(specs.params))
    assert {path: spec for part in momenta for path, spec in part.items()} == by_path(specs.params)
    moments = parts[0]
    if optimizer == "adamw":
        assert moments.nu == specs.params
    elif optimizer == "came":
        assert set(jax.tree.leaves(moments.statistics, is_leaf=lambda s: isinstance(s, PartitionSpec))) == {
            PartitionSpec()
        }


def test_a_controlnet_lies_as_its_base_does():
    params = state_of(SPLIT).params
    copies = jax.eval_shape(copy_blocks, params)
    specs = jax.tree.map(lambda sharding: sharding.spec, tree_shardings(copies, SPLIT))
    block = jax.tree.map(lambda leaf: leaf.sharding.spec, params["blocks_0"])
    assert {name: specs["copies"][name] for name in block} == block
    assert specs["copies"]["after_proj"]["kernel"] == PartitionSpec(None, None, "fsdp")


def test_an_axis_that_does_not_divide_stays_whole():
    def spec(path, shape, mesh=SPLIT):
        tree = {path: jax.ShapeDtypeStruct(shape, np.float32)}
        return tree_shardings(tree, mesh)[path].spec

    assert spec("kernel", (16, 12), MESH) == PartitionSpec()
    assert spec("fc1/kernel", (6, 12)) == PartitionSpec(None, "tensor")
    # Four parts fit, eight do not.
    assert spec("attn/qkv/kernel", (12, 36)) == PartitionSpec("fsdp", None)


def test_uncovered_parameter_is_an_error():
    shapes = {"blocks_0": {"mystery": jax.ShapeDtypeStruct((16, 16), np.float32)}}
    with pytest.raises(ValueError, match="no partition rule covers blocks_0/mystery"):
        tree_shardings(shapes, MESH)


# --- The step ---------------------------------------------------------------------------------------------------------


def test_a_step_on_any_mesh_is_that_of_one_device():
    """On 8 simulated devices: loss and gradients to 1e-5, and all of the state and the batch where they belong."""
    printed = run_python(ROOT / "tests" / "train_on_devices.py", devices=8)
    assert printed.splitlines() == [
        "full data=8",
        "full data=2 fsdp=2 tensor=2",
        "full fsdp=2 context=4",
        "routed muon weighed data=2 fsdp=2 context=2",
        "aligned fsdp=2 context=4",
        "lora data=2 fsdp=4",
        "controlnet data=2 fsdp=4",
        "consistency data=2 fsdp=4",
        "matching data=2 fsdp=4",
        "flow averaged data=2 fsdp=4",
    ]
