"""The training loop, assembled from its parts and read top to bottom."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from contextlib import contextmanager

import jax
from absl import logging
from clu import parameter_overview

from pixart_jax.checkpoints.checkpoints import Checkpoints, has_checkpoint
from pixart_jax.checkpoints.state import TrainState, abstract_state, create_state, start_state
from pixart_jax.cluster.agreement import agree, check_shared, gather, together
from pixart_jax.cluster.ending import Ending, end_with_the_others
from pixart_jax.cluster.preemption import exit_code, stop_requests
from pixart_jax.cluster.watchdog import Watchdog, watched
from pixart_jax.config import (
    ConfigDict,
    build_model,
    check_attention,
    check_batch,
    check_config,
    check_offload,
    eval_timesteps,
    flatten,
    mesh_spec,
    optimizer_spec,
)
from pixart_jax.conversion.runs import describe_run
from pixart_jax.data.prompts import configured_prompts
from pixart_jax.data.shards.manifest import ENCODERS, Manifest
from pixart_jax.devices.hardware import find_hardware
from pixart_jax.devices.sharding import batch_share, make_mesh, put_batch, row_shards
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError, TrainingDiverged
from pixart_jax.evaluators.samples import Previews
from pixart_jax.evaluators.validation import Validation, make_eval_step
from pixart_jax.figures.images import save_png
from pixart_jax.objectives.denoising import diffusion_loss
from pixart_jax.optimizers import build_optimizer, learning_rate_schedule
from pixart_jax.samplers.program import make_sample_fn
from pixart_jax.training.events import Events
from pixart_jax.training.facts import run_facts
from pixart_jax.training.flops import step_flops
from pixart_jax.training.history import History
from pixart_jax.training.inputs.base import abstract_batch, batch_spec
from pixart_jax.training.inputs.held_out import eval_batch_size, open_held_out
from pixart_jax.training.inputs.opening import open_data
from pixart_jax.training.inputs.shards import shard_folders
from pixart_jax.training.metrics import MetricsWindow, Stopwatch, format_duration
from pixart_jax.training.record import draw_loss_curve, draw_noise_levels, record_config, record_run
from pixart_jax.training.step import make_train_step
from pixart_jax.warm_start.start import WarmStart, open_warm_start
from pixart_jax.warm_start.transitions import Choices


def train_and_evaluate(config: ConfigDict, workdir: str, ending: Ending | None = None) -> TrainState:
    """Trains until `config.train.num_steps`, going on from the workdir's newest sound checkpoint if it has one.

    Writes into workdir: config.json, checkpoints/, TensorBoard events, metrics.jsonl, eval.jsonl, eval.png,
    samples/step_*.png, and at the end samples.png and loss.png.

    Args:
      ending: of the process, where other threads may end it too.

    Returns:
      The final state.

    Raises:
      InputError: configuration, data, workdir or checkpoint are unfit; before anything is compiled.
      TrainingDiverged: a loss was not finite; no checkpoint was written since.
      SaveFailed: a checkpoint could not be written; those before are untouched.
      SystemExit: one of preemption.STOP_SIGNALS came; a checkpoint was written.
    """
    ending = ending or Ending()
    # ------------------------------------------------------------------------------ What can be refused is refused now.
    with together("checking what the run needs"):
        check_config(config)
        check_batch(config, jax.device_count())
        check_attention(config, jax.devices()[0])
        check_offload(config, jax.local_devices()[0])
        mesh = make_mesh(mesh_spec(config))
        share, num_shares = batch_share(mesh)
        spec = batch_spec(config, num_shares)
        data = open_data(config, spec, process_index=share, process_count=num_shares)
        held_out, timesteps = open_held_out(config, spec, data.manifest), eval_timesteps(config)
        iterator = data.batches
        warm_start = open_init_from(config, data.manifest) if config.init_from and not has_checkpoint(workdir) else None
        initial = warm_start.load() if warm_start else {}
        workdir = open_workdir(workdir)
    if jax.process_count() > 1:
        settings, sources, prompts = flatten(config), shard_folders(config), configured_prompts(config.sample.prompts)
        agree("what the run is", run_facts(settings, sources, iterator.get_state(), initial, prompts))
        check_shared(workdir, ending.waits.file)

    # -------------------------------------------------------------------------------------------------------- Assembly.
    model, schedule = build_model(config, mesh), linear_schedule()
    optimizer = optimizer_spec(config)
    tx = build_optimizer(optimizer)

    def make_loss(model):
        return diffusion_loss(model.apply, schedule, snr=config.train.snr_loss)

    train_step = make_train_step(
        make_loss(model),
        tx,
        seed=config.seed,
        ema_decay=config.train.ema_decay,
        accumulation_steps=config.train.accumulation_steps,
        learning_rate=learning_rate_schedule(optimizer),
    )
    previews = Previews(
        samples=data.samples,
        manifest=data.manifest,
        decode=data.decode,
        spec=spec,
        sample_fn=make_sample_fn(model, schedule, config.sample.sampler, config.sample.num_steps),
        guidance_scale=config.sample.guidance_scale,
        seed=config.seed,
        batch_size=config.sample.num_images,
        mesh=mesh,
    )
    grids, num_shown = previews, config.sample.num_images
    if config.sample.every and data.prompts:
        # Encoded before there is a state, which leaves a large text encoder the memory to itself.
        with together("encoding the prompts"):
            samples = data.prompts()
        grids, num_shown = dataclasses.replace(previews, samples=samples, has_pictures=False), len(samples)

    # --------------------------------------------------------------------------------------------- Birth or resumption.
    batch_shapes = abstract_batch(data, spec, mesh, config.data.batch_size)
    abstract = abstract_state(model, tx, mesh, offload=config.train.offload_optimizer)
    doing = "the birth of the state, or its return"
    with watched(workdir, config.train.hang_timeout, doing, ending=ending), end_with_the_others(ending=ending):
        checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints, damage_wait=ending.waits.damage)
        agree("where the run goes on", {"newest checkpoint": str(checkpoints.latest_step)})
        if checkpoints.latest_step is None:
            state = (
                start_state(initial, tx, abstract)
                if warm_start
                else create_state(model, tx, mesh, config.seed, offload=config.train.offload_optimizer)
            )
            checkpoints.prepare(abstract)
            window = MetricsWindow()
            logging.info("%s", parameter_overview.get_parameter_overview(state.params, include_stats="sharding"))
        else:
            state, progress = checkpoints.restore(abstract)
            iterator.set_state(progress["iterator"])
            window = MetricsWindow(progress["pending"])
            logging.info("going on from step %d in %s", int(state.step), checkpoints.directory)
        start, last = int(state.step), config.train.num_steps
        if start > last:
            raise InputError(
                f"config.train.num_steps = {last}: the run in {workdir} is at step {start} already; set it to more, or "
                "name another workdir"
            )
    first_process = jax.process_index() == 0
    with together("recording the run"):
        if first_process:
            data.keep_encoders(workdir / ENCODERS)
            record_config(workdir, config)
            if warm_start:
                warm_start.write_record(workdir)
    writer = Events(workdir if first_process else None)
    history = History(workdir / "metrics.jsonl", start) if first_process else None
    # An evaluation comes after its step's checkpoint: a run may have been killed between the two.
    evaluate_first = held_out is not None and (start % config.eval.every == 0 or start == last)
    evaluations = None
    if first_process and held_out:
        evaluations = History(workdir / "eval.jsonl", start - 1 if evaluate_first else start)

    if start < last:
        begin = time.perf_counter()
        state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        # Compiled ahead of the loop: a batch of another shape is then an error, not a silent second compilation.
        compiled_step = (
            jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, None))
            .lower(abstract, batch_shapes)
            .compile()
        )
        logging.info("train step compiled in %s", format_duration(time.perf_counter() - begin))
        if first_process:
            record_run(workdir, abstract.params, compiled_step)
        hardware = find_hardware(jax.devices()[0].device_kind)
        flops = step_flops(model, make_loss, batch_shapes) if hardware else None

    if held_out:
        begin = time.perf_counter()
        with end_with_the_others(ending=ending):
            validation = Validation(
                held_out,
                make_eval_step(model.apply, schedule, timesteps, seed=config.eval.seed),
                timesteps,
                params=abstract.ema_params,
                mesh=mesh,
                batch_size=eval_batch_size(config, held_out, row_shards(mesh)),
                process_index=share,
                process_count=num_shares,
            )
        logging.info("evaluation compiled in %s", format_duration(time.perf_counter() - begin))

    watchdog = Watchdog(workdir, config.train.hang_timeout, ending=ending)

    def save_checkpoint(step: int, *, required: bool) -> None:
        watchdog.beat(step, "saving a checkpoint")
        window.fetch()  # A state that a non-finite loss has touched is never saved.
        if checkpoints.latest_step == step:
            return
        if not required:
            patience, hang = config.train.checkpoint_wait, config.train.hang_timeout
            # Of the slowest process: all must decide alike.
            seconds = max(map(float, gather("the last checkpoint", str(checkpoints.wait(patience)))))
            # One that is under way for longer than `hang` hangs: waiting for it, the watchdog ends the run.
            if seconds and not 0 < hang < seconds:
                logging.warning(
                    "NO CHECKPOINT OF STEP %d: that of step %d is not complete after %.0f s; raise "
                    "config.train.checkpoint_every, or write to a faster disk",
                    step,
                    checkpoints.latest_step,
                    seconds,
                )
                return
        checkpoints.save(state, {"iterator": iterator.get_state(), "pending": window.pending})

    def log(step: int) -> None:
        window.fetch()
        scalars = window.means()
        steps_per_second = stopwatch.steps_per_second(step)
        rates = {"images_per_second": steps_per_second * config.data.batch_size}
        if flops:
            rates["mfu"] = hardware.utilisation(flops * steps_per_second, jax.device_count())
        writer.write_scalars(step, scalars | rates)
        if history:
            history.append(step, scalars | rates)
        logging.info(
            "step %d/%d, %.0f images/s, %s to go",
            step,
            last,
            rates["images_per_second"],
            format_duration((last - step) / steps_per_second),
        )

    def evaluate(step: int) -> None:
        window.fetch()
        # The averaged parameters are those that are sampled from and that the next stage starts from.
        scalars = validation(state.ema_params, lambda: watchdog.beat(step, "an evaluation"))
        writer.write_scalars(step, scalars)
        logging.info("step %d/%d, evaluation loss %.5f", step, last, scalars["eval_loss"])
        if evaluations:
            evaluations.append(step, scalars)
            draw_noise_levels(workdir, evaluations, timesteps)

    def draw(step: int) -> None:
        watchdog.beat(step, "drawing samples")
        picture = grids.grid(state.ema_params, num_shown)
        writer.write_images(step, {"samples": picture})
        if first_process:
            save_png(workdir / "samples" / f"step_{step:07d}.png", picture)

    # -------------------------------------------------------------------------------------------------------- The loop.
    try:
        stopwatch = Stopwatch(start)
        with (
            end_with_the_others(TrainingDiverged, SystemExit, ending=ending),
            stop_requests(ending) as requested,
            # Nothing in the loop may make the host wait for the devices by accident.
            jax.transfer_guard("disallow"),
        ):
            if evaluate_first and start < last:
                with aside(stopwatch):
                    evaluate(start)
            for step in range(start + 1, last + 1):
                watchdog.beat(step - 1, "a step")
                state, metrics = compiled_step(state, put_batch(next(iterator), mesh))
                window.add(step, metrics)
                if step % config.train.log_every == 0 or step == last:
                    log(step)
                checkpoints.check()
                stop = requested()
                if step % config.train.checkpoint_every == 0 or step == last or stop:
                    with aside(stopwatch):
                        save_checkpoint(step, required=step == last or stop is not None)
                if stop:
                    checkpoints.wait()
                    logging.warning("%s: stopped at step %d, which is saved; the same command goes on", stop.name, step)
                    raise SystemExit(exit_code(stop))
                if held_out and step % config.eval.every == 0 and step != last:
                    with aside(stopwatch):
                        evaluate(step)
                if config.sample.every and step % config.sample.every == 0 and step != last:
                    with aside(stopwatch):
                        draw(step)
        # ----------------------------------------------------------------------------------------------------- The end.
        with end_with_the_others(ending=ending):
            watchdog.beat(last, "saving a checkpoint")
            checkpoints.wait()
            if held_out:
                evaluate(last)
            if config.sample.every:
                watchdog.beat(last, "drawing samples")
                picture = grids.grid(state.ema_params, num_shown)
                if first_process:
                    save_png(workdir / "samples.png", picture)
                    shown = "prompts" if data.prompts else "real beside generated"
                    logging.info("%s: %s", workdir / "samples.png", shown)
            if config.sample.retrieval_captions:
                watchdog.beat(last, "drawing what is retrieved")
                score = previews.retrieval(state.ema_params, config.sample.retrieval_captions)
                writer.write_scalars(last, {"retrieval_at_1": score})
                logging.info("retrieval@1 over %d captions: %.3f", config.sample.retrieval_captions, score)
        if history and history.rows:
            draw_loss_curve(workdir, history)
            rates = [row["images_per_second"] for row in history.rows]
            logging.info("%.0f images/s over the whole run", len(rates) / sum(1 / rate for rate in rates))
        if data.manifest.text_encoder == "words":
            logging.info('draw anything: python -m tools.sample --checkpoint %s --prompt "blue heart"', workdir)
        return state
    except TrainingDiverged as error:
        checkpoints.wait()
        kept = checkpoints.latest_step
        raise TrainingDiverged(
            f"{error}; "
            + (f"the checkpoint of step {kept} is untouched" if kept else "there is no checkpoint yet")
            + f" ({workdir}). Lower the learning rate, lengthen the warm-up, or look at the data of that step"
        ) from None
    finally:
        watchdog.stop()
        writer.close()
        if history:
            history.close()
        if evaluations:
            evaluations.close()
        iterator.close()
        checkpoints.close()


@contextmanager
def aside(stopwatch: Stopwatch):
    """What is not training proper: its time does not count, and it may wait for the devices."""
    with stopwatch.paused(), jax.transfer_guard("allow"):
        yield


def open_init_from(config: ConfigDict, manifest: Manifest) -> WarmStart:
    """config.init_from, found to fit; says what is copied.

    Raises:
      InputError: it does not fit; with the table of differences.
    """
    init = config.init
    start = open_warm_start(
        config.init_from,
        describe_run(config, manifest, {}),
        weights=init.weights,
        null_text=init.null_text,
        choices=Choices(init.reparameterize, init.unconditional, init.kv_compress, seed=config.seed),
    )
    logging.info("starting from %s\n  %s", start.path, "\n  ".join(start.table))
    return start


def open_workdir(workdir: str) -> pathlib.Path:
    """Makes the workdir; raises InputError if it cannot be written."""
    path = pathlib.Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"--workdir={workdir}: cannot write there ({error.strerror}); name a folder you own"
        ) from error
    return path
