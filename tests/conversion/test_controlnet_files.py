"""A ControlNet by itself: between PixArt's .pth and diffusers' research project's folder bit for bit, for α and Σ."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from golden_cases import GOLDEN
from hub_server import Hub, serving
from safetensors.numpy import load_file, save_file

from pixart_jax.conversion.controlnet_files import open_controlnet
from pixart_jax.conversion.stored import read_stored_model
from pixart_jax.errors import InputError
from tools.convert import main

EXTRAS = GOLDEN / "extras"
ALPHA, RESEARCH = EXTRAS / "controlnet_alpha_ms.pth", EXTRAS / "controlnet_alpha_ms_diffusers"
SIGMA = EXTRAS / "controlnet_sigma"
ROOT = pathlib.Path(__file__).parents[2]
FILE = "diffusion_pytorch_model.safetensors"


def convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def assert_same_folder(found, expected):
    ours, theirs = (load_file(folder / FILE) for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (found, expected))
    assert {name: theirs[name] for name in ours} == ours
    assert sorted(path.name for path in found.iterdir()) == ["config.json", FILE]


@pytest.fixture(scope="module")
def alpha(tmp_path_factory):
    """The base alone."""
    folder = tmp_path_factory.mktemp("alpha")
    state = torch.load(ALPHA, weights_only=True)["state_dict"]
    prefix = "base_model."
    base = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    torch.save({"state_dict": base}, folder / "base.pth")
    convert(folder / "base.pth", folder / "model", "--num-heads=2", "--family=alpha")
    return folder / "model"


def test_alpha_from_one_form_to_the_other_and_back(alpha, tmp_path):
    convert(ALPHA, tmp_path / "folder", "--to=controlnet", "--num-heads=2")
    assert_same_folder(tmp_path / "folder", RESEARCH)
    convert(alpha, tmp_path / "again.pth", "--to=pixart", "--controlnet", RESEARCH)
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (ALPHA, tmp_path / "again.pth"))
    assert before.keys() - {"base_model.pos_embed"} == after.keys() - {"base_model.pos_embed"}
    for name in before.keys() - {"base_model.pos_embed"}:
        assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("form", ["directory", "folder in it"])
def test_sigma_beside_its_model_and_by_itself_again(form, tmp_path):
    convert(SIGMA / "transformer", tmp_path / "model", "--family=sigma", "--controlnet", SIGMA / "controlnet")
    source = tmp_path / "model"
    if form == "directory":
        convert(source, tmp_path / "out", "--to=controlnet")
        assert_same_folder(tmp_path / "out", SIGMA / "controlnet")
    else:
        found = open_controlnet(source / "controlnet", read_stored_model(source).model)
        assert found.num_copies == 3
        assert {found.read(path).dtype.name for path in found.paths} == {"float32"}


class Published(Hub):
    """A hub with Σ's ControlNet as them/edges."""

    def exists(self, repo):
        return repo == "them/edges"

    def revision(self, repo, revision):
        files = {path.name: path.read_bytes() for path in (SIGMA / "controlnet").iterdir()} | {"README.md": b"edges"}
        return "a" * 40, files


def test_by_its_id_on_the_hub(tmp_path):
    """In a process of its own, as the hub's client reads its settings when it is imported."""
    with serving(Published) as address:
        settings = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = ["tools.convert", str(SIGMA / "transformer"), "out", "--family=sigma", "--controlnet=them/edges"]
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "them/edges: 2 files" in done.stdout
    convert(tmp_path / "out", tmp_path / "again", "--to=controlnet")
    assert_same_folder(tmp_path / "again", SIGMA / "controlnet")


def changed(folder, change, name="x"):
    """The research project's folder with other arrays."""
    target = shutil.copytree(RESEARCH, folder / name)
    arrays = load_file(target / FILE)
    change(arrays)
    save_file(arrays, target / FILE)
    return target


def renamed(arrays, old, new):
    arrays[new] = arrays.pop(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"controlnet_blocks.1.after_proj.weight": np.zeros((48, 48), np.float32)}),
            r"wrong shape: copies/after_proj/kernel differs between the blocks: .*\(48, 48\)",
        ),
        (lambda s: renamed(s, "controlnet_blocks.0.before_proj.bias", "controlnet_blocks.0.odd"), "takes: 0.odd"),
        (lambda s: s["controlnet_blocks.2.after_proj.bias"].fill(np.nan), "2.after_proj.bias.*NaN"),
        (lambda s: renamed(s, "controlnet_blocks.0.before_proj.bias", "odd.bias"), "begin not with .*: odd.bias"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("controlnet_blocks.2.")],
            "num_layers is 3, and the file beside it has 2 copies",
        ),
    ],
    ids=["shape", "unknown", "nan", "prefix", "count"],
)
def test_what_is_not_whole_is_one_error(change, message, alpha, tmp_path, capsys):
    source = changed(tmp_path, change)
    assert main([str(alpha), str(tmp_path / "out"), "--controlnet", str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(source) in error
    assert not (tmp_path / "out").exists()
    assert re.search(f"(?s){message}", error), error


def test_of_another_base(alpha, tmp_path):
    """With the parameters and both shapes."""
    model = read_stored_model(alpha).model
    wider = model.clone(hidden_size=48)
    with pytest.raises(InputError, match=r"(?s)before_proj/kernel is \(24, 24\), the model has \(48, 48\)"):
        open_controlnet(RESEARCH, wider)
    with pytest.raises(InputError, match=r"a ControlNet of 3 copied blocks; this model can have 1 to 1"):
        open_controlnet(ALPHA, model.clone(depth=2))


def test_where_there_is_none(alpha, tmp_path, capsys):
    model = read_stored_model(alpha).model
    for path, message in (
        (alpha, "is a model without a ControlNet"),
        (SIGMA / "transformer", "holds no ControlNet but arrays called adaln_single"),
        (tmp_path, "holds no ControlNet; one is"),
        (tmp_path / "absent", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            open_controlnet(path, model)
    assert main([str(alpha), str(tmp_path / "out"), "--to=controlnet"]) == 2
    assert "has no ControlNet in it" in capsys.readouterr().err
