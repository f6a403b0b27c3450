"""The small files beside weights, of wrong types, out of range or cut: one error with file, field and cure."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conversion.test_diffusers import SIGMA, make_transformer
from conversion.test_encoders import make_pipeline
from golden_cases import GOLDEN

from pixart_jax.conversion.describe import describe
from pixart_jax.conversion.encoders import open_encoder
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.publishing import claimed, published
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import StoredModel, read_stored_model
from pixart_jax.errors import InputError
from tools.convert import main

STORED = describe(open_source(GOLDEN / "sigma_plain.pth"), Hints(num_heads=2, family="sigma"))


def changed(**changes):
    """model.json with some fields changed; those of its model begin with model_."""
    fields = json.loads(STORED.to_json())
    for name, value in changes.items():
        if name.startswith("model_"):
            fields["model"][name.removeprefix("model_")] = value
        else:
            fields[name] = value
    return json.dumps(fields)


NAN, HUGE = float("nan"), 2**31


@pytest.mark.parametrize(
    "changes",
    [
        *({"latent_scale": value} for value in (NAN, float("inf"), 0, -1.0, "x", None, True, 1e-320, [1])),
        *({"position_scale": value} for value in (NAN, "x", 0, 1e300, {})),
        *({"position_base": value} for value in (0, -1, 16.0, "16", HUGE, None, True)),
        *({"model_depth": value} for value in (2.0, 0, -1, HUGE, "2", None, True)),
        *({"model_hidden_size": value} for value in (HUGE, 0, 24.0, "24", 25)),
        *({"model_num_heads": value} for value in (0, 5, 2.0, "2")),
        *({"model_kv_compress": value} for value in (None, "x", 3, [2], [0, 0, 0], [2.0, 1, 1], [True] * 3, {})),
        *({"model_mlp_ratio": value} for value in (NAN, "4", 0, -4)),
        *({"model_qk_norm": value} for value in (1, "true", None)),
        *({"model_adaln": value} for value in ("double", 1, None)),
        *({"model_num_classes": value} for value in (-1, 1.5, HUGE)),
        *({"null_text": value} for value in (3, None, [])),
        *({"sampler": value} for value in (["iddpm"], {}, 3, "euler-none")),
        *({"provenance": value} for value in (3, [], {"a": 1})),
        {"model": []},
    ],
)  # fmt: skip
def test_a_model_json_of_wrong_types_or_ranges(changes, tmp_path):
    (tmp_path / "model.json").write_text(changed(**changes))
    with pytest.raises(InputError) as raised:
        read_stored_model(tmp_path)
    error, name = str(raised.value), next(iter(changes)).replace("model_", "model.")
    assert error.startswith(str(tmp_path / "model.json"))
    assert name in error or re.search("is not a number|finite", error)
    with pytest.raises(InputError):
        StoredModel.from_json(changed(**changes), "here")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"a":' * 100_000, "\udcff", None])
def test_a_file_that_is_no_json_object(text, tmp_path):
    def write(path):
        if text is None:
            path.unlink()
            os.mkfifo(path)
        else:
            path.write_bytes(text.encode("utf-8", "surrogateescape"))

    (tmp_path / "model.json").touch()
    write(tmp_path / "model.json")
    with pytest.raises(InputError, match=r"model\.json"):
        read_stored_model(tmp_path)
    make_transformer(**SIGMA).save_pretrained(tmp_path / "transformer")
    write(tmp_path / "transformer/config.json")
    with pytest.raises(InputError, match=r"transformer/config\.json"):
        open_source(tmp_path / "transformer")


@pytest.mark.parametrize(
    "part,changes",
    [
        *(("transformer", {"interpolation_scale": value}) for value in (1e-320, 1e300, NAN, float("inf"), True, "1")),
        *(("transformer", {"sample_size": value}) for value in (2**63, 0, 32.0, True, "32", [32])),
        *(("transformer", {"num_layers": value}) for value in (HUGE, 0, 2.0, None, "2")),
        *(("transformer", {"num_attention_heads": value}) for value in (HUGE, True, 1.0)),
        *(("transformer", {"attention_head_dim": value}) for value in (HUGE, -12)),
        *(("transformer", {"use_additional_conditions": value}) for value in ("no", 3, [])),
        *(("transformer", {"caption_channels": value}) for value in (HUGE, 16.0)),
        *(("text_encoder", {"num_layers": value}) for value in (HUGE, 2.0, True)),
        *(("text_encoder", {"d_model": value}) for value in (HUGE, 20.0)),
        *(("text_encoder", {"layer_norm_epsilon": value}) for value in (NAN, 1e300, "x")),
        *(("vae", {"layers_per_block": value}) for value in (HUGE, 1.0, True)),
        *(("vae", {"block_out_channels": value}) for value in ([HUGE], [32.0], "x", 3)),
        *(("vae", {"scaling_factor": value}) for value in (NAN, float("inf"), 0, "x", True)),
    ],
)  # fmt: skip
def test_a_config_of_wrong_types_or_ranges(part, changes, pipeline, tmp_path):
    shutil.copytree(pipeline / part, tmp_path / part)
    path = tmp_path / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=f"(?s){part}.*{next(iter(changes))}"):
        if part == "transformer":
            describe(open_source(tmp_path / part), Hints(family="sigma"))
        else:
            open_encoder(tmp_path / part, part)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("pipeline"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"


@pytest.mark.parametrize(
    "content,message", [(b"", "is empty"), (POINTER, "Git LFS's pointer"), (None, "a device or a pipe")]
)
@pytest.mark.parametrize("name", ["spiece.model", "tokenizer_config.json"])
def test_a_tokenizer_that_is_not_there_is_refused_at_conversion(name, content, message, pipeline, tmp_path, capsys):
    folder = shutil.copytree(pipeline, tmp_path / "pipeline")
    path = folder / "tokenizer" / name
    path.unlink()
    if content is None:
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(content)
    for to in ("orbax", "diffusers"):
        assert main([str(folder), str(tmp_path / "out"), "--family=sigma", f"--to={to}"]) == 2
        error = capsys.readouterr().err
        assert f"tokenizer/{name}" in error and message in error
    assert os.listdir(tmp_path) == ["pipeline"]


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_pointers_in_place_of_weights(part, pipeline, tmp_path, capsys):
    folder = shutil.copytree(pipeline, tmp_path / "pipeline")
    path = min((folder / part).glob("*.safetensors"))
    path.write_bytes(POINTER)
    assert main([str(folder), str(tmp_path / "out"), "--family=sigma"]) == 2
    assert f"{path} is damaged: it is Git LFS's pointer" in capsys.readouterr().err


OWNER = """
import pathlib, sys
from pixart_jax.conversion.publishing import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("to", ["orbax", "pixart", "diffusers"])
def test_two_conversions_into_one_place(to, tmp_path, capsys):
    """The second is refused, the first goes on; and a killed one does not stand in the way."""
    target = tmp_path / "new/model"
    command = [str(GOLDEN / "sigma_plain.pth"), str(target), "--num-heads=2", "--family=sigma", f"--to={to}"]
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout.readline() == "mine\n"
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"DST {target} is being written by another process (pid {owner.pid}" in error
    assert os.listdir(tmp_path / "new") == [".model.incomplete"]
    owner.kill()
    owner.wait()
    assert main(command) == 0
    assert os.listdir(tmp_path / "new") == ["model"]


def test_a_place_is_left_as_it_was_where_nothing_came_of_it(tmp_path):
    with pytest.raises(InputError, match="wrong"), claimed(tmp_path / "a/b/c"):
        raise InputError("wrong")
    place = tmp_path / "a/b/c"
    with pytest.raises(InputError, match="cannot be written: full"), claimed(place), published(place) as path:
        path.write_text("half")
        raise OSError("full")
    assert not os.listdir(tmp_path)
    with claimed(tmp_path / "a/b/c"), published(tmp_path / "a/b/c") as path:
        path.write_text("whole")
    assert os.listdir(tmp_path / "a/b") == ["c"]
    with pytest.raises(InputError, match="exists already"), claimed(tmp_path / "a/b/c"):
        pass


@pytest.mark.parametrize(
    "option", ["--position-scale=nan", "--position-scale=inf", "--position-scale=0", "--num-heads=0", "--num-heads=-2"]
)
def test_options_that_are_no_numbers_of_a_model(option, tmp_path, capsys):
    assert main([str(GOLDEN / "sigma_plain.pth"), str(tmp_path / "out"), "--family=sigma", option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_what_other_threads_still_write_goes_too(tmp_path, monkeypatch):
    """Those of a checkpoint that could not be written: they make a folder anew that has just been removed."""
    rmtree, calls = shutil.rmtree, []

    def remove_under_writers(path, **options):
        rmtree(path, **options)
        calls.append(path)
        if len(calls) in (1, 3):
            (path / "params" / "late").mkdir(parents=True)

    monkeypatch.setattr("pixart_jax.conversion.publishing.shutil.rmtree", remove_under_writers)
    target = tmp_path / "new" / "target"
    with pytest.raises(InputError, match="cannot be written: no room"), claimed(target), published(target) as temporary:
        (temporary / "params").mkdir(parents=True)
        raise OSError("no room")
    assert len(calls) > 3 and not os.listdir(tmp_path)
