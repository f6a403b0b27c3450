"""What a run has recorded of itself, for its model card."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pixart_jax.config import default_config, flatten, load_config
from pixart_jax.config.local_paths import without_folders
from pixart_jax.conversion.stored import read_stored_model
from pixart_jax.data.shards.manifest import ENCODERS, Manifest, read_manifest
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_fields
from pixart_jax.studio.runs import read_run
from pixart_jax.training.record import RUN_FILE

# Of a run's pictures: those that say most, in the order of the card.
_PICTURES = ("samples", "quality", "validation", "eval", "loss")
# An id of a hub, as `conversion.hub` takes it, without its path.
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# Runs that began from one another, at most.
_GENERATIONS = 20


class Picture(NamedTuple):
    """A PNG of a run, and the step after which it was drawn."""

    path: pathlib.Path
    step: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run has recorded.

    Attributes:
      step, num_steps: of the weights, and of the whole run.
      trained: a value of config.adapter.kind.
      objective: a value of config.objective.kind.
      settings: every key of the config, without the folders of this machine.
      changed: those that are not the defaults.
      manifest: of the data.
      recorded: what run.json says: versions, devices, numbers of parameters.
      figures: the last of all that was measured up to that step, by the file of the run and the name.
      pictures: PNGs by name: what was drawn last up to that step, and curves.
      base: the hub's id of the weights that the run began with; "" where it is not known, or there were none.
      began_with_weights: whether there were any.
    """

    step: int
    num_steps: int
    trained: str
    objective: str
    settings: Mapping[str, Any]
    changed: Mapping[str, Any]
    manifest: Manifest
    recorded: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, float]]
    pictures: Mapping[str, Picture]
    base: str
    began_with_weights: bool


def read_facts(workdir: pathlib.Path, step: int) -> Facts:
    """What a run has recorded up to a step.

    Raises:
      InputError: it is no run, or what it needs to be drawn from is damaged.
    """
    config, view = load_config(workdir), read_run(workdir)
    settings = without_folders(config)
    usual = flatten(default_config())
    figures = {}
    for file, curves in view.curves.items():
        last = {name: [value for at, value in points if at <= step][-1:] for name, points in curves.items()}
        figures[file] = {name: value for name, values in last.items() for value in values}
    pictures: dict[str, Picture] = {}
    for name in _PICTURES:
        until = [Picture(path, at) for at, path in view.pictures.get(name, {}).items() if at <= step]
        # A curve, which is drawn over and over, lies beside the folders of the others.
        picture = until[-1] if until else Picture(workdir / f"{name}.png", step)
        if picture.path.is_file():
            pictures[name] = picture
    return Facts(
        step=step,
        num_steps=config.train.num_steps,
        trained=config.adapter.kind,
        objective=config.objective.kind,
        settings=settings,
        changed={name: value for name, value in settings.items() if value != usual[name]},
        manifest=read_manifest(workdir / ENCODERS, may_be_empty=True),
        recorded=_recorded(workdir),
        figures=figures,
        pictures=pictures,
        base=base_of(pathlib.Path(config.init_from)) if config.init_from else "",
        began_with_weights=bool(config.init_from),
    )


def base_of(weights: pathlib.Path, generations: int = _GENERATIONS) -> str:
    """The hub's id that weights came from, through all runs between; "" where that is not known.

    Args:
      weights: a model of ours, the workdir of a run, or an id itself.
    """
    if not weights.exists():
        found = _ID.match(str(weights))
        # A folder that is gone may read as an id; but what was fetched by its id is in the client's cache.
        return found[0] if found and _is_cached(found[0]) else ""
    try:
        if (weights / "model.json").is_file():
            source = read_stored_model(weights).provenance.get("source", "")
            # What was here when it was converted is called by its name alone.
            found = _ID.match(source)
            return found[0] if found else ""
        if (weights / "config.json").is_file() and generations:
            before = load_config(weights).init_from
            return base_of(pathlib.Path(before), generations - 1) if before else ""
    except InputError:
        pass
    return ""


def _is_cached(repo: str) -> bool:
    from huggingface_hub import constants

    return (pathlib.Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}").is_dir()


def _recorded(workdir: pathlib.Path) -> Mapping[str, Any]:
    """A run.json that is damaged or gone keeps nobody from publishing."""
    try:
        return dict(read_fields(workdir / RUN_FILE, "it is not needed"))
    except InputError:
        return {}
