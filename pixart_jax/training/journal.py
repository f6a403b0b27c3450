"""What a run writes into its workdir beside checkpoints: settings, numbers, curves, pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import jax
from absl import logging

from pixart_jax.cluster.agreement import together
from pixart_jax.config import flatten
from pixart_jax.config.declaration import listed
from pixart_jax.data.shards.manifest import ENCODERS
from pixart_jax.evaluators.evaluator import Evaluator, Report
from pixart_jax.figures.curves import loss_curve_png
from pixart_jax.figures.images import save_png
from pixart_jax.training.advice import short_run
from pixart_jax.training.hints import next_steps, shown
from pixart_jax.training.history import History
from pixart_jax.training.metrics import format_duration
from pixart_jax.training.plan import Plan
from pixart_jax.training.record import (
    read_run,
    record_config,
    record_parameters,
    record_run,
    told_encoders,
    write_json,
)
from pixart_jax.training.trackers import open_trackers
from pixart_jax.training.trackers.base import Tracker

RESULTS_FILE = "results.json"
# Share of a run that its loss curve is the mean over.
SMOOTHING = 0.05


class Journal:
    """Every process has one and makes the same calls; the first one writes.

    Args:
      plan: of the run.
      evaluators: whose reports come.
      start: the step that the run begins or goes on at. Rows of later steps, which it is about to write again, go.
    """

    def __init__(self, plan: Plan, evaluators: Sequence[Evaluator], start: int):
        self._plan, self._writes = plan, jax.process_index() == 0
        with together("recording the run"):
            if self._writes:
                plan.data.keep_encoders(plan.workdir / ENCODERS)
                record_config(plan.workdir, plan.config, start)
                if plan.warm_start:
                    plan.warm_start.write_record(plan.workdir)
                for line in short_run(plan.config) if start < plan.last else ():
                    logging.warning("%s", line)
        self._begin = time.perf_counter()
        self._trackers: list[Tracker] = []
        with together("opening config.train.trackers"):
            if self._writes:
                names = listed(plan.config.train.trackers)
                self._trackers = open_trackers(names, plan.workdir, flatten(plan.config))
        self._history: History | None = None
        self._reports: dict[str, History] = {}
        if self._writes:
            self._history = History(plan.workdir / "metrics.jsonl", start)
            # Evaluators look after their step's checkpoint: a run may have been killed between the two.
            self._reports = {
                evaluator.name: History(
                    plan.workdir / f"{evaluator.name}.jsonl", start - 1 if evaluator.due(start, plan.last) else start
                )
                for evaluator in evaluators
            }

    def compiled(self, step: jax.stages.Compiled) -> None:
        """Records what the run runs on, and what its step needs."""
        if self._writes:
            program, workdir = self._plan.program, self._plan.workdir
            encoders, remat = told_encoders(self._plan.config), program.config.model.remat
            record_run(workdir, program.state.params, program.frozen, step, encoders, remat=remat)
            record_parameters(workdir, program.state.params)
            facts = read_run(workdir)
            for tracker in self._trackers:
                tracker.write_facts(facts)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """The scalars of a log step."""
        for tracker in self._trackers:
            tracker.write_scalars(step, scalars)
        if self._history:
            self._history.append(step, scalars)

    def announce(self, step: int, name: str, *, first: bool) -> None:
        """Says that training waits for an evaluator of that name, whose `report` comes next."""
        compiles = ", and the first time may compile" if first else ""
        logging.info("step %d/%d  %s: training waits%s ...", step, self._plan.last, name, compiles)
        self._begin = time.perf_counter()

    def report(self, step: int, name: str, report: Report) -> None:
        """What an evaluator of that name found after that step."""
        last, took = self._plan.last, format_duration(time.perf_counter() - self._begin)
        for tracker in self._trackers:
            if report.scalars:
                tracker.write_scalars(step, report.scalars)
            for picture, pixels in report.pictures.items():
                tracker.write_images(step, {picture: pixels})
        if not report.pictures:
            logging.info("step %d/%d  %s, in %s", step, last, report.about, took)
        if not self._writes:
            return
        workdir, history = self._plan.workdir, self._reports[name]
        if report.scalars:
            history.append(step, report.scalars)
        if report.draw:
            report.draw(workdir / f"{name}.png", history.rows)
        for picture, pixels in report.pictures.items():
            final = step == last
            path = workdir / f"{picture}.png" if final else workdir / picture / f"step_{step:07d}.png"
            save_png(path, pixels)
            logging.info("step %d/%d  %s: %s, in %s", step, last, shown(path), report.about, took)

    def finish(self) -> None:
        """Writes the loss curve and `results.json`: the last of all that was measured. Says what to do next."""
        if self._history is None or not self._history.rows:
            return
        rows, workdir = self._history.rows, self._plan.workdir
        # The bound is a thousandth of the others.
        groups: tuple[tuple[str, ...], ...] = (("loss", "mse"), ("vb",))
        panels = [[name for name in names if name in rows[0]] for names in groups]
        curves = [{name: [row[name] for row in rows] for name in names} for names in panels if names]
        loss_curve_png(workdir / "loss.png", [row["step"] for row in rows], curves, SMOOTHING)
        rate = len(rows) / sum(1 / row["images_per_second"] for row in rows)
        results = rows[-1] | {"images_per_second": rate}
        for history in self._reports.values():
            results |= {name: value for name, value in (history.rows or [{}])[-1].items() if name != "step"}
        write_json(workdir / RESULTS_FILE, results)
        logging.info("%.3g img/s over the whole run; all results: %s", rate, shown(workdir / RESULTS_FILE))
        for hint in next_steps(workdir, self._plan.config, self._plan.data.manifest, self._plan.data.samples):
            logging.info("%s", hint)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
        for history in (self._history, *self._reports.values()):
            if history:
                history.close()
