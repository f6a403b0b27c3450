"""The evaluators that a config names: whoever adds one writes a file in evaluators/ and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pixart_jax.cluster.agreement import together
from pixart_jax.config import eval_timesteps, guidance_of_config, require_setting, target_of
from pixart_jax.data.shards.records import Sample
from pixart_jax.devices.sharding import row_shards
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.evaluators.drawings import Drawings
from pixart_jax.evaluators.evaluator import Evaluator
from pixart_jax.evaluators.quality import Quality
from pixart_jax.evaluators.retrieval import Retrieval
from pixart_jax.evaluators.samples import Samples
from pixart_jax.evaluators.validation import HeldOut, Validation, make_eval_step
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.program import make_sample_fn
from pixart_jax.training.inputs.held_out import eval_batch_size
from pixart_jax.training.inputs.looked_at import LookedAt
from pixart_jax.training.plan import Plan
from pixart_jax.training.waits import announced


def open_evaluators(plan: Plan) -> list[Evaluator]:
    """In the order in which they look; nothing is compiled yet.

    Prompts are encoded here, before there is a state: a large text encoder then has the memory to itself.
    """
    sample = plan.config.sample
    evaluators: list[Evaluator] = []
    if plan.held_out:
        evaluators.append(_validation(plan, plan.held_out))
    captions = _captions(plan)
    if sample.every:
        shown, count = _prompts(plan.data.prompts, captions) if plan.data.prompts else (captions, sample.num_images)
        evaluators.append(Samples(shown, count, sample.every))
    if sample.retrieval_captions:
        evaluators.append(Retrieval(captions, sample.retrieval_captions))
    if plan.looked_at:  # The last, as it draws many and keeps none: it takes what the others have kept.
        evaluators.append(_quality(plan, plan.looked_at, captions))
    return evaluators


def _validation(plan: Plan, held_out: HeldOut) -> Validation:
    config, mesh, timesteps = plan.config, plan.mesh, eval_timesteps(plan.config)
    # Whatever it predicts, the error is that of eps, so that runs compare.
    schedule = linear_schedule()
    return Validation(
        held_out,
        make_eval_step(target_of(config).fit(plan.program.apply, schedule), schedule, timesteps, seed=config.eval.seed),
        timesteps,
        every=config.eval.every,
        mesh=mesh,
        batch_size=eval_batch_size(config, held_out, row_shards(mesh)),
        process_index=plan.share,
        process_count=plan.num_shares,
    )


def _quality(plan: Plan, looked_at: LookedAt, captions: Drawings) -> Quality:
    evaluation, num_samples = plan.config.eval, len(captions.samples)
    require_setting(plan.config, num_samples > 1, "data.source", "holds one picture, and a distance needs two or more")
    with announced("looking at the pictures that the metrics refer to"):
        measures = looked_at.measures(captions, evaluation.reference_pictures)
    return Quality(captions, measures, count=evaluation.num_pictures, every=evaluation.metrics_every)


def _captions(plan: Plan) -> Drawings:
    """Those of the training data."""
    config, target = plan.config, target_of(plan.config)
    schedule = target.schedule(config.sample.sampler)
    sampler = build_sampler(config.sample.sampler, schedule, config.sample.num_steps)
    return Drawings(
        samples=plan.data.samples,
        manifest=plan.data.manifest,
        decode=plan.data.decode,
        spec=dataclasses.replace(plan.spec, align_dim=0),
        sample_fn=make_sample_fn(
            target.fit(plan.program.apply, schedule), schedule, sampler, guidance=guidance_of_config(config)
        ),
        guidance_scale=config.sample.guidance_scale,
        seed=config.seed,
        batch_size=config.sample.num_images,
        mesh=plan.mesh,
    )


def _prompts(encode: Callable[[], list[Sample]], captions: Drawings) -> tuple[Drawings, int]:
    """config.sample.prompts, and their number; drawn by the program that draws captions."""
    with announced("encoding the prompts of the sample grids"), together("encoding the prompts"):
        samples = encode()
    return dataclasses.replace(captions, samples=samples, has_pictures=False), len(samples)
