"""Any object detector of transformers in place of the benchmark's own, which needs detectron2."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.evaluators.compbench.detections import LEAST_SCORE, Detection, seen_size
from pixart_jax.evaluators.compbench.torch_folder import TorchFolder


class TorchDetector:
    """A detector from a folder, with PyTorch.

    Attributes:
      name: of the folder and the architecture.
      sha256: of its weights.
      labels: all that it knows, in lower case.
    """

    def __init__(self, path: pathlib.Path, batch_size: int):
        """Raises InputError if the folder holds no object detector, is damaged, or PyTorch is not installed."""
        folder = TorchFolder.open(path, "--detector")
        import transformers

        if not any(name.endswith("ForObjectDetection") for name in folder.architectures):
            raise InputError(
                f"--detector {path}: is a {folder.kind}, not an object detector of transformers; name a folder of one, "
                "such as detr-resnet-50"
            )
        self.sha256 = folder.sha256
        self.name = f"{path.name} ({folder.architectures[0]})"
        self._batch_size = batch_size
        self._model: Any = folder.load(transformers.AutoModelForObjectDetection)
        self._processor: Any = folder.helper(transformers.AutoImageProcessor)
        self._names = {int(key): str(name).lower() for key, name in self._model.config.id2label.items()}
        self.labels = frozenset(self._names.values())

    def __call__(self, pictures: Sequence[Image.Image]) -> list[tuple[Detection, ...]]:
        """What is found in each of N pictures, the surest first.

        Raises:
          InputError: its answers are not numbers.
        """
        seen = [picture.resize(seen_size(*picture.size), Image.Resampling.BILINEAR) for picture in pictures]
        found: dict[int, tuple[Detection, ...]] = {}
        # Pictures of one size need no padding, which convolutions would see.
        for size in dict.fromkeys(picture.size for picture in seen):
            rows = [row for row, picture in enumerate(seen) if picture.size == size]
            for first in range(0, len(rows), self._batch_size):
                part = rows[first : first + self._batch_size]
                found |= dict(zip(part, self._batch([seen[row] for row in part]), strict=True))
        return [found[row] for row in range(len(seen))]

    def _batch(self, pictures: list[Image.Image]) -> list[tuple[Detection, ...]]:
        import torch

        inputs = self._processor(images=pictures, return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        if not (torch.isfinite(outputs.logits).all() and torch.isfinite(outputs.pred_boxes).all()):
            raise InputError("--detector: its answers are not numbers; check its weights")
        width, height = pictures[0].size
        results = self._processor.post_process_object_detection(
            outputs, threshold=LEAST_SCORE, target_sizes=[(height, width)] * len(pictures)
        )
        return [self._detections(result) for result in results]

    def _detections(self, result: Any) -> tuple[Detection, ...]:
        scores, labels, boxes = (np.asarray(result[key].cpu()) for key in ("scores", "labels", "boxes"))
        order = np.argsort(-scores, kind="stable")
        return tuple(
            Detection(self._names[int(labels[i])], float(scores[i]), tuple(float(side) for side in boxes[i]))  # type: ignore[arg-type]
            for i in order
        )
