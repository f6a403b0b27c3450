"""A data set and a config small enough to train for real in a test: three aspect ratios, four tokens at most."""

import gc
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from forked import flags_for

from pixart_jax.commands import SELDOM
from pixart_jax.config import ConfigDict, default_config
from pixart_jax.data.shards.feature_shards import FeatureShardWriter
from pixart_jax.data.shards.records import Sample, Text

# In processes of their own too; see `conftest.pytest_collection_finish`.
gc.set_threshold(*SELDOM)

ROOT = pathlib.Path(__file__).parent.parent
BUCKETS = ((32, 32), (16, 64), (16, 32))  # 2x2, 1x4 and 1x2 tokens
TEXT_DIM, MAX_TEXT_TOKENS, CHANNELS = 8, 5, 4


def write_data(directory: pathlib.Path, num_samples: int = 24, buckets=BUCKETS, **manifest) -> pathlib.Path:
    """Feature shards of random latents with a mean and a standard deviation; returns the directory."""
    rng = np.random.default_rng(0)
    fields = {
        "latent_channels": CHANNELS,
        "latent_scale": 0.5,
        "latent_kind": "mean_std",
        "downsample": 8,
        "patch_size": 2,
        "resolution": 0,
        "autoencoder": "none",
        "text_encoder": "none",
        "caption_cleaning": "none",
        "text_dim": TEXT_DIM,
        "max_text_tokens": MAX_TEXT_TOKENS,
        "text_dtype": "float32",
        "num_classes": 3,
        "records_per_shard": 10,
    } | manifest
    # Apart, so that no other number depends on whether there are any.
    rng_align, width = np.random.default_rng(1), fields.get("align_dim", 0)
    is_drawn = fields["latent_kind"] == "drawn"
    with FeatureShardWriter(directory, **fields) as writer:
        for i in range(num_samples):
            bucket = buckets[i % len(buckets)]
            shape = (bucket[0] // 8, bucket[1] // 8, fields["latent_channels"])
            latent_mean = rng.normal(size=shape).astype(np.float32)
            features = rng.normal(size=(1 + i % MAX_TEXT_TOKENS, fields["text_dim"])).astype(np.float32)
            writer.write(
                Sample(
                    key=f"sample-{i}",
                    image_size=(bucket[0] * 3, bucket[1] * 3),
                    bucket=bucket,
                    latent_mean=latent_mean,
                    latent_std=None if is_drawn else np.full(shape, 0.1, np.float32),
                    noise=latent_mean[::-1].copy() if is_drawn else None,
                    **control_of(latent_mean, fields.get("control", "none")),
                    align=rng_align.normal(size=(2, 3, width)).astype(np.float16) if width else None,
                    texts=(Text(f"picture number {i}", features),),
                    label=i % 3,
                )
            )
    return directory


def control_of(latent_mean: np.ndarray, control: str) -> dict[str, np.ndarray]:
    """A control picture of a sample: what it shows is upside down."""
    if control == "none":
        return {}
    return {"control_mean": -latent_mean[::-1].copy(), "control_std": np.full(latent_mean.shape, 0.2, np.float32)}


def tiny_config(data: pathlib.Path) -> ConfigDict:
    """Trains in seconds; every feature of the loop is on."""
    config = default_config()
    config.model.update(
        {
            "hidden_size": 24,
            "depth": 2,
            "num_heads": 2,
            "resolution": 32,
            "latent_channels": CHANNELS,
            "text_dim": TEXT_DIM,
            "max_text_tokens": MAX_TEXT_TOKENS,
            "micro_condition": True,
        }
    )
    config.data.update({"source": str(data), "batch_size": 8})
    config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 3, "grad_clip": 1.0, "eps": 1e-8})
    config.train.update({"num_steps": 12, "log_every": 3, "checkpoint_every": 4, "ema_decay": 0.9})
    config.sample.update({"every": 6, "num_images": 4, "num_steps": 3})
    return config


CONFIG_FILE = """
import sys
sys.path.insert(0, {tests!r})
from tiny_run import tiny_config

def get_config():
    return tiny_config({data!r})
"""


def write_config(path: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    """A config file for the command line; returns its path."""
    path.write_text(CONFIG_FILE.format(tests=str(ROOT / "tests"), data=str(data)))
    return path


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process with that many simulated CPU devices, which finds the package wherever it starts."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags_for(devices),
        "PYTHONPATH": str(ROOT),
    }


def run_python(*arguments, devices: int) -> str:
    """`python ARGUMENTS` on simulated devices, because their number is fixed when a process starts; what it printed."""
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, env=simulated(devices), capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-5000:]
    return process.stdout


def start_main(config: pathlib.Path, workdir: pathlib.Path, *settings: str, devices: int = 1) -> subprocess.Popen:
    """`python -m pixart_jax.main` in a process of its own, on that many simulated CPU devices."""
    command = [sys.executable, "-m", "pixart_jax.main", f"--config={config}", f"--workdir={workdir}", *settings]
    return subprocess.Popen(
        command, cwd=ROOT, env=simulated(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, expected_code: int = 0, timeout: float = 600) -> str:
    """Waits for a process and returns what it printed."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == expected_code, output[-5000:]
    return output


def read_metrics(workdir: pathlib.Path, file: str = "metrics.jsonl") -> list[dict]:
    """The rows of metrics.jsonl, or eval.jsonl, without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / file).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("images_per_second", "mfu")} for row in rows]
