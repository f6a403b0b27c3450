"""The input pipeline's benchmark: that it compares like with like and counts workers' time; never how fast it is."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pixart_jax.errors import InputError
from tools.bench import data
from tools.bench.__main__ import main


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return folder, data.write_sources(folder, 256, 3)


def test_both_loaders_read_the_same_samples(sources):
    folder, readers = sources
    assert [name for _, name in readers] == ["npz", "bfloat16", "int8"]
    reader = data.ReferenceFiles(folder / "npz", 256)
    expected = list(data.random_samples(256, 3))
    assert len(reader) == len(expected) == 3
    for i, (mean, std, text, length) in enumerate(expected):
        latents, features, mask, sizes = reader[i]
        assert features.shape == (1, 120, 4096)
        assert mask.shape == (1, 1, 120)
        assert int(mask.sum()) == length
        np.testing.assert_array_equal(features[0].numpy(), text)
        noise = (latents.permute(1, 2, 0).numpy() - mean) / std
        assert noise.std() == pytest.approx(1, abs=0.1)
        assert sizes["img_hw"].tolist() == [256, 256]
    # In bfloat16 nothing is lost; an int8 number is off by at most half a step.
    for name, tolerance in (("bfloat16", 0), ("int8", 0.51 / 127)):
        batches = data.read_ours(folder / name, 256, 3, 0)
        batch = next(batches)
        batches.close()
        by_length = {int(length): rows for length, rows in zip(batch["text_length"], batch["text"], strict=True)}
        assert sorted(by_length) == sorted(length for *_, length in expected)
        for _, _, text, length in expected:
            rows = by_length[length].astype(np.float32)
            assert not rows[length:].any()
            # bfloat16 batches round once more, to 8 bits.
            limit = tolerance * np.abs(text[:length]).max() + (2**-8 if tolerance else 0) * np.abs(text[:length])
            assert (np.abs(rows[:length] - text[:length]) <= limit).all()


def test_reference_files_are_those_of_the_extraction(sources):
    folder, _ = sources
    with np.load(folder / "npz" / "0.npz") as file:
        assert {name: (file[name].dtype, file[name].shape) for name in file.files} == {
            "caption_feature": (np.float32, (1, 120, 4096)),
            "attention_mask": (np.int64, (1, 120)),
        }
        raw = file["caption_feature"].nbytes
    latents = np.load(folder / "npz" / "0.npy")
    assert (latents.dtype, latents.shape) == (np.float32, (8, 32, 32))
    assert (latents[4:] > 0).all()
    assert (folder / "npz" / "0.npz").stat().st_size < 0.7 * raw, "is to be compressed"


def test_figures(capsys, tmp_path):
    arguments = [
        f"--directory={tmp_path / 'new' / 'deeper'}",
        "--samples=3",
        "--batch-size=2",
        "--workers=0",
        "--seconds=0.1",
    ]
    assert main(["--what=data", *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["loader"], row["text"]) for row in rows] == [
        ("pytorch", "npz"), ("pixart_jax", "bfloat16"), ("pixart_jax", "int8"),
    ]  # fmt: skip
    reference = rows[0]
    for row in rows:
        assert (row["resolution"], row["batch_size"], row["workers"]) == (256, 2, 0)
        speed, per_core = row["samples_per_second"], row["samples_per_second_per_core"]
        assert speed > 0
        assert per_core > 0
        assert row["megabytes_per_second"] == pytest.approx(speed * row["bytes_per_sample"] / 1e6)
        assert row["times_pytorch"] == pytest.approx(speed / reference["samples_per_second"])
        assert row["times_pytorch_per_core"] == pytest.approx(per_core / reference["samples_per_second_per_core"])
        assert row["h200_samples_per_second"] == 500
        assert row["cores_per_h200"] == pytest.approx(500 / per_core)
    assert rows[0]["bytes_per_sample"] > rows[1]["bytes_per_sample"] > rows[2]["bytes_per_sample"]
    assert not list((tmp_path / "new" / "deeper").iterdir())


def test_processor_time_of_workers_counts():
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    before = data.processor_seconds()
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout.readline() == b"done\n"
        assert data.processor_seconds() - before > 0.45
        worker.stdin.close()


@pytest.mark.parametrize("option", ["--batch-size=4", "--batch-size=0", "--workers=-1", "--seconds=0"])
def test_options_out_of_range(option):
    with pytest.raises(InputError, match=option):
        list(data.run(["--samples=3", "--batch-size=1", option]))
