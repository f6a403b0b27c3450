"""What conversion has written comes back as it was written, or an error names where it does not."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conversion.test_encoders import make_pipeline
from golden_cases import GOLDEN

from pixart_jax.conversion.encoders import open_encoder, restore_text_encoder, restore_vae
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import StoredParams, read_stored_model, restore_params
from pixart_jax.conversion.transfer import load_weights
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.errors import InputError
from pixart_jax.models.params import abstract_params, kernels_as
from tools.convert import main

DTYPES = [jnp.float32, jnp.bfloat16]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.local_devices())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make_pipeline(folder / "pipeline")
    assert main([str(folder / "pipeline"), str(folder / "model"), "--family=sigma"]) == 0
    control = [str(GOLDEN / "alpha_controlnet.pth"), str(folder / "control"), "--num-heads=2", "--family=alpha"]
    assert main(control) == 0
    return folder


def restored(model, part, dtype, mesh):
    """As drawing opens a part."""
    if part == "text_encoder":
        return restore_text_encoder(model / part, mesh, dtype=dtype)[1]
    if part == "vae":
        return restore_vae(model / part, mesh, dtype=dtype)[1]
    return restore_params(model, kernels_as(dtype, abstract_params(read_stored_model(model).model, mesh)))


def read(model, part):
    """As conversion reads it."""
    if part == "controlnet":
        weights = load_weights(open_source(model))
        return {path: weights.control.read(path) for path in weights.control.paths}
    if part:
        return open_encoder(model / part, part).arrays.read_all()
    return StoredParams(model / "params", read_stored_model(model).model).read_all()


def flip(params):
    """One bit of the file that holds most."""
    path = max(params.glob("*/0*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["", "text_encoder", "vae", "controlnet"])
def test_one_flipped_bit_is_noticed(part, whole, tmp_path, mesh):
    model = shutil.copytree(whole / ("control" if part == "controlnet" else "model"), tmp_path / "model")
    flip(model / part / "params")
    message = rf"{model / part / 'params'}: .* is damaged: its numbers are not those that were written; convert the"
    with pytest.raises(InputError, match=message):
        read(model, part)
    for dtype in DTYPES if part != "controlnet" else ():
        with pytest.raises(InputError, match=message):
            restored(model, part, dtype, mesh)


@pytest.mark.parametrize("part", ["", "text_encoder", "vae"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_written_before_there_were_checksums_opens_as_ever(part, dtype, whole, tmp_path, mesh):
    """And gives the same numbers, in whichever dtype."""
    model = shutil.copytree(whole / "model", tmp_path / "model")
    (model / part / "params/checksums.json").unlink()
    ours, before = (jax.tree.leaves(restored(folder, part, dtype, mesh)) for folder in (whole / "model", model))
    for one, other in zip(ours, before, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("change", [b"{", b"[]", b'{"crc32": 1}', b'{"crc32": 1, "arrays": 3}', None])
def test_damaged_checksums(change, whole, tmp_path):
    model = shutil.copytree(whole / "model", tmp_path / "model")
    path = model / "params/checksums.json"
    if change is None:
        fields = json.loads(path.read_text())
        next(iter(fields["arrays"]["params"].values()))[2] += 1
        change = json.dumps(fields).encode()
    path.write_bytes(change)
    with pytest.raises(InputError, match=r"params/checksums\.json is damaged: .*; convert the weights again"):
        read(model, "")


def test_what_orbax_says_of_them_is_not_needed(whole, tmp_path, mesh):
    """All arrays are there, and each is what was written."""
    model = shutil.copytree(whole / "model", tmp_path / "model")
    (model / "params/_METADATA").write_bytes(b"{")
    for ours, other in zip(
        *(jax.tree.leaves(restored(m, "", jnp.float32, mesh)) for m in (model, whole / "model")), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(other))


@pytest.mark.parametrize("name", ["blocks_0.attn.proj.kernel/.zarray", "blocks_0.attn.proj.kernel/0*"])
@pytest.mark.parametrize("size", [0, 0.5, 0.9])
def test_files_that_are_cut(name, size, whole, tmp_path, mesh):
    model = shutil.copytree(whole / "model", tmp_path / "model")
    path = next((model / "params").glob(name))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * size)])
    with pytest.raises(InputError, match="damaged"):
        restored(model, "", jnp.float32, mesh)
    with pytest.raises(InputError, match="damaged"):
        read(model, "")


BAD = [float("nan"), float("inf"), -float("inf"), 1e300]
NAMES = ["t_block.1.weight", "blocks.1.attn.qkv.weight", "blocks.0.scale_shift_table", "y_embedder.y_embedding"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", BAD)
def test_numbers_that_are_not_finite_are_refused(name, value, tmp_path, capsys):
    state_dict = torch.load(GOLDEN / "sigma_plain.pth")
    state_dict = state_dict.get("state_dict", state_dict)
    # 1e300 is a float64 that float32 has no number for.
    state_dict[name] = state_dict[name].double()
    state_dict[name].view(-1)[-1] = value
    torch.save(state_dict, tmp_path / "x.pth")
    for target in ("orbax", "diffusers", "pixart"):
        command = [str(tmp_path / "x.pth"), str(tmp_path / "out"), f"--to={target}", "--num-heads=2", "--family=sigma"]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"x.pth: {name}: 1 of" in error and "NaN or infinite as float32" in error
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("value", BAD[:2])
def test_of_every_part(part, value, tmp_path, capsys):
    import safetensors.torch

    pipeline = make_pipeline(tmp_path / "pipeline")
    path = min((pipeline / part).glob("*.safetensors"))
    tensors = safetensors.torch.load_file(path)
    name = next(name for name, tensor in tensors.items() if "pos_embed" not in name and tensor.numel() > 1)
    tensors[name].view(-1)[0] = value
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    assert main([str(pipeline), str(tmp_path / "out"), "--family=sigma"]) == 2
    assert f"{name}: 1 of" in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_of_ours_that_holds_them_goes_nowhere(value, whole, tmp_path, capsys):
    """As conversion wrote it before it looked."""
    from pixart_jax.conversion.stored import write_model

    weights = load_weights(open_source(whole / "model"))
    params = {path: np.array(weights.read(path)) for path in weights.paths}
    params["final_layer/linear/bias"][0] = value
    write_model(tmp_path / "model", weights.stored, params)
    for target in ("orbax", "diffusers", "pixart"):
        assert main([str(tmp_path / "model"), str(tmp_path / "out"), f"--to={target}"]) == 2
        assert "model: final_layer/linear/bias: 1 of" in capsys.readouterr().err
