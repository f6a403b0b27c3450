"""Key/value compression that leaves no weights in a file, so that options tell it."""

import os

import pytest
import torch
from conversion.test_convert import SMALL, convert, load_torch
from golden_cases import GOLDEN

from pixart_jax.conversion.stored import read_stored_model
from tools.convert import main

KV = ["--kv-ratio=2", "--kv-from=1"]


@pytest.mark.parametrize("sampling", ["ave", "uniform", "uniform_every"])
def test_a_compression_that_leaves_no_weights_is_told(sampling, tmp_path, capsys):
    """It is kept in model.json, said when the file cannot tell it, and refused by what has none."""
    source = str(GOLDEN / "sigma_plain.pth")
    convert(source, tmp_path / "model", *SMALL, *KV, f"--kv-sampling={sampling}")
    model = read_stored_model(tmp_path / "model").model
    assert (model.kv_sampling, set(model.kv_compress[1:]), model.kv_compress[0]) == (sampling, {2}, 1)
    capsys.readouterr()
    convert(tmp_path / "model", tmp_path / "x.pth", "--to=pixart")
    assert f"to convert back: --kv-sampling {sampling} --kv-ratio 2 --kv-from 1" in capsys.readouterr().out
    before, after = (load_torch(path)["state_dict"] for path in (source, tmp_path / "x.pth"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert main([str(tmp_path / "model"), str(tmp_path / "out"), "--to=diffusers"]) == 2
    assert "no key/value compression" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case,options,message",
    [
        ("sigma_plain", ["--kv-sampling=conv"], "has no weights of a convolution"),
        ("sigma_plain", KV, "pass --kv-sampling too"),
        ("sigma_plain", ["--kv-sampling=ave", "--kv-from=99"], "--kv-from 99"),
        ("sigma_plain", ["--kv-sampling=ave", "--kv-ratio=1"], "--kv-ratio 1"),
        ("sigma_plain", ["--kv-sampling=ave", "--kv-ratio=0"], "--kv-ratio 0"),
        ("sigma_kv_compress", ["--kv-sampling=uniform"], "has weights of a convolution"),
    ],
)
def test_a_compression_that_contradicts_the_file_is_refused(case, options, message, tmp_path, capsys):
    assert main([str(GOLDEN / f"{case}.pth"), str(tmp_path / "model"), *SMALL, *options]) == 2
    assert message in capsys.readouterr().err and not os.listdir(tmp_path)


@pytest.mark.parametrize("option", ["--kv-sampling=ave", "--kv-ratio=2", "--kv-from=0"])
def test_a_compression_that_diffusers_does_not_have_is_refused(option, tmp_path, capsys):
    convert(GOLDEN / "sigma_plain.pth", tmp_path / "diffusers", *SMALL, "--to=diffusers")
    capsys.readouterr()
    assert main([str(tmp_path / "diffusers"), str(tmp_path / "model"), *SMALL, option]) == 2
    assert "compresses no keys and values; leave" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["diffusers"]
