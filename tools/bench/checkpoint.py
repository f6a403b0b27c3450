"""What a checkpoint costs the training loop, beside torch.save of a state of the same size.

Ours is written in the background: the loop waits for `Checkpoints.save` to return, and its steps may take longer while
files are written. torch.save holds the loop until all is written. Both leave the rest to the page cache.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence

import jax

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import ConfigDict, build_model
from pixart_jax.models.params import parameter_shapes

from .options import add_directory, check_peer, empty_folder, make_parser, parse_with_config
from .peer import missing_torch, open_peers, torch_device
from .train import WARM_UP, TrainProgram
from .turns import Figures, compare, time_calls


def run(argv: Sequence[str]) -> Iterator[dict]:
    """The figures of the command line's config: "seconds" is the stall, of a step that saves."""
    parser = make_parser(__name__, __doc__, calls=5)
    add_directory(parser)
    args, config, about = parse_with_config(parser, argv)
    check_peer(args, ("eager",), "saving has nothing to compile, and is compared with eager alone")
    with empty_folder(args.directory) as folder:
        yield {**about, **bench_checkpoint(config, folder, args.steps, args.rounds, args.peer)}


def bench_checkpoint(config: ConfigDict, folder: pathlib.Path, steps: int, rounds: int, peer: str) -> Figures:
    program = TrainProgram(config, jax.devices())
    missing = missing_torch() or ("a comparison on several devices" if jax.device_count() > 1 else None)
    shapes = list(parameter_shapes(build_model(config)).values())
    # There is nothing to compile.
    peer = "none" if peer == "none" else "eager"
    with open_peers(peer, missing, "torch_parts.Save", torch_device(), shapes) as (peers, absence):
        turns = {name: functools.partial(call, "turn", str(folder / "state.pt")) for name, call in peers.items()}
        figures = compare(functools.partial(save_turn, program, folder / "run", steps), turns, rounds)
    if figures["peer"]:
        figures["ratio_restore"] = figures["peer"]["eager"]["restore_seconds"] / figures["restore_seconds"]
    return {
        **figures,
        **absence,
        "batch_size": config.data.batch_size,
        "steps": steps,
    }


def save_turn(program: TrainProgram, workdir: pathlib.Path, steps: int) -> Figures:
    """One save beside the steps of training, and one restore.

    Returns:
      "save_seconds": of the call. "slowdown_seconds": by how much the steps beside the writing took longer in all than
      steps by themselves, whose median is "step_seconds". "seconds": the sum of the two. "background_seconds": from
      the call's end to that of the step in which the writing ended, the last of "steps_beside". "restore_seconds";
      "bytes" on disk.
    """
    state, frozen = program.create_state()

    def step() -> float:
        nonlocal state
        begin = time.perf_counter()
        state, _ = program.compiled(state, frozen, program.batch)
        jax.block_until_ready(state)
        return time.perf_counter() - begin

    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.prepare(program.abstract)
    for _ in range(WARM_UP):
        step()
    alone = statistics.median(step() for _ in range(steps))
    save_seconds = time_calls(lambda: checkpoints.save(state, {}), 1, lambda _: None)
    begin, beside = time.perf_counter(), []
    while checkpoints.wait(0):
        beside.append(step())
    background_seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in checkpoints.directory.rglob("*") if path.is_file())
    state = None
    restore_seconds = time_calls(lambda: checkpoints.restore(program.abstract), 1, jax.block_until_ready)
    checkpoints.close()
    shutil.rmtree(workdir)
    slowdown = sum(beside) - alone * len(beside)
    return {
        "seconds": save_seconds + slowdown,
        "save_seconds": save_seconds,
        "slowdown_seconds": slowdown,
        "step_seconds": alone,
        "background_seconds": background_seconds,
        "steps_beside": len(beside),
        "restore_seconds": restore_seconds,
        "bytes": size,
    }
