"""From photographs of every shape to a training run: extracted, inspected, trained on, with one compilation."""

import math

import numpy as np
from photographs import crop_photographs
from PIL import Image
from tiny_run import read_metrics, tiny_config

from pixart_jax.data.shards.manifest import read_manifest
from pixart_jax.training.loop import train_and_evaluate
from tools import extract_features, inspect_data


def test_from_a_folder_to_a_run(weights, tmp_path, compilations, capsys):
    crop_photographs(tmp_path / "photos", 16)
    argv = ["--source", tmp_path / "photos", "--out", tmp_path / "set", "--resolution", "256", "--checkpoint", weights]
    assert extract_features.main([str(part) for part in (*argv, "--text-dtype", "int8")]) == 0
    manifest = read_manifest(tmp_path / "set")
    assert manifest.num_samples == 16 and len(manifest.buckets) > 5

    assert inspect_data.main([str(tmp_path / "set"), "--out", str(tmp_path / "inspection")]) == 0
    assert "whole: 16 of 16 records" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "inspection" / "contact_sheet.png")).std() > 10

    config = tiny_config(tmp_path / "set")
    model = {"resolution": 256, "text_dim": 20, "max_text_tokens": 300, "position_scale": 0.5}
    config.model.update(model)
    config.train.update({"num_steps": 6, "log_every": 1})
    config.sample.update({"every": 6, "num_images": 3})
    train_and_evaluate(config, str(tmp_path / "run"))
    assert compilations.count("jit(train_step)") == 1
    assert len(read_metrics(tmp_path / "run")) == 6
    assert all(math.isfinite(row["loss"]) for row in read_metrics(tmp_path / "run"))
