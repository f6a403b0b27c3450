"""What a run is going to do: all that can be refused is refused here, before anything is compiled."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pixart_jax.checkpoints.checkpoints import has_checkpoint
from pixart_jax.cluster.agreement import agree, check_shared, gather, together
from pixart_jax.cluster.ending import Ending
from pixart_jax.config import (
    ConfigDict,
    check_attention,
    check_batch,
    check_config,
    check_offload,
    flatten,
    mesh_spec,
    phases,
)
from pixart_jax.config.declaration import listed
from pixart_jax.config.local_paths import resolve_paths
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.prompts import configured_prompts
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.devices.sharding import batch_share, make_mesh
from pixart_jax.errors import InputError
from pixart_jax.evaluators.validation import HeldOut
from pixart_jax.files import local_path, refuse_patterns
from pixart_jax.files.locks import hold
from pixart_jax.models.remat import AUTO
from pixart_jax.training.facts import run_facts
from pixart_jax.training.inputs.base import TrainingData, abstract_batch, batch_spec
from pixart_jax.training.inputs.distance import open_distance
from pixart_jax.training.inputs.held_out import open_held_out
from pixart_jax.training.inputs.looked_at import LookedAt, open_looked_at
from pixart_jax.training.inputs.opening import open_data
from pixart_jax.training.inputs.shards import shard_folders
from pixart_jax.training.memory import memory_limit, settle
from pixart_jax.training.mirror import Mirror
from pixart_jax.training.program import FROM_CONFIG, BatchShapes, Parts, Program
from pixart_jax.training.trackers import check_trackers
from pixart_jax.training.waits import announced
from pixart_jax.warm_start.start import WarmStart, open_base
from pixart_jax.warm_start.trained_adapter import load_trained_adapter

# Says whose the workdir is; a killed run leaves it behind, but free.
LOCK_FILE = ".lock"
# What makes a folder something else than a run.
_MARKS = {
    "model.json": "a converted model",
    "model_index.json": "a pipeline of diffusers",
    "params": "an encoder or another part of a converted model",
    "manifest.json": "a data set",
    "adapter_config.json": "an adapter",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run that nothing speaks against.

    Attributes:
      workdir: exists, and can be written to.
      ending: of the process.
      mesh: devices that it is laid over.
      parts: what it computes there, each part with the number of steps before it, see `config.phases`: one of all
        states and frozen halves. Their configs say what `config.model.remat` has come to.
      spec: the shapes of this process's part of a batch.
      data: what it trains on.
      held_out: what it is evaluated on, if anything.
      looked_at: what its pictures are measured with, if with anything.
      share, num_shares: which part of every batch this process reads, and of how many.
      warm_start: the weights that it starts from, if any; of a run that goes on, only those that it holds frozen.
      weights: those of `warm_start`, read: '/'-joined path to array. Emptied when they go to the devices.
      mirror: the workdir's copy, if this process keeps one.
      trained: what `config.adapter.init_from` holds, likewise; None where the run begins without, or goes on.
    """

    config: ConfigDict
    workdir: pathlib.Path
    ending: Ending
    mesh: Mesh
    parts: list[tuple[int, Program]]
    spec: BatchSpec
    data: TrainingData
    held_out: HeldOut | None
    looked_at: LookedAt | None
    share: int
    num_shares: int
    warm_start: WarmStart | None
    weights: dict[str, np.ndarray] | None
    trained: dict[str, np.ndarray] | None
    mirror: Mirror | None = None

    @property
    def program(self) -> Program:
        """The first part's."""
        return self.parts[0][1]

    @property
    def last(self) -> int:
        """The number of the last step."""
        return self.config.train.num_steps

    def batch_shapes(self) -> BatchShapes:
        """Of a global batch."""
        return abstract_batch(self.data, self.spec, self.mesh, self.config.data.batch_size)


@contextmanager
def open_plan(
    config: ConfigDict, workdir: str | pathlib.Path, ending: Ending, parts: Parts = FROM_CONFIG
) -> Iterator[Plan]:
    """Checks what a run needs, on all its processes, and owns its workdir until the end.

    Raises:
      InputError: configuration, data, weights or workdir are unfit, or the processes do not agree.
    """
    with ExitStack() as owning:
        yield _open_plan(config, workdir, ending, parts, owning)


def _open_plan(
    config: ConfigDict, workdir: str | pathlib.Path, ending: Ending, parts: Parts, owning: ExitStack
) -> Plan:
    # All decide by the least of them what fits.
    limits = [json.loads(text) for text in gather("memory", json.dumps(memory_limit(jax.local_devices()[0])))]
    limit = None if None in limits else min(limits)
    mirror = None
    with together("fetching what config.train.mirror has"):
        if (url := config.train.mirror.strip()) and jax.process_index() == 0:
            check_config(config)
            mirror = Mirror(url, local_path(workdir, "--workdir").absolute())
            mirror.fetch()
    with together("checking what the run needs"):
        path = local_path(workdir, "--workdir").absolute()
        refuse_patterns(path, "--workdir")
        refuse_what_is_no_run(path)
        check_config(config)
        resolve_paths(config)
        check_batch(config, jax.device_count())
        check_attention(config, jax.devices()[0])
        check_offload(config, jax.local_devices()[0])
        check_trackers(listed(config.train.trackers))
        if there := path.is_dir():  # Before all that takes long.
            owning.enter_context(own_workdir(path))
        mesh = make_mesh(mesh_spec(config))
        share, num_shares = batch_share(mesh)
        spec = batch_spec(config, num_shares)
        data = open_data(config, spec, process_index=share, process_count=num_shares)
        distance = open_distance(config, mesh)
        parts = dataclasses.replace(parts, distance=distance.held) if distance else parts
        held_out = open_held_out(config, dataclasses.replace(spec, align_dim=0), data.manifest)
        looked_at = open_looked_at(config)
        shapes = abstract_batch(data, spec, mesh, config.data.batch_size)
        programs = [(done, settled_program(own, mesh, parts, shapes, limit)) for done, own in phases(config)]
        program = programs[0][1]
        # A run that goes on has its own weights, but for those that are never saved.
        wanted = config.init_from and (program.birth.holds_something or not has_checkpoint(path))
        warm_start = open_init_from(config, data.manifest, path) if wanted else None
        weights = None
        if warm_start:
            with announced("reading the weights"):
                weights = warm_start.load()
        trained = None
        if config.adapter.init_from and not has_checkpoint(path):
            trained = load_trained_adapter(config)
            logging.info("the adapter starts from %s: %d arrays", config.adapter.init_from, len(trained))
        if not there:
            owning.enter_context(own_workdir(path))
    if jax.process_count() > 1:
        settings, sources, prompts = flatten(config), shard_folders(config), configured_prompts(config.sample.prompts)
        begun = (weights or {}) | {f"adapter/{name}": array for name, array in (trained or {}).items()}
        facts = run_facts(settings, sources, data.batches.get_state(), begun, prompts)
        more = (looked_at.facts() if looked_at else {}) | (distance.facts if distance else {})
        agree("what the run is", facts | more)
        check_shared(path, ending.waits.file)
    return Plan(
        config,
        path,
        ending,
        mesh,
        programs,
        spec,
        data,
        held_out,
        looked_at,
        share,
        num_shares,
        warm_start,
        weights,
        trained,
        mirror,
    )


def settled_program(config: ConfigDict, mesh: Mesh, parts: Parts, batch: BatchShapes, limit: float | None) -> Program:
    """What is compiled, with what the backward pass keeps decided and said."""
    settled, choice = settle(config, mesh, batch, limit=limit, parts=parts)
    if config.model.remat == AUTO:
        logging.info("config.model.remat = auto: %s", choice)
    if not choice.fits:
        cure = "split the batch by config.train.accumulation_steps, or the state by config.mesh.fsdp"
        logging.warning("THE STEP MAY NOT FIT: %s; %s", choice, cure)
    return Program(settled, mesh, parts)


def open_init_from(config: ConfigDict, manifest: Manifest, workdir: pathlib.Path) -> WarmStart:
    """config.init_from, found to fit; says what is copied.

    Raises:
      InputError: it does not fit; with the table of differences.
    """
    start = open_base(config, manifest, workdir)
    logging.info("starting from %s\n  %s", start.path, "\n  ".join(start.table))
    return start


def refuse_what_is_no_run(path: pathlib.Path) -> None:
    """Raises InputError for a folder that is something else already, and would be taken for that afterwards; runs of
    before this was asked go on."""
    if has_checkpoint(path):
        return
    for name, what in _MARKS.items():
        if (path / name).exists():
            raise InputError(f"--workdir={path} is {what}, as its {name} says; name another folder for the run")


@contextmanager
def own_workdir(path: pathlib.Path) -> Iterator[None]:
    """Makes the workdir, which nobody else is to write until the end; of several processes the first one owns it.

    Raises:
      InputError: it cannot be written, or another run has it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"--workdir={path}: cannot write there ({error.strerror}); name a folder you own") from error
    with hold(path / LOCK_FILE, f"--workdir={path}") if jax.process_index() == 0 else nullcontext():
        yield
