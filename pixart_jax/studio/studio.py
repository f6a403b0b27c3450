"""One model drawn with by many visitors: their jobs wait in one queue, and those that may be are drawn together.

studio = Studio(pipeline, folder)
job = studio.submit(dataclasses.replace(studio.first, prompt="a lighthouse in fog"))
for view in job.follow():
    ...
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import pathlib
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pixart_jax.data.styles import Style, read_styles
from pixart_jax.errors import InputError
from pixart_jax.figures.images import save_png
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.generation.starts import check_start
from pixart_jax.samplers.program import EMBEDDED
from pixart_jax.samplers.stepwise import Glimpse
from pixart_jax.studio.colours import Colours
from pixart_jax.studio.jobs import Drawn, Job, State
from pixart_jax.studio.models import Models
from pixart_jax.studio.settings import NO_STYLE, Limits, Settings, checked, first_settings, guidances_of

# Jobs that wait at most; one more is told to come again.
MAX_WAITING = 64


class _AllStopped(Exception):
    """Nobody waits for what is being drawn."""


class Studio:
    """Draws what is submitted, in a thread of its own.

    Args:
      models: what is drawn with; it belongs to the studio's thread from now on.
      folder: finished pictures are laid there, a folder a job.
      styles: None is our own.
      limits: of one job.
      batch_size: pictures drawn at a time.

    Raises:
      InputError: what the page shows at first cannot be drawn, such as on these devices.

    Attributes:
      first: settings that suit the model.
    """

    def __init__(
        self,
        models: TextToImage | Models,
        folder: pathlib.Path,
        *,
        styles: Mapping[str, Style] | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        batch_size: int = 4,
    ):
        self.models = models if isinstance(models, Models) else Models.of(models)
        self.pipeline, self.loras, self.folder = self.models.pipeline, self.models.loras, folder
        parts = self.pipeline.parts
        self.limits = dataclasses.replace(limits, samplers=parts.target.samplers(), guidances=guidances_of(parts))
        self.styles = read_styles() if styles is None else styles
        self.first = first_settings(parts)
        self._batch_size = batch_size
        self._takes_scale = parts.guidance == EMBEDDED
        self.pipeline.manner(self.first.request(self.styles, takes_scale=self._takes_scale))
        self._waiting: list[Job] = []
        self._drawing: list[Job] = []
        self._changed = threading.Condition()
        self._is_open = True
        self._numbers = itertools.count(1)
        self._colours: Colours | None = None
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    def settings(self, given: Mapping[str, Any]) -> Settings:
        """Checked settings; what is missing is as in `first`. Raises InputError, see `settings.checked`."""
        return checked(given, self.first, self.styles, [*self.loras], self.limits)

    def submit(self, job: Job) -> Job:
        """Lays a job into the queue.

        Raises:
          InputError: a setting is wrong, or too many wait.
        """
        request = self.request(job)
        self.pipeline.manner(request)
        if job.given is not None:
            check_start(self.pipeline, request, job.given.strength)
        with self._changed:
            self._let_go()
            if len(self._waiting) >= MAX_WAITING:
                raise InputError(f"{MAX_WAITING} visitors wait already; try again in a while")
            if not self._is_open:
                raise InputError("the studio is closing")
            job.tell(stage="waiting", ahead=len(self._waiting) + bool(self._drawing))
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def request(self, job: Job) -> Request:
        """What a job asks of the pipeline, but for what it begins with."""
        request = job.settings.request(self.styles, takes_scale=self._takes_scale)
        if job.control is not None:
            if self.models.control is None:
                raise InputError("there is no ControlNet here; start the app with one (--controlnet)")
            return self.models.control.shape(request, job.control.picture)
        if job.given is None:
            return request
        shape = {"size": request.size, "aspect_ratio": None, "height": None, "width": None}
        return dataclasses.replace(request, **job.given.shape(shape, self.pipeline.resolution))

    @property
    def waiting(self) -> int:
        """Jobs that are not begun; those that were stopped wait no longer."""
        with self._changed:
            self._let_go()
            return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are drawn."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stops all jobs, and ends the thread."""
        with self._changed:
            self._is_open = False
            for job in (*self._waiting, *self._drawing):
                job.stop()
            self._changed.notify_all()
        self._thread.join()

    def _kind(self, job: Job) -> tuple | None:
        """Jobs of the same may be drawn in one request; None is drawn alone."""
        if job.given is not None or job.control is not None:
            return None
        alike = dataclasses.replace(job.settings, prompt="", negative_prompt="", style=NO_STYLE, seed=0)
        return (*dataclasses.astuple(alike), job.settings.worded(self.styles, takes_scale=self._takes_scale)[1] is None)

    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            try:
                self._draw(jobs)
            except _AllStopped:
                pass
            except Exception as error:
                _fail(jobs, error)
            finally:
                for job in jobs:
                    job.tell(state=State.STOPPED if job.wants_stop else State.DONE)
                with self._changed:
                    self._drawing = []

    def _next(self) -> list[Job] | None:
        """Jobs to be drawn together; None when the studio closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._is_open)
            if not self._is_open:
                return None
            # First, so that they take no room of those who still want their pictures.
            self._let_go()
            chosen: list[Job] = []
            room = self._batch_size
            for job in self._waiting:
                alike = not chosen or self._kind(job) == self._kind(chosen[0]) is not None
                if alike and (not chosen or job.settings.num_images <= room):
                    chosen.append(job)
                    room -= job.settings.num_images
            # What else the first one's owner waits for, such as a sheet's other cells, lets all go first who are here.
            owner = chosen[0].owner if chosen else None
            left = [job for job in self._waiting if job not in chosen]
            self._waiting = sorted(left, key=lambda job: job.owner is owner)
            self._drawing = chosen
            self._tell_places()
        return [job for job in chosen if not job.wants_stop]

    def _let_go(self) -> None:
        """Those who were stopped leave the queue, and the others move up. Its lock is held."""
        left = [job for job in self._waiting if not job.view.state.is_over]
        if len(left) < len(self._waiting):
            self._waiting = left
            self._tell_places()

    def _tell_places(self) -> None:
        for place, job in enumerate(self._waiting):
            job.tell(ahead=place + bool(self._drawing))

    def _draw(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        for job in jobs:
            job.tell(state=State.DRAWING, stage="preparing", ahead=0)
        scales = dict(jobs[0].settings.loras)
        for name, lora in self.loras.items():
            lora.scale = scales.get(name, 0.0)
        request = _together([self.request(job) for job in jobs], self._batch_size)
        request, finish = self._begun(jobs[0], request)
        pipeline = self.models.control.pipeline if jobs[0].control and self.models.control else self.pipeline
        each = request.num_images

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "decoding":  # The steps of drawing are told one by one.
                _tell(jobs, stage=stage, done=done, total=total)

        batches, steps_done = -(-request.count // pipeline.at_once(request)), itertools.count(1)

        def watch(glimpse: Glimpse) -> None:
            tokens = jax.device_get(glimpse.tokens)
            if all(job.wants_stop for job in jobs):
                raise _AllStopped
            done, first = next(steps_done), 0
            if batches == 1:
                looks = self._look(tokens[: request.count], request)
                for job in jobs:
                    job.tell(previews=tuple(looks[first : first + each]))
                    first += each
            _tell(jobs, stage="drawing", done=done, total=batches * glimpse.num_steps)

        for number, picture in enumerate(pipeline.draw_each(request, progress, watch)):
            job = jobs[number // each]
            if all(job.wants_stop for job in jobs):
                raise _AllStopped
            if not job.wants_stop:
                self._keep(job, number % each, finish(picture))

    def _begun(self, job: Job, request: Request) -> tuple[Request, Callable[[np.ndarray], np.ndarray]]:
        """The request with what the job begins with, and what becomes of its pictures."""
        given = job.given
        if job.control is not None and self.models.control is not None:
            job.tell(stage="looking for edges")
            request = self.models.control.condition(request, job.control.picture, job.control.scale)
        if given is None:
            return request, lambda picture: picture
        job.tell(stage="reading the picture")
        canvas = request.canvas(self.pipeline.resolution)
        latents = given.latents(self.pipeline, request)
        return given.begin(self.pipeline, request, latents), lambda picture: given.finish(picture, canvas)

    def _look(self, tokens: np.ndarray, request: Request) -> np.ndarray:
        """uint8[n, h, w, 3] of half-drawn tokens f32[n, N, p·p·C]."""
        if self._colours is None:
            self._colours = Colours.fit(self.pipeline.parts.encode_pictures)
        return self._colours.pictures(self.pipeline.latents_of(tokens, request))

    def _keep(self, job: Job, number: int, picture: np.ndarray) -> None:
        """Writes a finished picture with its settings, and tells of it."""
        name = re.sub(r"[^a-z0-9]+", "-", job.settings.prompt.lower()).strip("-")[:40] or "picture"
        # A folder that nobody can guess: whoever knows the address of a picture can see it.
        path = self.folder / secrets.token_urlsafe(16) / f"{next(self._numbers):06d}_{name}.png"
        chunks = job.settings.chunks(self.styles, number, takes_scale=self._takes_scale)
        chunks |= {key: str(value) for key, value in (job.given.about() if job.given else {}).items()}
        save_png(path, picture, chunks)
        job.tell(pictures=(*job.view.pictures, Drawn(path, job.settings, number)))


def _together(requests: Sequence[Request], batch_size: int) -> Request:
    """One request of all; they differ in prompts, negative prompts and seeds alone."""
    first = requests[0]
    negatives = [str(request.negative_prompt) for request in requests]
    return dataclasses.replace(
        first,
        prompts=[request.prompts[0] for request in requests],
        negative_prompt=None if first.negative_prompt is None else negatives,
        seed=first.seed if len(requests) == 1 else [request.first_seed for request in requests],
        batch_size=batch_size,
    )


def _tell(jobs: Sequence[Job], **changes: Any) -> None:
    for job in jobs:
        job.tell(**changes)


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    """Tells visitors what went wrong; what is no fault of theirs stands in the log, too."""
    message = str(error)
    if not isinstance(error, InputError):
        logging.getLogger(__name__).error("a drawing failed", exc_info=error)
        if "RESOURCE_EXHAUSTED" in message or isinstance(error, MemoryError):
            message = "there is not enough memory for this; ask for fewer pictures at once, or a smaller size"
        else:
            message = f"the drawing failed ({type(error).__name__}); the app's log says more"
    _tell(jobs, state=State.FAILED, error=message, previews=())
