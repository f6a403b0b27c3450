"""How likely BLIP says "yes" when it is asked of a picture whether a thing is there.

Source: T2I-CompBench's `BLIPvqa_eval/models/blip_vqa.py` (`vqa_prob`) and `configs/vqa.yaml`: BLIP-VQA on pictures of
480×480, here through transformers' BlipForQuestionAnswering.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.evaluators.compbench.torch_folder import TorchFolder

ARCHITECTURE = "BlipForQuestionAnswering"
_SIZE = 480
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
# Of a question; what is longer is cut off.
_MAX_TOKENS = 35


class BlipAnswers:
    """BLIP-VQA from a folder, with PyTorch.

    All batches have one shape, and nothing looks at what fills them up, so that an answer does not depend on what
    stands beside it.

    Attributes:
      sha256: of its weights.
      note: what is not as in the benchmark; "" of nothing.
    """

    def __init__(self, path: pathlib.Path, batch_size: int):
        """Raises InputError if the folder is of another architecture, damaged, or PyTorch is not installed."""
        folder = TorchFolder.open(path, "--blip")
        if folder.architectures != (ARCHITECTURE,):
            raise InputError(
                f"--blip {path}: is a {folder.kind}, not a {ARCHITECTURE}; name a folder of BLIP-VQA, such as "
                "blip-vqa-capfilt-large"
            )
        import transformers

        self.sha256 = folder.sha256
        self._batch_size = batch_size
        self._model: Any = folder.load(transformers.BlipForQuestionAnswering)
        self._tokenizer: Any = folder.helper(transformers.AutoTokenizer)
        text = self._model.config.text_config
        self._start = text.bos_token_id
        # Takes the place of the first token: BLIP's "[ENC]", which the published tokenizer's files do not list.
        self._encode = self._tokenizer.get_vocab().get("[ENC]", text.vocab_size - 1)
        self._yes, self._no = (self._token(word) for word in ("yes", "no"))
        trained = self._model.config.vision_config.image_size
        self.note = "" if trained == _SIZE else f"positions of {trained} pixels interpolated to {_SIZE}"

    def _token(self, word: str) -> int:
        found = self._tokenizer.get_vocab().get(word)
        if found is None:
            raise InputError(f"--blip: its tokenizer does not know {word!r}; copy the whole folder")
        return int(found)

    def __call__(self, pictures: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        """Of each of N pictures the probabilities of "yes" against "no", one for each of its questions.

        Raises:
          InputError: they are not numbers.
        """
        found: list[list[float]] = []
        for first in range(0, len(pictures), self._batch_size):
            rows = slice(first, first + self._batch_size)
            found += self._batch(pictures[rows], questions[rows])
        return found

    def _batch(self, pictures: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[list[float]]:
        import torch

        pixels = np.zeros((self._batch_size, 3, _SIZE, _SIZE), np.float32)
        for row, picture in enumerate(pictures):
            pixels[row] = prepare(picture)
        found: list[list[float]] = [[] for _ in pictures]
        with torch.inference_mode():
            device = self._model.device
            seen = self._model.vision_model(
                pixel_values=torch.from_numpy(pixels).to(device), interpolate_pos_encoding=bool(self.note)
            ).last_hidden_state
            for number in range(max(map(len, questions), default=0)):
                asked = [row for row, texts in enumerate(questions) if number < len(texts)]
                texts = [row_texts[number] if number < len(row_texts) else "" for row_texts in questions]
                answers = self._ask(seen, [*texts, *[""] * (self._batch_size - len(texts))])
                for row in asked:
                    found[row].append(float(answers[row]))
        if not all(np.isfinite(row).all() for row in found):
            raise InputError("--blip: its answers are not numbers; check its weights")
        return found

    def _ask(self, seen: Any, questions: list[str]) -> Any:
        """f32[B]: the first token of the answer is "yes" rather than "no"."""
        import torch

        asked = self._tokenizer(
            questions, padding="max_length", truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        ).to(seen.device)
        asked["input_ids"][:, 0] = self._encode
        states = self._model.text_encoder(
            input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], encoder_hidden_states=seen
        ).last_hidden_state
        lengths = asked["attention_mask"].sum(1)
        found = torch.zeros(len(questions), device=seen.device)
        # transformers 5.24 drops the mask of what the decoder looks at (BlipTextAttention), so that it would see the
        # padding: questions of one length, without theirs, are answered together.
        for length in lengths.unique().tolist():
            logits = self._model.text_decoder(
                input_ids=torch.full((len(questions), 1), self._start, device=seen.device),
                encoder_hidden_states=states[:, :length],
            ).logits[:, 0]
            # The softmax over all words cancels out of p(yes) / (p(yes) + p(no)).
            answers = torch.sigmoid(logits[:, self._yes] - logits[:, self._no])
            found = torch.where(lengths == length, answers, found)
        return found


def prepare(picture: Image.Image) -> np.ndarray:
    """f32[3, 480, 480]: stretched, not cropped."""
    resized = picture.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    return ((np.asarray(resized, np.float32) / 255 - _MEAN) / _STD).transpose(2, 0, 1)
