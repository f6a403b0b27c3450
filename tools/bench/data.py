"""Speed of the input pipeline, beside that of a PyTorch DataLoader over the files of PixArt's own extraction.

Both read the same samples, from the page cache, with as many worker processes, in turns. PyTorch's dataset does what
PixArt's does (spec §6.1, §6.3): a compressed .npz per caption, padded, and an .npy per picture. "Per core" divides by
the processor time of the loader's process and its workers, whatever the clock says. Linux only, and needs PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import mmap
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from pixart_jax.commands import command
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pipeline import make_iterator
from pixart_jax.data.shards.feature_shards import FeatureShardWriter
from pixart_jax.data.shards.records import Sample, Text, quantize
from pixart_jax.errors import InputError

from .options import add_directory, empty_folder
from .turns import in_process, take_turns

# Pictures per second that one H200 is to train on, by resolution: what its host has to deliver.
DEMAND = {256: 500, 512: 120, 1024: 25}
MAX_TEXT_TOKENS, TEXT_DIM = 120, 4096
LATENT_CHANNELS, LATENT_SCALE = 4, 0.18215
# Random numbers take longer to compress than to read back a hundred times, so this many samples are written again and
# again, under new names: other files and other pages, of the same sizes.
DISTINCT_SAMPLES = 64
ROUNDS = 3
WARM_UP_SECONDS = 1.0
# Seconds, the unit in which Linux counts a process's time.
TICK = 1 / os.sysconf("SC_CLK_TCK")


def run(argv: Sequence[str]) -> Iterator[dict]:
    """Figures of PyTorch's loader, of ours with bfloat16 text and of ours with int8 text."""
    parser = argparse.ArgumentParser(prog=f"{command('bench')} --what=data", description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, choices=DEMAND, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=2000, help="on disk, 2 MB each (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help=f"per loader, {ROUNDS} times (default: %(default)s)"
    )
    add_directory(parser)
    args = parser.parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        raise InputError("--what=data compares with PyTorch, which is not installed; pip install torch==2.13.0")
    if args.workers < 0 or args.seconds <= 0 or not 1 <= args.batch_size <= args.samples:
        raise InputError(
            f"--workers={args.workers} --seconds={args.seconds} --batch-size={args.batch_size} "
            f"--samples={args.samples}: no workers below 0, seconds above 0, and 1 to --samples pictures in a batch"
        )
    with empty_folder(args.directory) as folder:
        sources = write_sources(folder, args.resolution, args.samples)
        bytes_per_sample = {
            text: sum(f.stat().st_size for f in (folder / text).rglob("*")) / args.samples for _, text in sources
        }
        rates = measure(
            {text: (reader, (folder / text, args.resolution, args.batch_size)) for reader, text in sources},
            args.workers,
            args.seconds,
        )
        for reader, text in sources:
            speed, per_core = rates[text]
            yield {
                "loader": READER_NAMES[reader],
                "text": text,
                "resolution": args.resolution,
                "batch_size": args.batch_size,
                "workers": args.workers,
                "samples_per_second": speed,
                "samples_per_second_per_core": per_core,
                "megabytes_per_second": speed * bytes_per_sample[text] / 1e6,
                "bytes_per_sample": bytes_per_sample[text],
                "times_pytorch": speed / rates[PYTORCH_TEXT][0],
                "times_pytorch_per_core": per_core / rates[PYTORCH_TEXT][1],
                "h200_samples_per_second": DEMAND[args.resolution],
                "cores_per_h200": DEMAND[args.resolution] / per_core,
                "rounds": ROUNDS,
                "seconds": args.seconds,
            }


# --- the samples


def random_samples(
    resolution: int, count: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Mean and std float32[h, w, C] of the latents, text float32[120, 4096] and its length.

    The text's numbers have bfloat16's precision: the reference runs T5 in it, and half of each stored float32 is zeros,
    which compress. Rows past the length are as random as the rest: T5 answers for padding too.
    """
    rng = np.random.default_rng(seed)
    side = resolution // 8
    for _ in range(count):
        mean = rng.standard_normal((side, side, LATENT_CHANNELS), dtype=np.float32) / np.float32(LATENT_SCALE)
        std = np.exp(rng.standard_normal(mean.shape, dtype=np.float32) - 4)
        text = rng.standard_normal((MAX_TEXT_TOKENS, TEXT_DIM), dtype=np.float32) * np.float32(0.1)
        length = int(np.clip(rng.lognormal(np.log(40), 0.5), 2, MAX_TEXT_TOKENS))
        yield mean, std, text.astype(ml_dtypes.bfloat16).astype(np.float32), length


def write_sources(folder: pathlib.Path, resolution: int, count: int) -> list[tuple[Callable, str]]:
    """The same samples in every layout, each in a folder below; returns (what reads it, its name)."""
    (folder / PYTORCH_TEXT).mkdir()
    with contextlib.ExitStack() as stack:
        writers = {
            dtype: stack.enter_context(
                FeatureShardWriter(
                    folder / dtype,
                    latent_channels=LATENT_CHANNELS,
                    latent_scale=LATENT_SCALE,
                    latent_kind="mean_std",
                    downsample=8,
                    patch_size=2,
                    resolution=resolution,
                    autoencoder="none",
                    text_encoder="none",
                    caption_cleaning="none",
                    text_dim=TEXT_DIM,
                    max_text_tokens=MAX_TEXT_TOKENS,
                    text_dtype=dtype,
                    records_per_shard=512,
                )
            )
            for dtype in ("bfloat16", "int8")
        }
        for first, (mean, std, text, length) in enumerate(random_samples(resolution, min(count, DISTINCT_SAMPLES))):
            real = text[:length]
            texts = {
                "bfloat16": (Text("", real.astype(ml_dtypes.bfloat16)),),
                "int8": (Text("", *quantize(real)),),
            }
            caption, latents = reference_files(mean, std, text, length)
            for index in range(first, count, DISTINCT_SAMPLES):
                (folder / PYTORCH_TEXT / f"{index}.npz").write_bytes(caption)
                (folder / PYTORCH_TEXT / f"{index}.npy").write_bytes(latents)
                for dtype, writer in writers.items():
                    writer.write(
                        Sample(
                            key=str(index),
                            image_size=(resolution, resolution),
                            bucket=(resolution, resolution),
                            latent_mean=mean.astype(np.float16),
                            latent_std=std.astype(np.float16),
                            texts=texts[dtype],
                        )
                    )
    return [(read_pytorch, PYTORCH_TEXT), (read_ours, "bfloat16"), (read_ours, "int8")]


def reference_files(mean: np.ndarray, std: np.ndarray, text: np.ndarray, length: int) -> tuple[bytes, bytes]:
    """The .npz and the .npy of one sample, as α's extraction writes them (spec §6.1)."""
    caption, latents = io.BytesIO(), io.BytesIO()
    mask = (np.arange(MAX_TEXT_TOKENS) < length).astype(np.int64)
    np.savez_compressed(caption, caption_feature=text[None], attention_mask=mask[None])
    np.save(latents, np.concatenate([mean.transpose(2, 0, 1), std.transpose(2, 0, 1)]))
    return caption.getvalue(), latents.getvalue()


# --- the loaders


def read_ours(folder: pathlib.Path, resolution: int, batch_size: int, workers: int) -> Iterator[dict]:
    """Batches as a training run at this resolution in bfloat16 takes them."""
    side = resolution // 16
    spec = BatchSpec(
        batch_size=batch_size,
        num_tokens=side**2,
        patch_size=2,
        latent_channels=LATENT_CHANNELS,
        position_base=side,
        position_scale=1.0,
        max_text_tokens=MAX_TEXT_TOKENS,
        text_dim=TEXT_DIM,
        text_dtype="bfloat16",
    )
    return make_iterator([(folder, 1.0)], spec, seed=0, num_workers=workers)


def read_pytorch(folder: pathlib.Path, resolution: int, batch_size: int, workers: int) -> Iterator[list]:
    """Batches of the reference's tensors. Endless, as if an epoch were long: starting workers anew is not its work."""
    import torch

    # PyTorch takes any object with a length and items, and says that it takes its own class alone.
    dataset: Any = ReferenceFiles(folder, resolution)
    return iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=2**40),
            num_workers=workers,
            drop_last=True,
        )
    )


class ReferenceFiles:
    """Map-style dataset over what PixArt's extraction writes; does per sample what the reference's does."""

    def __init__(self, folder: pathlib.Path, resolution: int):
        self._stems = sorted(str(path)[:-4] for path in folder.glob("*.npz"))
        self._resolution = resolution

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> tuple:
        import torch

        mean, std = torch.from_numpy(np.load(f"{self._stems[index]}.npy")).chunk(2)
        latents = mean + std * torch.randn_like(mean)
        with np.load(f"{self._stems[index]}.npz") as file:
            text = torch.from_numpy(file["caption_feature"])
            mask = torch.from_numpy(file["attention_mask"])[None]
        sizes = {"img_hw": torch.full((2,), float(self._resolution)), "aspect_ratio": torch.tensor(1.0)}
        return latents, text, mask, sizes


PYTORCH_TEXT = "npz"
READER_NAMES = {read_ours: "pixart_jax", read_pytorch: "pytorch"}


# --- the measurement


def measure(loaders: dict[str, tuple[Callable, tuple]], workers: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Samples per second, and per second of processor time: medians of rounds in which the loaders take turns.

    Each loader has a process of its own, which waits, its workers' queues full, while the others have their turn.
    """
    with contextlib.ExitStack() as stack:
        turns = {}
        for name, (reader, arguments) in loaders.items():
            call = stack.enter_context(in_process(Loader, reader, (*arguments, workers), arguments[2]))
            turns[name] = functools.partial(call, "read", seconds)
        figures, failures = take_turns(turns, ROUNDS)
    if failures:
        raise RuntimeError("; ".join(f"the loader of {name} failed: {error}" for name, error in failures.items()))
    return {name: tuple(statistics.median(row) for row in zip(*rows, strict=True)) for name, rows in figures.items()}


class Loader:
    """Reads for as long as it is told to, as often as it is told to."""

    def __init__(self, reader: Callable, arguments: tuple, batch_size: int):
        self._batches, self._batch_size = reader(*arguments), batch_size

    def read(self, seconds: float) -> tuple[float, float]:
        """Samples per second, and per second of processor time."""
        # Takes what was made ahead while others had their turn.
        _read(self._batches, min(WARM_UP_SECONDS, seconds))
        processor, begin = processor_seconds(), time.perf_counter()
        count = _read(self._batches, seconds) * self._batch_size
        elapsed, processor = time.perf_counter() - begin, processor_seconds() - processor
        return count / elapsed, count / max(processor, TICK)

    def close(self) -> None:
        # A Grain iterator that is not closed leaves shared memory behind; PyTorch's has no such method.
        getattr(self._batches, "close", lambda: None)()


def _read(batches: Iterator, seconds: float) -> int:
    end, count = time.perf_counter() + seconds, 0
    while not count or time.perf_counter() < end:
        touch(next(batches))
        count += 1
    return count


def touch(batch: object) -> None:
    """Reads a byte of every page of a batch's arrays, as the transfer to a device would: what is shared between
    processes, and what was never written, comes into memory only then."""
    for leaf in jax.tree.leaves(batch):
        np.asarray(leaf).reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].sum()


def processor_seconds() -> float:
    """Time that processors spent on this process and on all below it that still live."""
    ticks, parents = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # It has ended.
            pid = int(path.parent.name)
            # The name in brackets may hold anything; parent, user and system time are 2, 12 and 13 fields after it.
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    total, this = 0, os.getpid()
    for pid in ticks:
        ancestor = pid
        while ancestor not in (this, 0):
            ancestor = parents.get(ancestor, 0)
        total += ticks[pid] if ancestor == this else 0
    return total * TICK
