"""Whole pipelines go from diffusers to ours and back bit for bit, open there, and draw the same picture."""

import dataclasses
import functools
import json
import math
import os
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler
from golden_cases import GOLDEN
from models.t5_cases import TINY, reference_model
from tiny_pipeline import PIPELINES, make_pipeline, save
from tiny_run import tiny_config, write_data
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.conversion.encoders import open_encoder
from pixart_jax.conversion.pipelines import SCHEDULER
from pixart_jax.conversion.stored import StoredParams, read_stored_model
from pixart_jax.data.shards.manifest import ENCODERS, read_manifest
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.encoding.registry import copy_encoders
from pixart_jax.training.program import Program
from pixart_jax.training.record import record_config
from tools.convert import main

# Of the released models: α at 512 px, α at 1024 px, Σ at 512 px.
CASES = {
    "alpha": ("alpha", {"sample_size": 64}),
    "alpha-ms": ("alpha", {"sample_size": 128, "use_additional_conditions": True, "interpolation_scale": 2}),
    "sigma": ("sigma", {"sample_size": 64}),
}
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


def convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys, *arguments):
    """The one error of a conversion that leaves nothing behind."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("error: ") == 1
    assert not os.path.exists(arguments[1])
    return error


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """A folder with each of CASES as diffusers writes it; the T5 of "alpha" is bfloat16."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name, (family, config) in CASES.items():
        pipeline = make_pipeline(family, **config)
        if name == "alpha":
            pipeline.text_encoder.to(torch.bfloat16)
        save(pipeline, folder / name)
    return folder


@pytest.fixture(scope="module")
def ours(pipelines):
    """Each of CASES as a directory of ours."""
    for name in CASES:
        convert(pipelines / name, pipelines / f"ours-{name}")
    return pipelines


def read_json(path):
    fields = json.loads(path.read_text())
    return {key: value for key, value in fields.items() if key not in ("_diffusers_version", "transformers_version")}


def check_equal(before, after):
    """Two folders of a pipeline: names, arrays, dtypes, configurations and tokenizers."""
    assert sorted(os.listdir(before)) == sorted(os.listdir(after))
    for part, name in WEIGHTS.items():
        wanted, found = (safetensors.torch.load_file(folder / part / name) for folder in (before, after))
        assert wanted.keys() == found.keys()
        for key, tensor in wanted.items():
            assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
        assert read_json(after / part / "config.json") == read_json(before / part / "config.json")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        assert read_json(after / name) == read_json(before / name)
    assert sorted(os.listdir(before / "tokenizer")) == sorted(os.listdir(after / "tokenizer"))
    for file in (before / "tokenizer").iterdir():
        assert (after / "tokenizer" / file.name).read_bytes() == file.read_bytes()


@functools.cache
def draw(folder, kind):
    """A picture of `kind.from_pretrained(folder)`."""
    pipeline = kind.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a red cat on a mat",
        height=64,
        width=128,
        num_inference_steps=3,
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images


@pytest.mark.parametrize("case", CASES)
def test_pipelines_come_back(case, ours, tmp_path, capsys):
    convert(ours / f"ours-{case}", tmp_path / "again", "--to=diffusers")
    kind = PIPELINES[CASES[case][0]]
    output = capsys.readouterr().out
    assert f"again: diffusers, a whole {kind.__name__}, " in output
    assert ("warning: the text encoder is bfloat16" in output) == ("warning" in output) == (case == "alpha")
    check_equal(ours / case, tmp_path / "again")
    picture = draw(tmp_path / "again", kind)
    assert picture.std() > 0.05
    np.testing.assert_array_equal(picture, draw(ours / case, kind))


def test_a_pipeline_straight_to_diffusers(pipelines, tmp_path):
    """The autoencoder's attention under its old names, and the T5 in several files under both names of its table,
    become what diffusers and transformers write today."""
    folder = tmp_path / "old"
    shutil.copytree(pipelines / "sigma", folder)
    path = folder / "vae" / WEIGHTS["vae"]
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in safetensors.torch.load_file(path).items():
        stem, _, last = name.rpartition(".")
        for new, other in old.items():
            stem = stem.replace(f".{new}", f".{other}")
        tensors[f"{stem}.{last}"] = tensor
    assert sum("attentions.0.query" in name for name in tensors) == 4
    safetensors.torch.save_file(tensors, path)
    path = folder / "text_encoder" / WEIGHTS["text_encoder"]
    tensors = safetensors.torch.load_file(path)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    halves = {f"model-{i}.safetensors": dict(list(tensors.items())[i::2]) for i in (0, 1)}
    for name, half in halves.items():
        safetensors.torch.save_file(half, path.with_name(name))
    path.unlink()
    index = {"weight_map": {key: name for name, half in halves.items() for key in half}}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))

    convert(folder, tmp_path / "again", "--to=diffusers")
    check_equal(pipelines / "sigma", tmp_path / "again")


def test_the_whole_of_a_t5_becomes_its_encoder(tmp_path):
    """As google/t5-v1_1-xxl's folder says: float16 in files of a model with a decoder; of float32, it opens as such."""
    reference = reference_model(TINY).half()
    reference.save_pretrained(tmp_path / "t5")
    path = tmp_path / "t5/config.json"
    changes = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "torch_dtype": "float16"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    convert(tmp_path / "t5", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", "--to=diffusers")
    config = T5Config.from_pretrained(tmp_path / "again")
    assert (config.architectures, config.is_encoder_decoder) == (["T5EncoderModel"], False)
    assert "torch_dtype" not in (tmp_path / "again/config.json").read_text()
    again = T5EncoderModel.from_pretrained(tmp_path / "again", dtype="auto")
    assert again.dtype == torch.float32
    for wanted, found in zip(reference.parameters(), again.parameters(), strict=True):
        assert torch.equal(wanted.float(), found)


def test_encoders_by_themselves_come_back(pipelines, tmp_path):
    for part in ("text_encoder", "vae"):
        convert(pipelines / "alpha" / part, tmp_path / part)
        convert(tmp_path / part, tmp_path / f"{part}-again", "--to=diffusers")
        before, after = (
            safetensors.torch.load_file(folder / WEIGHTS[part])
            for folder in (pipelines / "alpha" / part, tmp_path / f"{part}-again")
        )
        assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
        # Ours to ours is a copy.
        convert(tmp_path / part, tmp_path / f"{part}-copy")
        assert (tmp_path / f"{part}-copy/config.json").read_text() == (tmp_path / f"{part}/config.json").read_text()
    assert len(T5Tokenizer.from_pretrained(tmp_path / "text_encoder-again")) > 10
    assert T5EncoderModel.from_pretrained(tmp_path / "text_encoder-again", dtype="auto").dtype == torch.bfloat16
    AutoencoderKL.from_pretrained(tmp_path / "vae-again")


def test_the_schedulers_file_is_the_librarys(tmp_path):
    DPMSolverMultistepScheduler().save_pretrained(tmp_path)
    wanted = read_json(tmp_path / "scheduler_config.json")
    assert wanted == SCHEDULER and wanted["lambda_min_clipped"] == -math.inf


def arrays(directory):
    """All that a directory of ours says and holds, but for where it comes from."""
    stored = read_stored_model(directory)
    params = StoredParams(directory / "params", stored.model).read_all()
    found = {f"params/{path}": array for path, array in params.items()}
    for kind in ("text_encoder", "vae"):
        encoder = open_encoder(directory / kind, kind)
        params = encoder.arrays.read_all()
        found |= {f"{kind}/{path}": np.asarray(array, np.float32) for path, array in params.items()}
        found[kind] = json.dumps(encoder.config)
    tokenizer = directory / "text_encoder/tokenizer"
    found |= {file.name: file.read_bytes() for file in tokenizer.iterdir()}
    return dataclasses.replace(stored, provenance={}), found


@pytest.mark.parametrize("where", ["alpha", "ours-alpha"])
def test_encoders_from_elsewhere(where, ours, tmp_path):
    """A lone checkpoint and a pipeline's encoders, or those of a directory of ours, make one directory."""
    convert(ours / "alpha", tmp_path / "x.pth", "--to=pixart")
    hints = ("--num-heads=3", "--family=alpha")
    convert(tmp_path / "x.pth", tmp_path / "model", *hints, "--encoders", ours / where)
    (stored, found), (wanted_stored, wanted) = arrays(tmp_path / "model"), arrays(ours / "ours-alpha")
    assert stored == wanted_stored and found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert sorted(os.listdir(tmp_path / "model")) == ["model.json", "params", "text_encoder", "vae"]


def test_our_own_encoders_are_carried_over(ours, tmp_path):
    np.save(tmp_path / "null.npy", np.ones((300, 20), np.float32))
    convert(ours / "ours-sigma", tmp_path / "model", "--null-text", tmp_path / "null.npy")
    (stored, found), (wanted_stored, wanted) = arrays(tmp_path / "model"), arrays(ours / "ours-sigma")
    assert stored == dataclasses.replace(wanted_stored, null_text="stored") and found.keys() == wanted.keys()
    for name in wanted.keys() - {"params/y_embedder/y_embedding"}:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    convert(ours / "ours-sigma", tmp_path / "alone", "--no-encoders")
    assert sorted(os.listdir(tmp_path / "alone")) == ["model.json", "params"]


def test_one_encoder_is_enough_for_us_and_not_for_a_pipeline(ours, tmp_path, capsys):
    (tmp_path / "half").mkdir()
    (tmp_path / "half/vae").symlink_to(ours / "ours-sigma/vae")
    source = ours / "sigma/transformer"
    convert(source, tmp_path / "model", "--family=sigma", "--encoders", tmp_path / "half")
    assert "half: no text_encoder, no tokenizer in it\n" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "model")) == ["model.json", "params", "vae"]
    # Its own are no pipeline either, so the transformer goes alone; what is asked for is an error.
    convert(tmp_path / "model", tmp_path / "transformer", "--to=diffusers")
    output = capsys.readouterr().out
    assert "model: no text_encoder, no tokenizer in it\n" in output
    assert "transformer: diffusers, the transformer alone (--encoders DIR makes it a pipeline), " in output
    assert sorted(os.listdir(tmp_path / "transformer")) == ["config.json", WEIGHTS["transformer"]]
    arguments = (source, tmp_path / "x", "--family=sigma", "--to=diffusers", "--encoders", tmp_path / "half")
    assert "half: no text_encoder, no tokenizer in it, which a pipeline needs" in refused(capsys, *arguments)


def test_a_class_conditional_model_takes_no_text_encoder(ours, tmp_path, capsys):
    convert(GOLDEN / "dit.pth", tmp_path / "model", "--num-heads=2", "--encoders", ours / "alpha")
    assert sorted(os.listdir(tmp_path / "model")) == ["model.json", "params", "vae"]
    assert "a class-conditional model has no use for the text encoder, which stays out" in capsys.readouterr().out


def write_run(workdir, data, **manifest):
    """The workdir of a run that has saved a checkpoint; its config."""
    config = tiny_config(write_data(data, **manifest))
    config.model.text_dim = 20
    copy_encoders(data, read_manifest(data), workdir / ENCODERS)
    record_config(workdir, config)
    state, _ = Program(config, make_mesh()).birth.fresh()
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, {})
    checkpoints.close()
    return config


def test_a_training_run_becomes_a_pipeline(ours, tmp_path, capsys):
    config = write_run(tmp_path / "run", tmp_path / "data", latent_scale=0.18215)
    convert(tmp_path / "run", tmp_path / "pipeline", "--to=diffusers", "--encoders", ours / "alpha-ms")
    # Micro-conditions at 32 px.
    assert "warning: diffusers' PixArtAlphaPipeline passes micro-conditions only where" in capsys.readouterr().out
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert type(pipeline) is PIPELINES["alpha"]
    assert pipeline.transformer.config.sample_size == config.model.resolution // 8
    error = refused(capsys, tmp_path / "run", tmp_path / "x", "--to=diffusers", "--family=alpha")
    assert "leave the options out" in error
    convert(tmp_path / "run", tmp_path / "ours")
    stored = read_stored_model(tmp_path / "ours")
    assert (stored.caption_cleaning, stored.sampler) == ("none", config.sample.sampler)


def test_family_of_a_directory_of_ours(ours, tmp_path, capsys):
    convert(ours / "ours-alpha", tmp_path / "sigma", "--to=diffusers", "--family=sigma")
    assert read_json(tmp_path / "sigma/model_index.json")["_class_name"] == "PixArtSigmaPipeline"
    for arguments in (["--family=sigma"], ["--family=sigma", "--to=diffusers", "--no-encoders"], ["--num-heads=3"]):
        error = refused(capsys, ours / "ours-alpha", tmp_path / "x", *arguments)
        assert "says all about its model in model.json; leave the options out" in error


def changed_config(part, **changes):
    def change(folder):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def without_scaling_factor(folder):
    path = folder / "vae/config.json"
    fields = json.loads(path.read_text())
    del fields["scaling_factor"]
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "family,change,message",
    [
        ("sigma", lambda folder: None, "the model's latent_scale is 0.13025, but "),
        ("alpha", changed_config("vae", scaling_factor=0.1822), "vae/config.json has the scaling_factor 0.1822: "),
        ("sigma", without_scaling_factor, "scaling_factor 0.18215, which it has because the file does not say"),
        ("alpha", changed_config("text_encoder", d_model=21), "text_dim is 20, but "),
        ("alpha", changed_config("vae", latent_channels=16), "latent_channels is 4, but "),
        ("alpha", changed_config("vae", scaling_factor=0.18215 * (1 + 1e-7)), None),
        ("alpha", without_scaling_factor, None),
    ],
)
def test_encoders_of_another_model(family, change, message, pipelines, tmp_path, capsys):
    """With what has a scale of its own, and with what goes by the family."""
    shutil.copytree(pipelines / "alpha", tmp_path / "other")
    change(tmp_path / "other")
    # A file by itself: a pipeline's folder tells its own scale.
    shutil.copytree(pipelines / "alpha/transformer", tmp_path / "lone")
    arguments = [tmp_path / "lone", tmp_path / "x", "--encoders", tmp_path / "other", "--family", family]
    if message is None:
        convert(*arguments)
    else:
        assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--to=pixart", "--encoders=sigma"], "a .pth has no place for encoders; leave --encoders out"),
        (["--encoders=."], "has neither a text_encoder/ nor a vae/ with a config.json"),
        (["--encoders=nowhere"], "nowhere: no such file or folder, and not a hub id like owner/name"),
    ],
)
def test_what_cannot_be_is_one_error(arguments, message, pipelines, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(pipelines)
    assert message in refused(capsys, "sigma/transformer", tmp_path / "x", *arguments, "--family=sigma")


def test_encoders_or_none(pipelines, tmp_path):
    with pytest.raises(SystemExit):
        main([str(pipelines / "sigma"), str(tmp_path / "x"), "--no-encoders", f"--encoders={pipelines}"])


@pytest.mark.parametrize("to", ["orbax", "diffusers"])
def test_a_damaged_encoder_of_ours(to, ours, tmp_path, capsys):
    """Is one error, after which nothing of the transformer is left either."""
    convert(ours / "ours-sigma", tmp_path / "model")
    path = max((tmp_path / "model/vae/params").glob("*/0*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "is damaged" in refused(capsys, tmp_path / "model", tmp_path / "x", f"--to={to}")
    assert os.listdir(tmp_path) == ["model"]
