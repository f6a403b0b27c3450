"""What is given to draw from: runs that know their encoders, and what is to be converted first."""

import json
import shutil

import numpy as np
import pytest
from tiny_pipeline import TEXT_DIM
from tiny_run import tiny_config, write_data

from pixart_jax.encoding.told import fingerprint
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.record import told_encoders
from tools import sample

SHARDS = {
    "autoencoder": "vae", "text_encoder": "t5", "latent_scale": 0.13025, "text_dim": TEXT_DIM,
    "caption_cleaning": "sigma",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(weights, tmp_path_factory):
    """Encoders, and a run on features of them that was told where they are."""
    root = tmp_path_factory.mktemp("told")
    for kind in ("vae", "text_encoder"):
        shutil.copytree(weights / kind, root / kind)
    config = tiny_config(write_data(root / "data", **SHARDS))
    config.model.text_dim = TEXT_DIM
    config.data.update({"vae": str(root / "vae"), "text_encoder": str(root / "text_encoder")})
    config.sample.update({"every": 0, "prompts": "a red cat"})
    config.train.update({"num_steps": 1, "checkpoint_every": 1})
    train_and_evaluate(config, root / "run")
    return root


@pytest.fixture
def told(trained, tmp_path):
    """A copy, whose run was told of the copies."""
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    change_record(root, lambda encoders: {kind: each | {"path": str(root / kind)} for kind, each in encoders.items()})
    return root


def change_record(root, change):
    path = root / "run/run.json"
    recorded = json.loads(path.read_text())
    recorded["encoders"] = change(recorded["encoders"])
    path.write_text(json.dumps(recorded))


def test_a_run_is_drawn_from_with_the_encoders_it_was_told(told, capsys):
    arguments = ["--checkpoint", str(told / "run"), "--prompt", "a red cat", "--num-steps", "2"]
    assert sample.main([*arguments, "--out", str(told / "out")]) == 0
    named = [f"--vae={told / 'vae'}", f"--text-encoder={told / 'text_encoder'}"]
    assert sample.main([*arguments, *named, "--out", str(told / "named")]) == 0
    first, second = (sorted((told / name).glob("0*.png"))[0].read_bytes() for name in ("out", "named"))
    assert first == second


def gone(root):
    shutil.rmtree(root / "vae")


def moved(root):
    (root / "vae").rename(root / "elsewhere")


def of_other_settings(root):
    path = root / "vae/config.json"
    path.write_text(path.read_text() + " ")


def of_other_weights(root):
    path = max((path for path in (root / "vae").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def with_a_file_more(root):
    (root / "vae/more").write_text("")


@pytest.mark.parametrize("change", [gone, moved, of_other_settings, of_other_weights, with_a_file_more])
def test_one_that_is_gone_or_another_is_asked_for(told, change, capsys):
    change(told)
    arguments = ["--checkpoint", str(told / "run"), "--prompt", "a red cat"]
    assert sample.main(arguments) == 2
    error = capsys.readouterr().err
    assert (
        "does not keep the autoencoder that it needs" in error and f"the run was told {told / 'vae'}, which is" in error
    )
    (line,) = (line for line in error.splitlines() if "--checkpoint" in line)
    assert f"--checkpoint {told / 'run'} --prompt" in line and f"--text-encoder {told / 'text_encoder'}" in line
    assert "--vae " in line


@pytest.mark.parametrize(
    "encoders", [None, {}, [], 3, {"vae": None}, {"vae": {"path": 3}}, {"vae": {"path": "a\0b", "sha256": ""}}]
)
def test_a_run_begun_before_or_a_damaged_record_asks_for_both(told, encoders):
    change_record(told, lambda _: encoders)
    with pytest.raises(InputError, match="does not keep the text encoder and the autoencoder"):
        TextToImage.from_checkpoint(told / "run")
    named = {"vae": told / "vae", "text_encoder": told / "text_encoder"}
    assert TextToImage.from_checkpoint(told / "run", **named).resolution == 32


@pytest.mark.parametrize("damage", ["", "{", "[]", None])
def test_a_damaged_run_json_asks_for_both(told, damage):
    (told / "run/run.json").write_text(damage) if damage is not None else (told / "run/run.json").unlink()
    with pytest.raises(InputError, match="does not keep the text encoder and the autoencoder"):
        TextToImage.from_checkpoint(told / "run")


def test_what_a_config_tells(tmp_path):
    for name in ("t5", "null", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    config = tiny_config(tmp_path)
    assert told_encoders(config) == {}
    config.init.null_text = str(tmp_path / "null")
    config.data.vae = str(tmp_path / "vae")
    found = told_encoders(config)
    assert found["text_encoder"] == {"path": str(tmp_path / "null"), "sha256": fingerprint(tmp_path / "null")}
    assert found["vae"]["path"] == str(tmp_path / "vae")
    config.data.text_encoder = str(tmp_path / "t5")
    assert told_encoders(config)["text_encoder"]["path"] == str(tmp_path / "t5")
    config.init.null_text = config.data.text_encoder = str(tmp_path / "file.npy")
    assert "text_encoder" not in told_encoders(config)


def pipeline(folder):
    (folder / "p").mkdir()
    (folder / "p/model_index.json").write_text("{}")
    return folder / "p"


def transformer(folder):
    (folder / "p/transformer").mkdir(parents=True)
    (folder / "p/transformer/diffusion_pytorch_model.safetensors").write_bytes(b"")
    (folder / "p/transformer/config.json").write_text('{"_class_name": "PixArtTransformer2DModel"}')
    return folder / "p/transformer"


def without_index(folder):
    return transformer(folder).parent


def file(folder):
    np.save(folder / "a", np.zeros(1))
    (folder / "a.npy").rename(folder / "PixArt.pth")
    return folder / "PixArt.pth"


def folder_of_a_file(folder):
    return file(folder).parent


def hub_id(folder):
    return "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"


@pytest.mark.parametrize("make", [pipeline, transformer, without_index, file, folder_of_a_file, hub_id])
def test_what_is_to_be_converted_first_says_how(tmp_path, make, capsys):
    source = make(tmp_path)
    with pytest.raises(InputError, match=rf"must be converted first:\n  .*convert {source} weights/"):
        TextToImage.from_checkpoint(source)
    assert sample.main(["--checkpoint", str(source), "--prompt", "a", "--out", str(tmp_path / "out")]) == 2
    assert f"convert {source} weights/" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_near_the_right_one(weights, trained, tmp_path):
    near = {
        weights / "vae": rf"part of a model: name all of it, {weights}$",
        weights / "params": rf"part of a model: name all of it, {weights}$",
        weights.parent: rf"is no model, but {weights} is",
        trained / "run/checkpoints": rf"part of a run: name its workdir, {trained / 'run'};",
        trained / "run/checkpoints/1": rf"part of a run: name its workdir, {trained / 'run'};",
        trained / "vae": "is an encoder",
        tmp_path / "nothing": "does not exist",
        tmp_path: "is not the workdir of a run",
    }
    for path, message in near.items():
        with pytest.raises(InputError, match=message):
            TextToImage.from_checkpoint(path)
