"""CLIP at work on pictures and captions, against transformers and torchmetrics; how each library prepares pictures."""

import json
import shutil

import numpy as np
import pytest
import torch
from golden_cases import GOLDEN
from models.clip_cases import KINDS, reference_clip
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pixart_jax.errors import InputError
from pixart_jax.evaluators.clip_network import ClipNetwork, describe_clip
from pixart_jax.evaluators.clip_preprocessing import (
    CLIP_PREPROCESSINGS,
    CMMD_PREPROCESSINGS,
    ClipPreprocessing,
    read_clip_preprocessing,
)
from pixart_jax.evaluators.torch_resize import resize_float, resize_uint8
from pixart_jax.models.clip_config import clip_from_config

FOLDER = GOLDEN / "extras" / "clip"


@pytest.fixture(scope="module")
def case():
    with np.load(GOLDEN / "extras" / "clip_score.npz") as arrays:
        found = dict(arrays)
    captions = json.loads((GOLDEN / "extras" / "clip_score.json").read_text(encoding="utf-8"))["captions"]
    return found | {"captions": captions, "pictures": [found[f"in/image{i}"].transpose(1, 2, 0) for i in range(3)]}


@pytest.fixture(scope="module")
def network():
    return ClipNetwork(FOLDER, batch_size=2, num_threads=2)


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_features_are_the_libraries(case, network):
    """The third caption is longer than the network reads, and keeps its end."""
    pictures = network.image_features([case["pictures"][0], *map(Image.fromarray, case["pictures"][1:])])
    captions = network.text_features(case["captions"])
    np.testing.assert_allclose(pictures, unit(case["out/image_features"]), atol=1e-6)
    np.testing.assert_allclose(captions, unit(case["out/text_features"]), atol=1e-6)
    np.testing.assert_allclose((pictures * captions).sum(1), case["out/cosine"], atol=1e-6)


def test_tokens_and_pixels_are_the_libraries(case, network):
    ids = [network._captions.network.prepare(caption) for caption in case["captions"]]
    np.testing.assert_array_equal(ids, case["out/input_ids_77"])
    prepared = [network._pictures.network.prepare(picture).transpose(2, 0, 1) for picture in case["pictures"]]
    np.testing.assert_array_equal(prepared, case["out/pixel_values"])


def test_none_give_none(network):
    assert network.image_features([]).shape == network.text_features([]).shape == (0, 20)


@pytest.mark.parametrize("shape", [(40, 30), (23, 61), (5, 9), (16, 300), (7, 1), (64, 64)])
def test_resizes_are_pytorchs(shape):
    picture = np.random.default_rng(0).integers(0, 2, (*shape, 3), np.uint8) * 255  # Sharp, so that it overshoots.
    stacked = torch.tensor(picture).permute(2, 0, 1)[None]
    for size in ((16, 21), (64, 64), (11, 130)):
        expected = torch.nn.functional.interpolate(stacked, size, mode="bicubic", antialias=True)
        np.testing.assert_array_equal(resize_uint8(picture, *size), expected[0].permute(1, 2, 0))
        expected = torch.nn.functional.interpolate(stacked / 255, size, mode="bicubic")
        found = resize_float(picture.astype(np.float32) / np.float32(255), *size)
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 0), atol=1e-5)


def pictures():
    random = np.random.default_rng(0)
    return [
        random.integers(0, 256, (*shape, 3), np.uint8) for shape in ((40, 31), (25, 25), (16, 50), (88, 40), (8, 11))
    ]


def test_by_pillow_it_is_transformers():
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    ours = ClipPreprocessing("transformers-pillow", 16, 16)
    for picture in pictures():
        expected = theirs(images=[Image.fromarray(picture)], return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours(picture).transpose(2, 0, 1), expected, atol=1e-6)


def test_others_cut_otherwise():
    """openai: where a pixel cannot be halved, to the even one; cmmd: the square first; cmmd-stretch: nothing."""
    picture = np.zeros((16, 19, 3), np.uint8)
    picture[:] = np.arange(19, dtype=np.uint8)[:, None] * 10

    def columns(name, picture=picture):
        pre = ClipPreprocessing(name, 16, 16, mean=(0.0,) * 3, std=(1.0,) * 3)
        return pre(picture)[0, :, 0] * 255 / 10

    np.testing.assert_allclose(columns("transformers"), np.arange(1, 17), atol=1e-4)
    np.testing.assert_allclose(columns("transformers-pillow"), np.arange(1, 17), atol=1e-4)
    np.testing.assert_allclose(columns("openai"), np.arange(2, 18), atol=1e-4)
    np.testing.assert_allclose(columns("cmmd"), np.arange(1, 17), atol=1e-4)
    middle = columns("cmmd-stretch")[4:12]
    np.testing.assert_allclose(middle, (np.arange(4, 12) + 0.5) * 19 / 16 - 0.5, atol=0.1)
    assert columns("cmmd-stretch", np.repeat(picture[:, :2] * 20, 5, axis=1)).min() < 0


def test_preprocessings_differ():
    picture = pictures()[3]
    found = [ClipPreprocessing(name, 16, 16)(picture) for name in CLIP_PREPROCESSINGS + CMMD_PREPROCESSINGS]
    assert all(array.shape == (16, 16, 3) and array.dtype == np.float32 for array in found)
    assert all(not np.allclose(one, other, atol=1e-3) for i, one in enumerate(found) for other in found[:i])


def written(folder, **fields):
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def test_the_folder_says_how_pictures_are_prepared(tmp_path):
    assert read_clip_preprocessing(tmp_path, 16, "openai") == ClipPreprocessing("openai", 16, 16)
    old = written(tmp_path / "old", size=20, crop_size=16, image_mean=[0.5, 0.4, 0.3], image_std=[1, 2, 3], resample=3)
    expected = ClipPreprocessing("openai", 16, 20, (0.5, 0.4, 0.3), (1.0, 2.0, 3.0))
    assert read_clip_preprocessing(old, 16, "openai") == expected
    whole = written(tmp_path / "whole", size={"height": 16, "width": 16}, do_center_crop=False)
    assert read_clip_preprocessing(whole, 16, "openai") == ClipPreprocessing("openai", 16, (16, 16))
    stretched = ClipPreprocessing("transformers", 16, (16, 16))(pictures()[2])
    assert stretched.shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"resample": 2}, "resample is 2"),
        ({"do_resize": False}, "do_resize is False"),
        ({"do_normalize": "no"}, "do_normalize is 'no'"),
        ({"rescale_factor": 1}, "rescale_factor is 1"),
        ({"crop_size": {"height": 16, "width": 18}}, "crop_size is .*the network takes 16"),
        ({"do_center_crop": False}, "do_center_crop is false"),
        ({"size": {"longest_edge": 16}}, "size is .* nor a shortest_edge"),
        ({"size": 12}, "size is 12, less than the 16"),
        ({"image_mean": [0.5]}, "image_mean is .* not three numbers"),
        ({"image_std": [0, 1, 1]}, "image_std is .* not positive"),
    ],
)
def test_other_ways_to_prepare_are_refused(tmp_path, fields, said):
    with pytest.raises(InputError, match=rf"preprocessor_config\.json: [\s\S]*{said}"):
        read_clip_preprocessing(written(tmp_path, **fields), 16, "transformers")


def test_what_is_no_picture_or_no_name_is_refused(network):
    with pytest.raises(InputError, match="uint8"):
        network.image_features([np.zeros((8, 8, 4), np.uint8)])
    with pytest.raises(InputError, match="choose from transformers"):
        ClipNetwork(FOLDER, preprocessing="clip")


def test_a_tower_alone_does_what_it_can(tmp_path):
    kind, config = KINDS["clip_vision_model"]
    reference_clip(config, kind).save_pretrained(tmp_path / "vision")
    vision = ClipNetwork(tmp_path / "vision")
    assert vision.image_features([np.zeros((9, 9, 3), np.uint8)]).shape == (1, 7)
    with pytest.raises(InputError, match="no tokenizer and tower for captions"):
        vision.text_features(["cat"])
    kind, config = KINDS["clip_text_model"]
    reference_clip(config, kind).save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="no tower for pictures"):
        ClipNetwork(tmp_path / "text").image_features([np.zeros((9, 9, 3), np.uint8)])


def test_a_tokenizer_of_another_network_is_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "clip")
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["eos_token_id"] = 500
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="tokenizer is another network's"):
        ClipNetwork(tmp_path / "clip").text_features(["cat"])
    (tmp_path / "clip" / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="no tokenizer of CLIP's, or a damaged one"):
        ClipNetwork(tmp_path / "clip")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "CLIP ViT-B/32"),
        ({"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "image_size": 336, "num_attention_heads": 16},
         "CLIP ViT-L/14@336"),
        ({"num_hidden_layers": 3}, "CLIP ViT-768x3/32"),
    ],
)  # fmt: skip
def test_names(fields, name):
    assert describe_clip(clip_from_config({"model_type": "clip", "vision_config": fields})) == name
