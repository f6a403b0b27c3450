"""CLIP's towers equal transformers', from whose folders they are converted without a gap, and go back."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from models.clip_cases import KINDS, TINY, reference_clip
from transformers import CLIPModel

from pixart_jax.conversion.clip import load_clip
from pixart_jax.errors import InputError
from pixart_jax.models.clip_config import clip_from_config
from tools.convert import main

SIZE, LENGTH = TINY.vision_config.image_size, TINY.text_config.max_position_embeddings
END = TINY.text_config.eos_token_id


@pytest.fixture(scope="module")
def model():
    return reference_clip()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """As transformers saves it, in several files."""
    path = tmp_path_factory.mktemp("clip") / "tiny"
    model.save_pretrained(path, max_shard_size="8KB")
    assert (path / "model.safetensors.index.json").exists()
    return path


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder)


def pixels():
    return np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 3)).astype(np.float32)


def captions():
    """Ends in the middle, at the last place and twice; ids above the end's, which the legacy rule would take."""
    ids = np.random.default_rng(1).integers(0, END, (4, LENGTH), np.int32)
    ids[0, 4:] = END
    ids[1, -1] = END
    ids[2, [5, 8]] = END
    ids[3, 2], ids[3, 6] = END + 2, END
    return ids


def compare(found, expected):
    expected = getattr(expected, "pooler_output", expected).detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def text_features(clip, ids):
    return clip.model.apply({"params": clip.params}, ids, method="text_features")


def image_features(clip, pictures):
    return clip.model.apply({"params": clip.params}, pictures, method="image_features")


def test_the_towers_are_pytorchs(model, clip):
    compare(image_features(clip, pixels()), model.get_image_features(torch.tensor(pixels().transpose(0, 3, 1, 2))))
    compare(text_features(clip, captions()), model.get_text_features(torch.tensor(captions())))


def test_before_it_was_looked_at_the_end_was_the_largest_id(model, clip, folder, tmp_path):
    """As the configs of OpenAI's CLIPs still say."""
    shutil.copytree(folder, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "old" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    old = load_clip(tmp_path / "old")
    expected = CLIPModel.from_pretrained(tmp_path / "old").get_text_features(torch.tensor(captions()))
    compare(text_features(old, captions()), expected)
    assert not np.allclose(text_features(old, captions())[3], text_features(clip, captions())[3], atol=1e-2)


def test_what_follows_the_end_is_not_read(clip):
    ids = captions()[:1]
    changed = np.where(np.arange(LENGTH) > 4, 3, ids)
    np.testing.assert_allclose(text_features(clip, changed), text_features(clip, ids), rtol=1e-6)
    ids[0, 0] += 1
    assert not np.allclose(text_features(clip, changed), text_features(clip, ids), atol=1e-2)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("kind", ["clip_vision_model", "clip_text_model"])
def test_one_tower_alone(model, clip, kind, format, tmp_path):
    """Converts to what it is within the whole; of old files integers that number positions are left."""
    reference, config = KINDS[kind]
    alone = reference_clip(config, reference)
    whole = model.state_dict()
    alone.load_state_dict({name: whole[name] for name in alone.state_dict()})
    alone.save_pretrained(tmp_path)
    tower = {"clip_vision_model": "vision_model", "clip_text_model": "text_model"}[kind]
    weights = alone.state_dict() | {f"{tower}.embeddings.position_ids": torch.arange(5)[None]}
    if format == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    found = load_clip(tmp_path)
    assert set(found.params) == {tower}
    jax.tree.map(np.testing.assert_array_equal, found.params[tower], clip.params[tower])
    assert found.digest(tower) == clip.digest(tower)


def test_a_config_may_leave_out_what_is_usual():
    """And hold its fields twice, as OpenAI's do: then the second object counts, with defaults for what it lacks."""
    dicts = {"text_config_dict": {"hidden_size": 768, "num_attention_heads": 12}, "vision_config_dict": None}
    config = {"model_type": "clip", "projection_dim": 768, "text_config": {"eos_token_id": 2}, **dicts}
    config["vision_config"] = {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14}
    found = clip_from_config(config)
    expected = CLIPModel.config_class(**{name: value for name, value in config.items() if name != "model_type"})
    assert found.projection_dim == expected.projection_dim
    for ours, theirs in ((found.text, expected.text_config), (found.vision, expected.vision_config)):
        assert ours == type(ours)(**{name: getattr(theirs, name) for name in ours.__dataclass_fields__})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "siglip"}, "model_type is 'siglip'"),
        ({"projection_dim": 0}, "projection_dim is 0"),
        ({"vision_config": {"hidden_size": 10, "num_attention_heads": 3}}, "vision_config.hidden_size is 10"),
        ({"vision_config": {"image_size": [224, 224]}}, "vision_config.image_size"),
        ({"vision_config": {"num_channels": 4}}, "vision_config.num_channels is 4"),
        ({"text_config": {"hidden_act": "relu"}}, "text_config.hidden_act is 'relu', not one of quick_gelu, gelu"),
        ({"text_config": {"num_hidden_layers": 2000}}, "text_config.num_hidden_layers is 2000"),
        ({"text_config": {"eos_token_id": [2, 3]}}, "text_config.eos_token_id"),
        ({"text_config": 3}, "text_config is no object"),
    ],
)
def test_configs_that_are_no_clips_are_refused(change, said):
    with pytest.raises(InputError, match=f"some/config.json: [\\s\\S]*{said}"):
        clip_from_config({"model_type": "clip"} | change, path="some/config.json")


def remade(folder, target, change):
    """The folder with its weights in one file, changed."""
    target.mkdir()
    shutil.copy(folder / "config.json", target)
    weights: dict = {}
    for file in folder.glob("*.safetensors"):
        weights |= safetensors.numpy.load_file(file)
    change(weights)
    safetensors.numpy.save_file(weights, target / "model.safetensors")
    return target


def test_all_that_does_not_fit_is_listed(folder, tmp_path):
    def change(weights):
        del weights["text_projection.weight"]
        del weights["vision_model.encoder.layers.1.mlp.fc1.bias"]
        del weights["logit_scale"]
        weights["text_model.encoder.layers.2.mlp.fc1.bias"] = np.zeros(30, np.float32)
        weights["visual_projection.bias"] = np.zeros(7, np.float32)
        weights["classifier.weight"] = np.zeros((2, 2), np.float32)
        weights["text_model.final_layer_norm.weight"] = np.zeros(19, np.float32)

    with pytest.raises(InputError) as raised:
        load_clip(remade(folder, tmp_path / "other", change))
    said = str(raised.value)
    for line in (
        "not filled: text_projection/kernel (18, 7)",
        "incomplete: layers/mlp/fc1/bias is there only for blocks [0, 2]",
        "not filled: logit_scale ()",
        "no parameter takes: text_model.encoder.layers.2.mlp.fc1.bias",
        "no parameter takes: visual_projection.bias",
        "no parameter takes: classifier.weight",
        "wrong shape: final_layer_norm/scale is (19,), the model has (18,)",
    ):
        assert f"\n  {line}" in said
    assert said.count("\n") == 7 and said.startswith(str(tmp_path / "other"))


def test_weights_that_are_not_finite_are_refused(folder, tmp_path):
    def change(weights):
        weights["vision_model.post_layernorm.bias"][3] = np.nan

    with pytest.raises(InputError, match=r"vision_model\.post_layernorm\.bias: 1 of 20 numbers are NaN"):
        load_clip(remade(folder, tmp_path / "other", change))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_clip(tmp_path)


def test_the_digest_tells_weights_and_sizes(clip, folder, tmp_path):
    def change(weights):
        weights["vision_model.post_layernorm.bias"][3] += 1

    other = load_clip(remade(folder, tmp_path / "other", change))
    assert other.digest("text_model") == clip.digest("text_model")
    assert other.digest("vision_model") != clip.digest("vision_model")


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_with_what_lies_beside(kind, tmp_path, capsys):
    """tools.convert: to a directory of ours, which measures alike, and to a folder that transformers opens."""
    reference, config = KINDS[kind]
    original = reference_clip(config, reference)
    original.save_pretrained(tmp_path / "theirs")
    beside = {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": "{ }", "preprocessor_config.json": "{}"}
    for name, text in beside.items():
        (tmp_path / "theirs" / name).write_text(text + "\n", encoding="utf-8")
    assert main([str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert "a CLIP, " in capsys.readouterr().out
    loaded = load_clip(tmp_path / "ours")
    assert loaded.tokenizer == tmp_path / "ours" / "tokenizer"
    there = load_clip(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, there.params)
    assert (tmp_path / "ours" / "preprocessor_config.json").read_text(encoding="utf-8") == "{}\n"
    assert main([str(tmp_path / "ours"), str(tmp_path / "again"), "--to=diffusers"]) == 0
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"config.json", "model.safetensors", *beside}
    again = reference.from_pretrained(tmp_path / "again")
    found, expected = again.state_dict(), original.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
