"""What each shortcut of `pixart_jax.shortcuts` saves, and how far its pictures are from those of the whole model.

With random weights of a config, latents; with a checkpoint and the feature shards that it learned from, pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.config import ConfigDict, build_model, target_of
from pixart_jax.errors import InputError
from pixart_jax.models.attention import PLAIN
from pixart_jax.models.params import apply_of, init_params, parameter_shapes
from pixart_jax.models.path_drop import Stretch, may_drop, shallow
from pixart_jax.models.pixart import PixArt
from pixart_jax.rng import seed_words
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.samplers.program import DROPPED_PATH, as_they_are, draw_noise, make_sample_fn
from pixart_jax.samplers.steps import Sampler, Stateful, stateful
from pixart_jax.shortcuts.eight_bits import in_eight_bits, mode_for, quantize_tree
from pixart_jax.shortcuts.reuse import PRESETS, reusing, short_pass, whole_pass
from pixart_jax.shortcuts.text_once import remember_text, with_memory
from pixart_jax.training.flops import count_flops

from .forward import conditions_of
from .peer import random_params
from .rates import peak_bytes
from .train import synthetic_batch
from .turns import Figures, summary, take_turns, time_warm


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """What is taken; attributes as of `TextToImage.from_checkpoint` and `Request`.

    fewer: key of `PRESETS`: no more steps than blocks run at under that reuse, which is what reuse is to beat.
    """

    text_once: bool = True
    guidance_interval: tuple[float, float] | None = None
    reuse: str | None = None
    int8: str | None = None
    fewer: str | None = None
    guidance: str | None = None

    def num_steps(self, usual: int) -> int:
        return usual if self.fewer is None else PRESETS[self.fewer].whole_steps(usual)


PLAIN_WAY = "none"
SHORTCUTS = {
    PLAIN_WAY: Shortcut(text_once=False),
    "text once": Shortcut(),
    "interval 0-800": Shortcut(guidance_interval=(0, 800)),
    "interval 0-600": Shortcut(guidance_interval=(0, 600)),
    "interval 200-800": Shortcut(guidance_interval=(200, 800)),
    **{f"reuse {name}": Shortcut(reuse=name) for name in PRESETS},
    **{f"fewer steps {name}": Shortcut(fewer=name) for name in PRESETS},
    "int8": Shortcut(int8="auto"),
    # With random weights of the route that the config has or would have; else of models that have learnt it.
    DROPPED_PATH: Shortcut(guidance=DROPPED_PATH),
}


def with_random_weights(config: ConfigDict, calls: int, rounds: int) -> Iterator[Figures]:
    """A line for each shortcut: drawing latents of one batch of a config."""
    model, sampling, dtype = build_model(config), config.sample, jnp.dtype(config.dtype)
    batch, target = synthetic_batch(config), target_of(config)
    schedule = target.schedule(sampling.sampler)
    params, conditions = random_params(parameter_shapes(model), dtype), conditions_of(batch)
    x, keys = draw_noise(seed_words(0), np.arange(config.data.batch_size), batch["tokens"].shape[1:])
    given = x, keys, conditions, null_branch(conditions), sampling.guidance_scale
    stretch = (config.model.route.first, config.model.route.last % model.depth)
    programs, figures = {}, {}
    for name, shortcut in SHORTCUTS.items():
        if shortcut.guidance == DROPPED_PATH and stretch[0] > stretch[1]:
            continue  # Too few blocks for a route.
        sampler = build_sampler(sampling.sampler, schedule, shortcut.num_steps(sampling.num_steps))
        dropped = stretch if shortcut.guidance == DROPPED_PATH else None
        apply, prepare, weights = _parts(model, params, shortcut, dropped)
        interval = None if shortcut.guidance_interval is None else np.asarray(shortcut.guidance_interval, np.float32)
        how: dict[str, Any] = {"prepare": prepare, "guidance": shortcut.guidance or "cfg"}
        sample = make_sample_fn(target.fit(apply, schedule), schedule, sampler, **how)
        arguments = jax.device_put((weights, *given, None, None, interval))
        compiled = sample.lower(*arguments).compile()
        programs[name] = functools.partial(compiled, *arguments)
        lengths = batch["tokens"].shape[1], conditions["text"].shape[1]
        flops = picture_flops(model, *lengths, _timesteps(sampler), shortcut, stretch=dropped)
        figures[name] = {"picture_flops": flops, **peak_bytes(compiled, jax.devices()[0])}
    turns = {name: functools.partial(time_warm, draw, calls, jax.block_until_ready) for name, draw in programs.items()}
    results, _ = take_turns(turns, rounds)
    whole = np.asarray(programs[PLAIN_WAY]()[0])
    for name, draw in programs.items():
        latents = np.asarray(draw()[0])
        apart = {"latents_apart": float(np.abs(latents - whole).mean() / whole.std())}
        yield _line(name, results, figures) | apart | {"batch_size": config.data.batch_size}


def with_checkpoint(args: argparse.Namespace) -> Iterator[Figures]:
    """A line for each shortcut that the checkpoint can take: drawing pictures of captions of feature shards."""
    # Not for the sake of random weights, which need none of what these need.
    from pixart_jax.data.shards.feature_shards import ShardReader
    from pixart_jax.evaluators.retrieval import retrieval_at_1
    from pixart_jax.generation.pipeline import TextToImage
    from pixart_jax.generation.request import Request

    reader = ShardReader(args.source)
    chosen = np.unique(np.linspace(0, len(reader) - 1, args.pictures).astype(int))
    captions = [reader[int(i)].caption for i in chosen]
    opened = {
        key: TextToImage.from_checkpoint(args.checkpoint, keep_loaded=True, text_once=key[0], int8=key[1])
        for key in {(shortcut.text_once, shortcut.int8) for shortcut in SHORTCUTS.values()}
    }
    requests, figures, last = {}, {}, {}
    plain = Request(captions, batch_size=args.batch_size, num_steps=args.num_steps)
    usual = opened[False, None].manner(plain).num_steps
    for name, shortcut in SHORTCUTS.items():
        pipeline = opened[shortcut.text_once, shortcut.int8]
        request = dataclasses.replace(
            plain,
            num_steps=shortcut.num_steps(usual),
            guidance_interval=shortcut.guidance_interval,
            reuse=shortcut.reuse,
            guidance=shortcut.guidance or ("cfg" if pipeline.parts.guidance == DROPPED_PATH else None),
        )
        try:
            manner, model = pipeline.manner(request), pipeline.parts.model
        except InputError as refusal:
            if shortcut == SHORTCUTS[PLAIN_WAY]:
                raise
            print(f"{name} is left out: {refusal}", file=sys.stderr)
            continue
        schedule = pipeline.parts.target.schedule(manner.sampler)
        timesteps = _timesteps(build_sampler(manner.sampler, schedule, manner.num_steps))
        tokens = len(pipeline.noise_of(request.alone())[0])
        lengths = tokens, model.max_text_tokens
        dropped = pipeline.parts.path_drop if manner.guidance == DROPPED_PATH else None
        branches = 2 if manner.guidance == "cfg" else 1
        flops = picture_flops(model, *lengths, timesteps, shortcut, branches, stretch=dropped)
        figures[name] = {"picture_flops": flops}
        requests[name] = pipeline, request

    def draw(name):
        pipeline, request = requests[name]
        last[name] = pipeline.draw(request)

    turns = {
        name: functools.partial(time_warm, functools.partial(draw, name), 1, lambda done: None) for name in requests
    }
    results, _ = take_turns(turns, args.rounds)
    decode = opened[True, None].parts.decode_latents
    latents = np.stack([reader[i].latent_mean.astype(np.float32) for i in range(len(reader))])
    gallery = (np.stack([*decode(latents)]).clip(-1, 1) + 1) * 127.5
    whole = last[PLAIN_WAY].astype(np.float64)
    for name, pictures in last.items():
        apart = np.abs(pictures - whole) / 255
        error = np.square(apart).mean()
        yield {
            **_line(name, results, figures),
            "mean_difference": float(apart.mean()),
            "max_difference": float(apart.max()),
            "psnr": float(-10 * np.log10(error)) if error else None,
            "retrieval_at_1": retrieval_at_1(pictures.astype(np.float32), gallery, chosen),
            "pictures": len(chosen),
        }


def picture_flops(
    model: PixArt,
    num_tokens: int,
    text_tokens: int,
    timesteps: np.ndarray,
    shortcut: Shortcut,
    branches: int = 2,
    stretch: Stretch | None = None,
) -> float | None:
    """FLOPs of one picture, counted by XLA on each program that is called, times how often it is.

    Args:
      timesteps: f[S], at which the model is called.
      branches: of guidance; 1 without it.
      stretch: the blocks that guidance by the dropped path leaves out of a second branch.

    Returns:
      FLOPs, or None as `flops.count_flops`; int8 counts as what it stands for.
    """
    if stretch is not None:
        both = model, shallow(model, stretch)
        own, rest = (picture_flops(one, num_tokens, text_tokens, timesteps, shortcut, 1) for one in both)
        return None if own is None or rest is None else own + rest
    model = model.clone(scan_unroll=model.depth, remat="none", attention=PLAIN)
    shape = jax.ShapeDtypeStruct
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    x = shape((branches, num_tokens, model.patch_size**2 * model.latent_channels), jnp.float32)
    conditions = {
        "positions": shape((branches, num_tokens, 2), jnp.float32),
        "num_tokens": shape((branches,), jnp.int32),
        "text": shape((branches, text_tokens, model.text_dim), jnp.float32),
        "text_length": shape((branches,), jnp.int32),
        "text_drop": shape((branches,), bool),
        "image_size": shape((branches, 2), jnp.float32),
        "aspect_ratio": shape((branches, 1), jnp.float32),
    }

    def count(apply, given, **more) -> float | None:
        return count_flops(
            lambda params, x, t, given, more: apply(params, x, t, **given, **more),
            *(params, x, shape((branches,), jnp.float32), given, more),
        )

    steps = len(timesteps)
    if not shortcut.text_once:
        each = count(apply_of(model), conditions)
        return None if each is None else steps * each
    remember = remember_text(model)
    memory = jax.eval_shape(lambda params, given: remember(params, None, None, **given), params, conditions)
    once = count_flops(lambda params, given: remember(params, None, None, **given), params, conditions)
    each = count(with_memory(model), memory)
    if once is None or each is None:
        return None
    if shortcut.reuse is not None:
        change = shape((branches, num_tokens, model.hidden_size), model.dtype)
        whole, short = count(whole_pass(model), memory), count(short_pass(model), memory, change=change)
        number = PRESETS[shortcut.reuse].whole_steps(steps)
        return once + number * whole + (steps - number) * short  # type: ignore[operator]
    if shortcut.guidance_interval is None:
        return once + steps * each
    low, high = shortcut.guidance_interval
    guided = int(np.sum((low <= timesteps) & (timesteps <= high)))
    return 1.5 * once + (guided + (steps - guided) / 2) * each


def _parts(model: PixArt, params, shortcut: Shortcut, dropped: Stretch | None) -> tuple[Any, Any, Any]:
    """What `make_sample_fn` takes as its model and to prepare conditions, and the weights."""
    if not shortcut.text_once:
        return apply_of(model), as_they_are, params
    over = functools.partial(in_eight_bits, mode=mode_for(jax.devices()[0])) if shortcut.int8 else lambda call: call
    remember = over(may_drop(model, dropped, remember_text))
    plain = over(may_drop(model, dropped, with_memory))
    apply = reusing(model, over, PRESETS[shortcut.reuse]) if shortcut.reuse else plain
    weights = quantize_tree(params) if shortcut.int8 else params
    return apply, lambda params, conditions: remember(params, None, None, **conditions), weights


def _timesteps(run: Sampler) -> np.ndarray:
    """Those at which a sampler calls the model."""
    seen: list[float] = []

    def denoise(x, t, state):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0])
        return (x, x), state

    x = jnp.zeros((1, 1))
    noise = functools.partial(jnp.zeros_like, x)
    jax.block_until_ready(run(Stateful(denoise, stateful(denoise).begin), x, lambda step: noise()))
    jax.effects_barrier()
    return np.array(seen)


def _line(name: str, results: dict[str, list[Figures]], figures: dict[str, Figures]) -> Figures:
    seconds, flops = summary(results[name])["seconds"], figures[name]["picture_flops"]
    return {
        "shortcut": name,
        "seconds": seconds,
        "speed_ratio": summary(results[PLAIN_WAY])["seconds"] / seconds,
        **figures[name],
        "work_ratio": figures[PLAIN_WAY]["picture_flops"] / flops if flops else None,
    }


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="a run's workdir, or a converted model")
    parser.add_argument("--source", type=pathlib.Path, required=True, help="the feature shards that it learned from")
    parser.add_argument("--pictures", type=int, default=64, help="captions, spread over them (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, help="default: the checkpoint's")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
