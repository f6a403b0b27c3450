"""The page in Gradio: what is laid where, and which of the studio's doings each button starts. It decides nothing."""

from __future__ import annotations

import dataclasses
import functools
import html
import pathlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from pixart_jax.errors import InputError
from pixart_jax.studio.dropped import settings_in
from pixart_jax.studio.jobs import Job
from pixart_jax.studio.settings import NO_STYLE, Settings, manner_of, ratios_of, sizes_of
from pixart_jax.studio.sheets import Sheet
from pixart_jax.studio.studio import Studio
from pixart_jax.studio.visitors import MAX_OF_PROGRAMS, Visitor, Visitors

from . import views
from .tabs import lay_tabs
from .watch import lay_runs

# A PNG that is dropped anywhere but on a field for pictures is handed to the field that restores settings.
HEAD = """<script>
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, event => {
  if (!event.dataTransfer || event.target.closest(".takes-files")) return;
  event.preventDefault();
  if (kind != "drop" || !event.dataTransfer.files.length) return;
  const field = document.querySelector("#restore input[type=file]");
  if (!field) return;
  field.files = event.dataTransfer.files;
  field.dispatchEvent(new Event("change", {bubbles: true}));
}, true);
</script>"""


class Page:
    """The page of a studio.

    Attributes:
      blocks: what Gradio serves.
    """

    def __init__(self, studio: Studio, title: str, workdirs: Sequence[pathlib.Path] = ()):
        self.studio, self._visitors, self._programs = studio, Visitors(), Visitor(MAX_OF_PROGRAMS)
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            self.name = gr.BrowserState("", storage_key="pixart-visitor")
            gr.HTML(f"<h2>{html.escape(title)}</h2>")
            with gr.Tabs():
                with gr.Tab("Draw"), gr.Row():
                    with gr.Column(scale=2, min_width=320):
                        self._lay_settings()
                    with gr.Column(scale=3, min_width=360):
                        self._lay_pictures()
                if workdirs:
                    with gr.Tab("Training"):
                        lay_runs(workdirs)
            self._connect()
            lay_tabs(self, self._places)
            self._serve()

    def _lay_settings(self) -> None:
        studio, first = self.studio, self.studio.first
        self._prompt = gr.Textbox(
            label="Prompt", lines=3, max_length=studio.limits.characters, elem_id="prompt", autofocus=True
        )
        self._negative = gr.Textbox(
            label="Negative prompt",
            lines=1,
            max_length=studio.limits.characters,
            elem_id="negative",
            placeholder="what to move away from; empty is the model's null caption",
        )
        with gr.Row():
            self._draw = gr.Button("Draw", variant="primary", elem_id="draw")
            self._stop = gr.Button("Stop", variant="stop", elem_id="stop")
        with gr.Row():
            self._seed = gr.Textbox(label="Seed", value="0", elem_id="seed", min_width=120, max_length=20)
            self._dice = gr.Button("🎲", elem_id="dice", min_width=60, scale=0)
            self._count = gr.Slider(
                1, studio.limits.num_images, 1, step=1, label="Pictures", elem_id="count", min_width=120
            )
        with gr.Row():
            self._style = gr.Dropdown([NO_STYLE, *studio.styles], value=NO_STYLE, label="Style", elem_id="style")
            self._ratio = gr.Dropdown([*ratios_of(first.size)], value="1:1", label="Width : height", elem_id="ratio")
            self._size = gr.Dropdown(sizes_of(first.size), value=first.size, label="Size (px)", elem_id="size")
        with gr.Row():
            self._sampler = gr.Dropdown(
                [*studio.limits.samplers], value=first.sampler, label="Sampler", elem_id="sampler"
            )
            self._steps = gr.Number(
                first.num_steps, label="Steps", precision=0, minimum=1, elem_id="steps", min_width=80
            )
            self._guidance = gr.Number(first.guidance_scale, label="Guidance", elem_id="guidance", min_width=80)
            names = [*studio.limits.guidances]
            # Where there is something to choose.
            self._guided_by = [
                gr.Dropdown(names, value=first.guidance, label="Guided by", elem_id="guided-by", min_width=80)
                for _ in names[1:]
            ]
        # Filled when what they start is there.
        self._places = gr.Column()
        self._scales = [gr.Slider(-2, 2, 0, step=0.05, label=name, elem_classes="lora-scale") for name in studio.loras]
        self._restore = gr.File(
            label="Drop a PNG: its settings come back",
            file_types=[".png"],
            height=110,
            elem_id="restore",
            elem_classes="takes-files",
        )

    def _lay_pictures(self) -> None:
        self._view = gr.HTML(views.message("Write what to draw, and press Draw.", "idle"), elem_id="view")
        self._gallery = gr.Gallery(
            label="Your pictures: click one to see its settings",
            columns=3,
            object_fit="contain",
            format="png",
            buttons=["download", "fullscreen"],
            interactive=False,
            elem_id="gallery",
        )
        self._chosen = gr.State(None)
        self._about = gr.HTML("", elem_id="about")
        self._again = gr.Button("Use these settings", visible=False, elem_id="again")

    @property
    def shown(self) -> list[Any]:
        """What shows a visitor's job and pictures."""
        return [self._view, self._gallery]

    @property
    def controls(self) -> list[Any]:
        """In the order of `settings`."""
        return [
            self._prompt, self._negative, self._style, self._ratio, self._size, self._sampler, self._steps,
            self._guidance, self._seed, self._count, *self._guided_by, *self._scales,
        ]  # fmt: skip

    def settings(self, *values: Any) -> Settings:
        """Of what the controls say."""
        names = (
            "prompt", "negative_prompt", "style", "aspect_ratio", "size", "sampler", "num_steps", "guidance_scale",
            "seed", "num_images", *("guidance" for _ in self._guided_by),
        )  # fmt: skip
        given = dict(zip(names, values, strict=False))
        scales = values[len(names) :]
        return self.studio.settings(given | {"loras": list(zip(self.studio.loras, scales, strict=False))})

    def _values(self, settings: Settings) -> list[Any]:
        """What the controls say of settings."""
        scales = dict(settings.loras)
        return [
            settings.prompt, settings.negative_prompt, settings.style, settings.aspect_ratio, settings.size,
            settings.sampler, settings.num_steps, settings.guidance_scale, str(settings.seed), settings.num_images,
            *(settings.guidance for _ in self._guided_by),
            *(scales.get(name, 0.0) for name in self.studio.loras),
        ]  # fmt: skip

    def _connect(self) -> None:
        private = {"api_visibility": "private", "show_progress": "hidden"}
        many: dict[str, Any] = private | {"concurrency_limit": None}
        shown = self.shown
        self.blocks.load(self._arrive, self.name, [self.name, *shown], **many)
        drawing = [self.name, *self.controls]
        for event in (self._draw.click, self._prompt.submit):
            event(self._begin, drawing, [self.name, *shown], **many)
        self._stop.click(self._end, self.name, None, **private)
        self._dice.click(lambda: str(secrets.randbelow(2**32)), None, self._seed, **private)
        self._sampler.input(
            functools.partial(manner_of, self.studio.pipeline.parts),
            self._sampler,
            [self._steps, self._guidance],
            **private,
        )
        self._restore.upload(self._dropped, self._restore, [self._view, self._restore, *self.controls], **private)
        self._gallery.select(self._select, self.name, [self._about, self._chosen, self._again], **private)
        self._again.click(lambda chosen: self._values(chosen), self._chosen, self.controls, **private)

    def _arrive(self, name: str) -> Iterator[list[Any]]:
        """A page is opened, or again: what its visitor draws is shown on."""
        name = self._visitors.name(name)
        visitor = self._visitors.visitor(name)
        if visitor.job is None:
            yield [name, gr.skip(), self._paths(visitor)]
        else:
            yield from self._follow(name, visitor, visitor.job)

    def _begin(self, name: str, *values: Any) -> Iterator[list[Any]]:
        yield from self.run(name, lambda: Job(self.settings(*values)))

    def run(self, name: str, make: Callable[[], Job]) -> Iterator[list[Any]]:
        """Begins a visitor's job and shows it: what `name` and `shown` become."""
        name = self._visitors.name(name)
        visitor = self._visitors.visitor(name)
        try:
            job = make()
            if not job.settings.prompt.strip():
                raise InputError("there is no prompt: write what to draw")
            self._visitors.begin(visitor, job)
            try:
                if isinstance(job, Sheet):
                    job.begin(self.studio.submit)
                else:
                    self.studio.submit(job)
            except InputError:
                job.stop()
                self._visitors.finish(visitor)
                raise
        except InputError as error:
            yield [name, views.message(str(error)), gr.skip()]
            return
        yield from self._follow(name, visitor, job)

    def _follow(self, name: str, visitor: Visitor, job: Job) -> Iterator[list[Any]]:
        finished = -1
        for view in job.follow():
            is_new = len(view.pictures) != finished
            finished = len(view.pictures)
            self._visitors.finish(visitor)
            yield [name, views.of_job(view), self._paths(visitor) if is_new else gr.skip()]

    def _paths(self, visitor: Visitor) -> list[str]:
        return [str(drawn.path) for drawn in visitor.pictures]

    def _end(self, name: str) -> None:
        job = self._visitors.visitor(self._visitors.name(name)).job
        if job is not None:
            job.stop()

    def _dropped(self, path: str) -> list[Any]:
        unchanged = [gr.skip()] * len(self.controls)
        try:
            settings = self.studio.settings(settings_in(pathlib.Path(path)))
        except InputError as error:
            return [views.message(str(error)), None, *unchanged]
        return [
            views.message("The settings of the picture are back; press Draw.", "idle"),
            None,
            *self._values(settings),
        ]

    def _select(self, name: str, event: gr.SelectData) -> list[Any]:
        pictures = self._visitors.visitor(self._visitors.name(name)).pictures
        if not isinstance(event.index, int) or event.index >= len(pictures):
            return ["", None, gr.update(visible=False)]
        drawn = pictures[event.index]
        return [views.of_picture(drawn), drawn.settings, gr.update(visible=True)]

    def _serve(self) -> None:
        """What programs call: one function, the same as the page's."""

        def draw(
            prompt: str,
            negative_prompt: str = "",
            seed: str = "0",
            num_images: int = 1,
            num_steps: int = 0,
            guidance_scale: float = -1.0,
            sampler: str = "",
            style: str = NO_STYLE,
            aspect_ratio: str = "1:1",
            size: int = 0,
            loras: dict[str, float] | None = None,
            guidance: str = "",
        ) -> list[dict[str, Any]]:
            """Draws pictures of a prompt.

            What is 0, below 0 or empty is the model's own. Returns the pictures as files with their settings.
            """
            return self._draw_for_program(
                prompt=prompt, negative_prompt=negative_prompt, seed=seed, num_images=num_images, style=style,
                aspect_ratio=aspect_ratio, loras=loras or {}, sampler=sampler, size=size or self.studio.first.size,
                num_steps=num_steps, guidance_scale=guidance_scale,
                guidance=guidance or self.studio.first.guidance,
            )  # fmt: skip

        gr.api(draw, api_name="draw", concurrency_limit=None)

    def _draw_for_program(self, **given: Any) -> list[dict[str, Any]]:
        sampler = given["sampler"] or self.studio.first.sampler
        try:
            steps, scale = manner_of(self.studio.pipeline.parts, sampler)
            given |= {"sampler": sampler, "num_steps": given["num_steps"] or steps}
            given["guidance_scale"] = scale if given["guidance_scale"] < 0 else given["guidance_scale"]
            job = self.studio.submit(Job(self.studio.settings(given)))
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error
        view = job.wait()
        self._visitors.keep(self._programs, view.pictures)
        if view.error:
            raise gr.Error(view.error, print_exception=False)
        return [
            {
                "picture": {"path": str(drawn.path), "meta": {"_type": "gradio.FileData"}},
                "settings": dataclasses.asdict(drawn.settings),
                "number": drawn.number,
            }
            for drawn in view.pictures
        ]


def runs_page(workdirs: Sequence[pathlib.Path]) -> gr.Blocks:
    """A page of training runs alone."""
    with gr.Blocks(title="Training", analytics_enabled=False) as blocks:
        lay_runs(workdirs)
    return blocks
