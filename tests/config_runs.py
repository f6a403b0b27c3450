"""What tests/config does in other processes: a config at full size without arrays, and shrunken for real."""

import math
import multiprocessing
import pathlib
import sys

import jax
from absl import logging
from forked import print_to, processes
from resume_runs import block_batch

from pixart_jax.config import ConfigDict, check_batch, check_config, read_config_file
from pixart_jax.devices.sharding import MeshSpec, make_mesh
from pixart_jax.training.inputs.base import abstract_batch, batch_spec
from pixart_jax.training.inputs.opening import open_data
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.program import Program
from tools.sample import main as sample

ROOT = pathlib.Path(__file__).parent.parent
PATHS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem not in ("__init__", "shared")}
SIGMA = [name for name in PATHS if name.startswith("sigma_")]
KV = {"model.kv_compress_ratio": 2}
DEVICES, FSDP = 8, 4


def read(name: str, settings: dict) -> ConfigDict:
    """configs/NAME.py on synthetic data and fresh weights, with "section.key" settings."""
    config = read_config_file(str(PATHS[name]))
    without = {"init_from": "", "eval.source": "", "sample.retrieval_captions": 0}
    without |= {f"data.{key}": "" for key in ("prior_source", "pair_source", "caption", "vae", "text_encoder")}
    without |= {"data.online": False, "data.caption_cleaning": "none"}
    change(config, {"data.source": "synthetic"} | without | settings)
    return config


def change(config: ConfigDict, settings: dict) -> None:
    for key, value in settings.items():
        section, _, last = key.rpartition(".")
        (config[section] if section else config)[last] = value


# Every feature of a config stays but its size: the smallest resolution with buckets, and few steps.
SHRUNKEN = {
    "model.hidden_size": 24,
    "model.depth": 2,
    "model.num_heads": 2,
    "model.text_dim": 32,
    "model.resolution": 256,
    "model.kv_compress_from": 1,
    "model.scan_unroll": 1,
    "data.batch_size": 4,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 1,
    "train.num_steps": 4,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "sample.every": 1000,
    "sample.num_images": 2,
    "sample.num_steps": 3,
}


def start_run(
    name: str, settings: dict, workdir: pathlib.Path, prompt: str = "", block_at: int = 0
) -> multiprocessing.Process:
    """Trains a shrunken config, and draws the prompt with tools.sample; what it prints goes to workdir/log.

    Args:
      block_at: the batch that never comes; 0: all come.
    """
    workdir.mkdir(exist_ok=True)
    process = processes.Process(target=_train, args=(name, settings, workdir, prompt, block_at), daemon=True)
    process.start()
    return process


def _train(name: str, settings: dict, workdir: pathlib.Path, prompt: str, block_at: int) -> None:
    print_to(workdir / "log")
    logging.set_verbosity(logging.INFO)
    if block_at:
        block_batch(block_at)
    train_and_evaluate(read(name, SHRUNKEN | settings), str(workdir))
    if prompt:
        sys.exit(sample(["--checkpoint", str(workdir), "--prompt", prompt]))


def train_abstractly(name: str, settings: dict, compile: bool) -> dict:
    """Two steps of a config at its own size and batch, split over DEVICES, without an array.

    Returns:
      params; the bytes on each device of state and batch (by shape and sharding), and, if compiled, the compiler's
      bytes of arguments, of arguments whose memory the results take over, and of scratch.

    Raises:
      AssertionError: the state after a step is not of the kind that the step takes.
    """
    config = read(name, {"mesh.fsdp": FSDP} | settings)
    check_config(config)
    check_batch(config, jax.device_count())
    mesh = make_mesh(MeshSpec(fsdp=FSDP))
    program = Program(config, mesh)
    spec = batch_spec(config)
    data = open_data(config, spec)
    batch = abstract_batch(data, spec, mesh, config.data.batch_size)
    data.batches.close()
    first, frozen = program.state, program.frozen
    shardings = jax.tree.map(lambda leaf: leaf.sharding, first)
    step = jax.jit(program.step, donate_argnums=0, out_shardings=(shardings, None))
    second, metrics = step.eval_shape(first, frozen, batch)
    assert kinds(second) == kinds(first)
    assert kinds(step.eval_shape(second, frozen, batch)) == kinds((first, metrics))
    figures = {
        "params": sum(leaf.size for leaf in jax.tree.leaves(first.params)),
        "state_bytes": sum(map(shard_bytes, jax.tree.leaves(first))),
        "batch_bytes": sum(map(shard_bytes, jax.tree.leaves(batch))),
        "whole_state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(first)),
    }
    if compile:
        memory = program.lower(batch).compile().memory_analysis()
        figures["argument_bytes"] = memory.argument_size_in_bytes
        figures["alias_bytes"] = memory.alias_size_in_bytes
        figures["scratch_bytes"] = memory.temp_size_in_bytes
    return figures


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)), tree)


def shard_bytes(leaf) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
