"""A run under way: its state, and what it does between two steps."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import jax
from absl import logging

from pixart_jax.adapters.adapter import Parameters
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.checkpoints.save_errors import told_once
from pixart_jax.checkpoints.snapshots import Snapshots
from pixart_jax.checkpoints.state import TrainState
from pixart_jax.cluster.agreement import gather
from pixart_jax.cluster.ending import end_with_the_others
from pixart_jax.cluster.preemption import exit_code, stop_requests
from pixart_jax.cluster.watchdog import Watchdog, watched
from pixart_jax.config import average_lengths
from pixart_jax.errors import TrainingDiverged
from pixart_jax.evaluators.evaluator import Evaluator
from pixart_jax.objectives.objective import Batch, Metrics
from pixart_jax.optimizers.power_averages import average_name, averages_of
from pixart_jax.training.beginning import Beginning, begin, warn_of_lag
from pixart_jax.training.compiled import Compiled, compile_steps
from pixart_jax.training.journal import Journal
from pixart_jax.training.metrics import MetricsWindow, Stopwatch, progress_line
from pixart_jax.training.plan import Plan


class Run:
    """What `open_run` gives the loop.

    Attributes:
      state: as the last step left it; its arrays are donated to the next one.
    """

    def __init__(
        self,
        plan: Plan,
        evaluators: Sequence[Evaluator],
        beginning: Beginning,
        checkpoints: Checkpoints,
        journal: Journal,
        watchdog: Watchdog,
        compiled: Sequence[Compiled],
        snapshots: Snapshots | None,
    ):
        self._plan, self._evaluators, self._beginning, self._compiled = plan, evaluators, beginning, compiled
        self._checkpoints, self._journal, self._watchdog = checkpoints, journal, watchdog
        self._snapshots = snapshots
        self.state = beginning.state
        self._start, self._last = int(beginning.state.step), plan.last
        self._at = self._start + 1
        self._window = MetricsWindow(beginning.pending)
        self._stopwatch = Stopwatch(self._start)
        self._looked: set[str] = set()

    @contextmanager
    def stepping(self) -> Iterator[range]:
        """Yields the numbers of the steps to make. Inside, signals ask to stop, and nothing waits for the devices."""
        self._stopwatch = Stopwatch(self._start)
        with (
            end_with_the_others(TrainingDiverged, SystemExit, ending=self._plan.ending),
            stop_requests(self._plan.ending) as self._requested,
            # Nothing in the loop may make the host wait for the devices by accident.
            jax.transfer_guard("disallow"),
        ):
            if self._start < self._last:
                self.look(self._start)
            self._before_step(self._start + 1)
            yield range(self._start + 1, self._last + 1)

    def step(self, batch: Batch) -> Metrics:
        """Gives the devices a step to do."""
        self.state, metrics = self._program.step(self.state, self._beginning.frozen, batch)
        return metrics

    @property
    def _program(self) -> Compiled:
        """That of the step at hand."""
        return next(program for program in reversed(self._compiled) if program.done < self._at)

    def after(self, step: int, metrics: Metrics) -> None:
        """What follows a step: log, save, stop, look, each when it is due."""
        train = self._plan.config.train
        self._window.add(step, metrics)
        if step % train.log_every == 0 or step == self._last:
            self.log(step)
        self._checkpoints.check()
        if self._snapshots and (step % self._plan.config.average.every == 0 or step == self._last):
            self.keep_averages(step, self._snapshots)
        stop = self._requested()
        if step % train.checkpoint_every == 0 or step == self._last or stop:
            self.save(step, required=step == self._last or stop is not None)
        if stop:
            self._checkpoints.wait()
            logging.warning("%s: stopped at step %d, which is saved; the same command goes on", stop.name, step)
            raise SystemExit(exit_code(stop))
        if step != self._last:
            self.look(step)
        self._before_step(step + 1)

    def _before_step(self, step: int) -> None:
        # The first ones are on their way to the devices at once; of the online encoders each size of pictures is
        # compiled when its first one comes.
        first = step - self._start <= MetricsWindow.IN_FLIGHT + 1 or self._plan.config.data.online
        self._watchdog.beat(step - 1, "a step", first=first)
        self._at = step

    def log(self, step: int) -> None:
        """Writes the means of the steps since the last log step."""
        self._window.fetch()
        scalars = self._window.means()
        steps_per_second = self._stopwatch.steps_per_second(step)
        rates = self._program.rates.of(steps_per_second)
        self._journal.log(step, scalars | rates)
        logging.info("%s", progress_line(step, self._last, scalars | rates, (self._last - step) / steps_per_second))

    def save(self, step: int, *, required: bool) -> None:
        """Saves a checkpoint; one that is not required is left out, with a warning, where the disk is too slow."""
        with self._aside():
            self._watchdog.beat(step, "saving a checkpoint")
            self._window.fetch()  # A state that a non-finite loss has touched is never saved.
            if self._checkpoints.latest_step == step or not (required or self._disk_is_ready(step)):
                return
            progress = self._beginning.progress(self._plan.data.batches.get_state(), self._window.pending)
            self._checkpoints.save(self.state, progress)

    def keep_averages(self, step: int, snapshots: Snapshots) -> None:
        """Writes a snapshot, before a checkpoint of the same step: a run that goes on from that has it."""
        with self._aside():
            self._watchdog.beat(step, "saving a snapshot of the averages")
            self._window.fetch()
            snapshots.save(step, averages_of(self.state.opt_state))

    def _disk_is_ready(self, step: int) -> bool:
        patience, hang = self._plan.config.train.checkpoint_wait, self._plan.config.train.hang_timeout
        # Of the slowest process: all must decide alike.
        seconds = max(map(float, gather("the last checkpoint", str(self._checkpoints.wait(patience)))))
        # One that is under way for longer than `hang` hangs: waiting for it, the watchdog ends the run.
        if not seconds or 0 < hang < seconds:
            return True
        logging.warning(
            "NO CHECKPOINT OF STEP %d: that of step %d is not complete after %.0f s; raise "
            "config.train.checkpoint_every, or write to a faster disk",
            step,
            self._checkpoints.latest_step,
            seconds,
        )
        return False

    def look(self, step: int) -> None:
        """Lets the evaluators look that are due."""
        due = [evaluator for evaluator in self._evaluators if evaluator.due(step, self._last)]
        if not due:
            return
        with self._aside():
            self._window.fetch()
            # The averaged parameters are those that are sampled from and that the next stage starts from.
            weights = Parameters(self.state.ema_params, self._beginning.frozen)
            for evaluator in due:
                first = evaluator.name not in self._looked
                beat = functools.partial(self._watchdog.beat, step, f"an evaluation: {evaluator.name}", first=first)
                beat()
                self._journal.announce(step, evaluator.name, first=first)
                report = evaluator(weights, beat)
                self._looked.add(evaluator.name)
                self._journal.report(step, evaluator.name, report)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """What is not training proper: its time does not count, and it may wait for the devices."""
        with self._stopwatch.paused(), jax.transfer_guard("allow"):
            yield

    def finish(self) -> TrainState:
        """Waits for the last checkpoint, and lets the evaluators have their last look; returns the final state."""
        with end_with_the_others(ending=self._plan.ending):
            self._watchdog.beat(self._last, "saving a checkpoint")
            if self._checkpoints.wait(0):
                logging.info("waiting for the checkpoint of step %d to be complete", self._last)
            self._checkpoints.wait()
            self.look(self._last)
        self._journal.finish()
        warn_of_lag(self._plan, self._beginning.ema_warmup)
        return self.state

    def diverged(self, error: TrainingDiverged) -> TrainingDiverged:
        """The error, with what is left and what to do."""
        self._checkpoints.wait()
        kept = self._checkpoints.latest_step
        left = f"the checkpoint of step {kept} is untouched" if kept else "there is no checkpoint yet"
        return TrainingDiverged(
            f"{error}; {left} ({self._plan.workdir}). Lower the learning rate, lengthen the warm-up, or look at the "
            "data of that step"
        )


@contextmanager
def open_run(plan: Plan, evaluators: Sequence[Evaluator]) -> Iterator[Run]:
    """Begins a run, or goes on with the one in the workdir; closes, in order, whatever it opened."""
    train, ending, birth = plan.config.train, plan.ending, "the birth of the state, or its return"
    with ExitStack() as closing:
        closing.enter_context(told_once())
        if plan.mirror:
            plan.mirror.start()
            closing.callback(plan.mirror.close)
        with watched(plan.workdir, train.hang_timeout, birth, ending=ending), end_with_the_others(ending=ending):
            checkpoints = Checkpoints(plan.workdir, keep=train.keep_checkpoints, damage_wait=ending.waits.damage)
            closing.callback(checkpoints.close)
            beginning = begin(plan, checkpoints)
        closing.callback(plan.data.batches.close)
        start = int(beginning.state.step)
        warn_of_lag(plan, beginning.ema_warmup)
        journal = Journal(plan, evaluators, start)
        closing.callback(journal.close)
        snapshots = open_snapshots(plan, start)
        if snapshots:
            closing.callback(snapshots.close)
        compiled = compile_steps(plan, start, beginning.ema_warmup)
        if compiled:
            journal.compiled(compiled[0].step)
        watchdog = Watchdog(plan.workdir, train.hang_timeout, ending=ending)
        closing.callback(watchdog.stop)
        run = Run(plan, evaluators, beginning, checkpoints, journal, watchdog, compiled, snapshots)
        try:
            yield run
        except TrainingDiverged as error:
            raise run.diverged(error) from None


def open_snapshots(plan: Plan, start: int) -> Snapshots | None:
    """Where snapshots of `config.average` go; None where there are none."""
    average = plan.config.average
    if not average.every:
        return None
    lengths = {average_name(sigma_rel): sigma_rel for sigma_rel in average_lengths(plan.config)}
    averages = averages_of(plan.program.state.opt_state)
    return Snapshots(plan.workdir, averages, lengths, dtype=average.dtype, start=start)
