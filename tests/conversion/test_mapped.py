"""What conversion wrote is computed with where it lies on disk; what was written otherwise is still read."""

import sys
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from golden_cases import GOLDEN
from jax.sharding import SingleDeviceSharding

from pixart_jax.conversion.checksums import write_checksums
from pixart_jax.conversion.mapped import mapped_arrays
from pixart_jax.conversion.stored_arrays import StoredArrays, restore_tree, stored_leaves, write_params
from pixart_jax.errors import InputError
from tools import convert

RNG = np.random.default_rng(0)
ARRAYS = {
    "blocks_0/kernel": RNG.standard_normal((3, 8, 16)).astype(np.float32),
    "blocks_0/bias": np.zeros((3, 16), np.float32),
    "t/kernel": RNG.standard_normal((8, 4)).astype(ml_dtypes.bfloat16),
    "t/one": np.ones(1, np.float32),
}


def write_as_before(path):
    """As `write_params` did: OCDBT, where no file is an array."""
    tree = {"blocks_0": {}, "t": {}}
    for name, array in ARRAYS.items():
        first, second = name.split("/")
        tree[first][second] = array
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
        checkpointer.save(path, tree)
    write_checksums(path, ARRAYS)


@pytest.fixture(params=[write_as_before, lambda path: write_params(path, ARRAYS)], ids=["ocdbt", "files"])
def params(request, tmp_path):
    request.param(tmp_path / "params")
    return tmp_path / "params"


def abstract():
    sharding = SingleDeviceSharding(jax.devices()[0])
    tree = {"blocks_0": {}, "t": {}}
    for name, array in ARRAYS.items():
        first, second = name.split("/")
        tree[first][second] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    return tree


def test_either_way_gives_what_was_written(params):
    told = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in stored_leaves(params).items()}
    assert told == {name: (array.shape, array.dtype) for name, array in ARRAYS.items()}
    read = StoredArrays(params, {name: array.shape for name, array in ARRAYS.items()}).read_all()
    restored = restore_tree(params, abstract())
    for name, array in ARRAYS.items():
        first, second = name.split("/")
        for found in (read[name], restored[first][second]):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(np.asarray(found), array)


def test_all_that_is_written_is_mapped(tmp_path):
    write_params(tmp_path / "params", ARRAYS)
    found = mapped_arrays(tmp_path / "params", ARRAYS)
    assert found.keys() == ARRAYS.keys()
    assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in found.values())


def test_what_is_mapped_needs_no_orbax(tmp_path, monkeypatch):
    """Which takes a tenth of a second to import."""
    write_params(tmp_path / "params", ARRAYS)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    restored = restore_tree(tmp_path / "params", abstract())
    np.testing.assert_array_equal(restored["t"]["kernel"], ARRAYS["t/kernel"])
    (tmp_path / "params" / "t.one" / "0").unlink()
    with pytest.raises(InputError, match="no Orbax checkpoint, or a damaged one"):
        restore_tree(tmp_path / "params", abstract())


def test_a_step_that_donates_them_changes_no_file(tmp_path):
    """A CPU's arrays are the mapped pages."""
    write_params(tmp_path / "params", ARRAYS)
    tree = restore_tree(tmp_path / "params", abstract())
    stepped = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(tree)
    np.testing.assert_array_equal(stepped["t"]["one"], jnp.full(1, 2.0))
    again = restore_tree(tmp_path / "params", abstract())
    np.testing.assert_array_equal(again["t"]["one"], jnp.ones(1))


@pytest.mark.parametrize("case", ["sigma_plain", "alpha_controlnet"])
def test_what_is_mapped_goes_out_to_pytorch_without_a_word(case, tmp_path):
    """PyTorch warns, once in a process if it is not told otherwise, of memory that it must not write to."""
    convert.main([str(GOLDEN / f"{case}.pth"), str(tmp_path / "ours"), "--num-heads=2", "--family=sigma"])
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not writable")
            assert convert.main([str(tmp_path / "ours"), str(tmp_path / "theirs.pth"), "--to=pixart"]) == 0
    finally:
        torch.set_warn_always(before)
