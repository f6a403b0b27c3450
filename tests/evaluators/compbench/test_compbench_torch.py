"""BLIP's answers and detectors' boxes, by tiny random networks of the real architectures."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from evaluators.compbench.torch_networks import LABELS, make_blip, make_detr
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, BlipForConditionalGeneration, BlipForQuestionAnswering

from pixart_jax.errors import InputError
from pixart_jax.evaluators.compbench.blip import BlipAnswers, prepare
from pixart_jax.evaluators.compbench.detections import seen_size
from pixart_jax.evaluators.compbench.detector import TorchDetector

QUESTIONS = [
    ["a red cat?", "the blue sofa on top of the green hat?"],
    [],
    ["no dog?"],
    ["a hat?", "a dog?", "the cat?"],
]


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    sizes = [(40, 64), (64, 64), (31, 50), (64, 64)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return make_blip(tmp_path_factory.mktemp("blip") / "blip")


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    return make_detr(tmp_path_factory.mktemp("detr") / "tiny-detr")


def reference(folder, picture, question):
    """The probability of "yes" as the benchmark writes it, of one picture and question without any padding."""
    model, tokenizer = BlipForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(question, return_tensors="pt").input_ids
    ids[:, 0] = model.config.text_config.vocab_size - 1
    with torch.no_grad():
        seen = model.vision_model(pixel_values=torch.from_numpy(prepare(picture))[None]).last_hidden_state
        states = model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        start = torch.tensor([[model.config.text_config.bos_token_id]])
        p = model.text_decoder(input_ids=start, encoder_hidden_states=states).logits[0, 0].softmax(0)
    yes, no = (p[tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
    return float(yes / (yes + no))


def test_answers_are_those_of_the_model_and_do_not_depend_on_the_batch(blip, pictures):
    answers = BlipAnswers(blip, 3)(pictures, QUESTIONS)
    assert [len(row) for row in answers] == [2, 0, 1, 3]
    flat = [value for row in answers for value in row]
    assert np.ptp(flat) > 0.05  # They differ.
    for row, number in [(0, 0), (0, 1), (2, 0), (3, 2)]:
        assert answers[row][number] == pytest.approx(reference(blip, pictures[row], QUESTIONS[row][number]), abs=1e-5)
    alone = BlipAnswers(blip, 3)
    for row, picture in enumerate(pictures):
        assert alone([picture], [QUESTIONS[row]])[0] == answers[row]
    assert np.allclose(BlipAnswers(blip, 1)([pictures[3]], [QUESTIONS[3]])[0], answers[3], atol=1e-5)


def test_positions_of_another_size_are_interpolated_and_said(tmp_path, pictures):
    answers = BlipAnswers(make_blip(tmp_path / "blip", image_size=240), 2)
    assert answers.note == "positions of 240 pixels interpolated to 480"
    assert 0 < answers([pictures[0]], [["a cat?"]])[0][0] < 1


def test_networks_need_pytorch(blip, detr, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for network, folder in ((BlipAnswers, blip), (TorchDetector, detr)):
        with pytest.raises(InputError, match="is run by PyTorch: pip install torch"):
            network(folder, 1)


def test_blip_of_another_kind_is_refused(blip, detr, tmp_path, pictures):
    other = make_blip(tmp_path / "captions", of=BlipForConditionalGeneration)
    with pytest.raises(InputError, match="is a BlipForConditionalGeneration, not a BlipForQuestionAnswering"):
        BlipAnswers(other, 1)
    with pytest.raises(InputError, match=r"--blip .*is a DetrForObjectDetection"):
        BlipAnswers(detr, 1)
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        BlipAnswers(tmp_path / "nowhere", 1)
    damaged = shutil.copytree(blip, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if "text_encoder" in name and name.endswith("query.weight"))
    query = weights.pop(name)
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 arrays of BlipForQuestionAnswering are not among its weights"):
        BlipAnswers(damaged, 1)
    save_file(weights | {name: query * float("nan")}, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="its answers are not numbers"):
        BlipAnswers(damaged, 1)(pictures[:1], [["a cat?"]])
    (damaged / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        BlipAnswers(damaged, 1)


def test_detections_are_the_surest_first_in_the_seen_picture(detr, pictures):
    detector = TorchDetector(detr, 2)
    assert (
        detector.labels == {label.lower() for label in LABELS} and detector.name == "tiny-detr (DetrForObjectDetection)"
    )
    found = detector(pictures)
    assert sum(map(len, found)) >= 4
    for picture, detections in zip(pictures, found, strict=True):
        scores = [one.score for one in detections]
        assert scores == sorted(scores, reverse=True) and all(score > 0.5 for score in scores)
        alone = detector([picture])[0]
        assert [one.label for one in alone] == [one.label for one in detections]
        for one, other in zip(alone, detections, strict=True):
            np.testing.assert_allclose(one.box, other.box, atol=1e-2)
    seen = pictures[0].resize(seen_size(*pictures[0].size), Image.Resampling.BILINEAR)
    processor = AutoImageProcessor.from_pretrained(detr)
    with torch.no_grad():
        outputs = detector._model(**processor(images=[seen], return_tensors="pt"))
    best = int(outputs.logits[0].softmax(-1)[:, :-1].max(-1).values.argmax())
    x, y, width, height = outputs.pred_boxes[0, best].tolist()
    corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    np.testing.assert_allclose(found[0][0].box, corners * np.tile(seen.size, 2), atol=1e-2)


def test_what_is_no_detector_is_refused(blip, tmp_path):
    with pytest.raises(InputError, match="is a BlipForQuestionAnswering, not an object detector"):
        TorchDetector(blip, 1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is a network that does not say what it is"):
        TorchDetector(tmp_path, 1)


@pytest.mark.parametrize(
    ("size", "seen"),
    [((512, 512), (479, 479)), ((1024, 512), (480, 240)), ((480, 479), (480, 479)), ((30, 60), (240, 480))],
)
def test_the_detector_sees_pictures_as_the_benchmark_resizes_them(size, seen):
    assert seen_size(*size) == seen
