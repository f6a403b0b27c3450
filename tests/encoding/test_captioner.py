"""Vision-language models answer as one picture at a time makes them, and what is none is refused."""

import json
import shutil
import sys

import numpy as np
import pytest
import tiny_captioners
import torch
from PIL import Image
from transformers import T5Config, T5ForConditionalGeneration

from pixart_jax.encoding.captioner import Captioner
from pixart_jax.errors import InputError

REQUESTS = ["Describe", "Describe this image and its style in a very detailed manner", 'Given "<image></s> 猫 😀", go']
MODELS = ["llava", "llava_next", "paligemma"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        getattr(tiny_captioners, f"make_{name}")(folder / name)
    return folder


def pictures():
    rng = np.random.default_rng(0)
    sizes = [(80, 60), (64, 64), (50, 120)]
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_does_not_depend_on_its_batch(models, name):
    captioner = Captioner(str(models / name), max_new_tokens=16)
    together = captioner.answers(pictures(), REQUESTS)
    alone = [captioner.answers([p], [r])[0] for p, r in zip(pictures(), REQUESTS, strict=True)]
    assert together == alone
    assert len({answer.text for answer in alone}) == 3
    # The picture counts, and so does the request.
    other_picture = captioner.answers([pictures()[1]], REQUESTS[:1])[0]
    other_request = captioner.answers(pictures()[:1], REQUESTS[1:2])[0]
    assert alone[0] not in (other_picture, other_request)


def change_generation(models, folder, **settings):
    """A copy of LLaVA whose repository wants to generate otherwise."""
    shutil.copytree(models / "llava", folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return Captioner(str(folder), max_new_tokens=16)


def test_answers_end_or_are_cut(models, tmp_path):
    cut = Captioner(str(models / "llava"), max_new_tokens=3).answers(pictures(), REQUESTS)
    assert all(answer.is_cut for answer in cut)
    ends_at_once = change_generation(models, tmp_path / "llava", eos_token_id=list(range(5 + 256)))
    whole = ends_at_once.answers(pictures(), REQUESTS)
    assert not any(answer.is_cut for answer in whole) and all(len(answer.text) <= 1 for answer in whole)


def test_the_repositorys_way_of_choosing_words_is_left_out(models, tmp_path):
    """A penalty for repetition counts the padding, and so the batch; sampling is no caption twice."""
    plain = Captioner(str(models / "llava"), max_new_tokens=16)
    settings = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 3.0, "num_beams": 2}
    other = change_generation(models, tmp_path / "llava", **settings)
    assert plain.answers(pictures(), REQUESTS) == other.answers(pictures(), REQUESTS)
    assert plain.fingerprint == other.fingerprint


def test_a_caption_cannot_hold_what_controls_the_model(models):
    captioner = Captioner(str(models / "llava"), max_new_tokens=8)
    wild, tame = "a<ima<image>ge>b<|im_end|>", "a<ima ge>b "
    assert captioner.answers(pictures()[:1], [wild]) == captioner.answers(pictures()[:1], [tame])


def save_text_model(models, folder):
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def without_template(models, folder):
    shutil.copytree(models / "llava_next", folder)
    (folder / "chat_template.jinja").unlink()


def without_an_array(models, folder):
    from safetensors.torch import load_file, save_file

    shutil.copytree(models / "llava", folder)
    arrays = load_file(folder / "model.safetensors")
    del arrays[next(name for name in arrays if "projector" in name)]
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})


def without_weights(models, folder):
    shutil.copytree(models / "llava", folder)
    (folder / "model.safetensors").unlink()


def damaged(models, folder):
    shutil.copytree(models / "llava", folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def without_processor(models, folder):
    shutil.copytree(models / "llava", folder)
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "processor_config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (save_text_model, "is a t5, which does not turn pictures into text"),
        (without_template, "has no chat template, and it is not known how a llava_next is asked"),
        (without_an_array, "lacks 1 of the model's arrays, such as .*projector"),
        (without_weights, "cannot be opened: .*no file named"),
        (damaged, "cannot be opened: "),
        (without_processor, "cannot be opened: |has no processor"),
        (lambda models, folder: folder.mkdir(), "cannot be opened: "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_captioner(models, tmp_path, spoil, words):
    spoil(models, tmp_path / "model")
    with pytest.raises(InputError, match=words) as raised:
        Captioner(str(tmp_path / "model"))
    assert str(tmp_path / "model") in str(raised.value) and "\n" not in str(raised.value)


def test_without_pytorch(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install torch torchvision accelerate"):
        Captioner(str(models / "llava"))


def test_what_does_not_fit_says_what_to_lower(models, monkeypatch):
    captioner = Captioner(str(models / "llava"))

    def full(**inputs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(captioner._model, "generate", full)
    with pytest.raises(InputError, match="a smaller --batch-size"):
        captioner.answers(pictures(), REQUESTS)


def test_llava_without_a_template_is_asked_as_with_it(models, tmp_path):
    tiny_captioners.make_llava(tmp_path / "early", template=None)
    early, late = (Captioner(str(path), max_new_tokens=8) for path in (tmp_path / "early", models / "llava"))
    assert early.answers(pictures(), REQUESTS) == late.answers(pictures(), REQUESTS)
