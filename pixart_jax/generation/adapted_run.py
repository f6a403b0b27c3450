"""A run that trains an adapter, to draw with: what it trains, over the weights that it trains beside."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, cast

import optax
from jax.sharding import Mesh

from pixart_jax.adapters.adapter import Parameters, bind
from pixart_jax.adapters.guided import Guided
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.checkpoints.state import Birth
from pixart_jax.config import ConfigDict, build_adapter
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.steps import Apply
from pixart_jax.warm_start.start import check_frozen, open_base


def open_adapted_run(
    workdir: pathlib.Path,
    config: ConfigDict,
    manifest: Manifest,
    model: PixArt,
    mesh: Mesh,
    checkpoints: Checkpoints,
    *,
    ema: bool,
) -> tuple[Callable[[Apply], Apply], Callable[[], Parameters]]:
    """What the adapter makes of a callable of the model's parameters, and what reads both halves of them.

    Args:
      config, manifest, checkpoints: of the run.
      model: the config's, as it is to be computed here.
      ema: the averaged parameters of the adapter, not the raw ones.

    Raises:
      InputError: config.init_from is not there any more, or, when it is read, holds other weights than it did.
    """
    adapter = build_adapter(config, model)
    birth = Birth(model, adapter, optax.identity(), mesh, config.seed)
    wanted = config.init_from and config.adapter.kind != "full"
    base = open_base(config, manifest, workdir) if wanted else None

    def read() -> Parameters:
        state = birth.shapes[0]
        trained = checkpoints.restore_params(state.ema_params if ema else state.params, ema=ema)
        if config.adapter.kind == "full":
            return Parameters(trained, {})  # A student, which draws without its teacher.
        frozen = birth.frozen(base.load() if base else None)
        check_frozen(workdir, config, checkpoints, checkpoints.require_step(), birth.frozen_checksum(frozen))
        return Parameters(trained, frozen)

    def over(model: Apply) -> Apply:
        if isinstance(adapter, Guided):
            return bind(adapter.over(model))
        return bind(dataclasses.replace(cast(Any, adapter), model=model))

    return over, read
