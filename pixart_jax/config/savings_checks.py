"""What settings of `savings` can work together with others."""

from __future__ import annotations

from pixart_jax.config.declaration import Require
from pixart_jax.config.defaults import ConfigDict, default_config
from pixart_jax.config.typed import architecture, build_model, build_route, path_drop_of, position_base
from pixart_jax.models.layers import keys_per_block
from pixart_jax.samplers.program import DROPPED_PATH


def route_fits(config: ConfigDict, require: Require) -> None:
    """Refuses routes of blocks that there are not, of what is no training from noise, and what a mesh cannot split."""
    route = build_route(config)
    if route is None:
        return
    depth = architecture(config)["depth"]
    key, cure = ("ratio", "set it to 0") if route.ratio else ("form", "set it to 'tread'")
    require(
        config.objective.kind == "denoising",
        f"model.route.{key}",
        f"config.objective.kind={config.objective.kind!r} compares predictions of whole pictures, of a teacher that "
        f"sees all tokens; {cure}",
    )
    require(
        config.adapter.kind != "controlnet",
        f"model.route.{key}",
        f"a ControlNet's copies follow the control of every token, of a base that never missed any; {cure}",
    )
    cure = f"must be one of the {depth} blocks, at or behind config.model.route.first = {route.first}"
    require(route.first <= route.last < depth, "model.route.last", cure)
    ratio, sampling = config.model.kv_compress_ratio, config.model.kv_sampling
    units = position_base(config) ** 2 // ratio**2
    kept = route.kept(units)
    what = f"{ratio}x{ratio} blocks of tokens" if ratio > 1 else "tokens"
    require(
        kept < units or not route.ratio,
        "model.route.ratio",
        f"lets none of the {units} {what} of a picture pass by; raise it",
    )
    compressed = bool(build_model(config).kv_compress)
    keys = kept * (keys_per_block(sampling, ratio) if compressed else 1)
    require(
        keys % config.mesh.context == 0,
        "mesh.context",
        f"must divide the {keys} keys that config.model.route.ratio = {route.ratio:g} leaves of a picture",
    )


def path_can_drop(config: ConfigDict, require: Require) -> None:
    """Refuses guidance by the dropped path of a model that never learns to do without it."""
    if config.sample.guidance == DROPPED_PATH:
        cure = "is of models that learn to do without the blocks of the route: set config.model.route.form='sprint' too"
        require(path_drop_of(config) is not None, "sample.guidance", cure)


def alignment_fits(config: ConfigDict, require: Require) -> None:
    """Refuses alignment of what has been trained already, and to targets that the data cannot have."""
    if not config.align.weight:
        return
    require(
        config.adapter.kind == "full" and config.objective.kind == "denoising",
        "align.weight",
        "draws a model to a network's features while it learns to denoise; an adapter's or a student's weights have "
        "learnt already: set it to 0",
    )
    depth = architecture(config)["depth"]
    require(config.align.block < depth, "align.block", f"must be one of the {depth} blocks, counted from 0")
    for key, why in (
        ("online", "encodes pictures as they come, and the targets are in shards (tools.extract_features --align)"),
        ("prior_source", "has pictures of the model's own without targets"),
    ):
        require(not config.data[key], f"data.{key}", f"{why}; leave it out, or set config.align.weight to 0")


def averages_fit(config: ConfigDict, require: Require) -> None:
    """Refuses averages of what no tool could make a model of, and settings that nothing heeds."""
    usual = default_config().average
    for key in ("sigma_rel", "dtype"):
        require(
            bool(config.average.every) or config.average[key] == usual[key],
            f"average.{key}",
            f"only config.average.every above 0 heeds it; leave it at {usual[key]!r}",
        )
    require(
        not config.average.every or (config.adapter.kind == "full" and config.objective.kind == "denoising"),
        "average.every",
        "keeps averages of a whole model that learns to denoise, which tools.average makes models of; an adapter's or "
        "a student's have the exponential one alone: set it to 0",
    )


def learned_weights_fit(config: ConfigDict, require: Require) -> None:
    """Refuses learned weights beside others, and of what is no training of a whole model from noise."""
    train = config.train
    if not train.learned_weights:
        return
    for is_free, what in (
        (config.adapter.kind == "full", "config.adapter.kind trains an adapter"),
        (config.objective.kind == "denoising", "config.objective.kind distils"),
        (train.variance_loss, "config.train.variance_loss=False leaves out what is weighed too"),
        (not train.snr_loss, "config.train.snr_loss measures another error"),
        (not train.min_snr_gamma, "config.train.min_snr_gamma weighs it already"),
        (not config.data.prior_source, "config.data.prior_source adds a loss with a weight of its own"),
        (not config.align.weight, "config.align.weight has a network beside the model already"),
        (config.optimizer.name != "schedule_free", "config.optimizer.name='schedule_free' has one network alone"),
    ):
        cure = f"weighs the error of a whole model's prediction, and {what}; set one of them"
        require(is_free, "train.learned_weights", cure)
