"""What else the page draws: from a picture, under control, and sheets of many pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.generation.given import Given
from pixart_jax.studio.dropped import MAX_PIXELS
from pixart_jax.studio.jobs import Followed, Job
from pixart_jax.studio.sheets import AXES, Sheet, cells_of

from . import views

if TYPE_CHECKING:
    from .page import Page

# How far from a picture, where nothing of it is to be kept as it is.
_NEAR = 0.6
_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}


def lay_tabs(page: Page, place: gr.Column) -> None:
    """Lays them where they belong; each draws with the settings of the page."""
    with place:
        with gr.Accordion("Draw from a picture", open=False, elem_id="from-picture"):
            _lay_picture(page)
        if page.studio.models.control is not None:
            with gr.Accordion("Follow the edges of a picture", open=False, elem_id="control"):
                _lay_control(page)
        with gr.Accordion("Draw a sheet", open=False, elem_id="sheet"):
            _lay_sheet(page)


def _lay_picture(page: Page) -> None:
    canvas = gr.ImageEditor(
        label="Paint over what is to be drawn anew; paint nothing to draw near all of it",
        type="numpy",
        sources=("upload", "clipboard"),
        brush=gr.Brush(default_size=24, colors=["#ffffff"], color_mode="fixed"),
        layers=False,
        transforms=(),
        elem_id="canvas",
        elem_classes="takes-files",
        height=320,
    )
    with gr.Row():
        strength = gr.Slider(0.05, 1, _NEAR, step=0.05, label="How far from it", elem_id="strength")
        keep = gr.Checkbox(label="Keep the other pixels as they are", elem_id="keep")
    button = gr.Button("Draw from the picture", elem_id="draw-from")

    def draw_from(
        name: str, drawn_on: dict[str, Any] | None, strength: float, keep: bool, *values: Any
    ) -> Iterator[Any]:
        yield from page.run(name, lambda: Job(page.settings(*values), given_of(drawn_on, strength, keep)))

    button.click(draw_from, [page.name, canvas, strength, keep, *page.controls], [page.name, *page.shown], **_EVENT)


def given_of(drawn_on: dict[str, Any] | None, strength: float, keep: bool) -> Given:
    """What Gradio's editor gives: a picture, and what is painted over it as a layer whose paint is opaque.

    Raises:
      InputError: no picture, or one with too many pixels.
    """
    picture = _rgb((drawn_on or {}).get("background"))
    layers = [np.asarray(layer) for layer in (drawn_on or {}).get("layers") or []]
    painted = [layer[..., 3] >= 128 for layer in layers if layer.ndim == 3 and layer.shape[-1] == 4]
    masks = [mask for mask in painted if mask.shape == picture.shape[:2] and mask.any()]
    if not masks:
        return Given(picture, strength=float(strength))
    return Given(picture, np.any(masks, axis=0), float(strength), bool(keep))


def _rgb(picture: np.ndarray | None) -> np.ndarray:
    if picture is None:
        raise InputError("there is no picture: drop one there first")
    if picture.ndim != 3 or picture.shape[-1] not in (3, 4) or min(picture.shape[:2]) < 8:
        raise InputError("this picture cannot be used: it needs 8 pixels a side and colours")
    if picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        raise InputError(f"this picture has more than {MAX_PIXELS:,} pixels; bring a smaller one")
    colours = picture[..., :3]
    if picture.shape[-1] == 4:  # On white, as everywhere.
        alpha = picture[..., 3:].astype(np.float32) / 255
        colours = np.rint(colours * alpha + 255 * (1 - alpha))
    return np.ascontiguousarray(colours.astype(np.uint8))


def _lay_control(page: Page) -> None:
    with gr.Row():
        picture = gr.Image(
            label="Picture", type="numpy", image_mode="RGB", sources=["upload", "clipboard"],
            elem_id="followed", elem_classes="takes-files",
        )  # fmt: skip
        edges = gr.Image(label="What is followed", interactive=False, elem_id="edges")
    scale = gr.Slider(0, 1, 1, step=0.05, label="How strongly")
    button = gr.Button("Draw after its edges", elem_id="draw-control")

    def look(picture: np.ndarray | None, *values: Any) -> list[Any]:
        control = page.studio.models.control
        if picture is None or control is None:
            return [None, gr.skip()]
        try:
            settings = page.settings(*values)
            request = control.shape(settings.request(page.studio.styles), _rgb(picture))
            return [control.edges(request, _rgb(picture)), gr.skip()]
        except InputError as error:
            return [None, views.message(str(error))]

    def draw_after(name: str, picture: np.ndarray | None, scale: float, *values: Any) -> Iterator[Any]:
        yield from page.run(name, lambda: Job(page.settings(*values), control=Followed(_rgb(picture), float(scale))))

    picture.change(look, [picture, *page.controls], [edges, page.shown[0]], **_EVENT)
    button.click(draw_after, [page.name, picture, scale, *page.controls], [page.name, *page.shown], **_EVENT)


def _lay_sheet(page: Page) -> None:
    with gr.Row():
        across = gr.Dropdown([*AXES], value="guidance", label="Across", elem_id="across")
        columns = gr.Textbox("1.5, 3, 6", label="Values", lines=1, elem_id="columns")
    with gr.Row():
        down = gr.Dropdown([*AXES], value="steps", label="Down", elem_id="down")
        rows = gr.Textbox("5, 10, 20", label="Values (prompts: a line each)", lines=1, max_lines=8, elem_id="rows")
    button = gr.Button("Draw the sheet", elem_id="draw-sheet")

    def draw_sheet(name: str, across: str, columns: str, down: str, rows: str, *values: Any) -> Iterator[Any]:
        def make() -> Sheet:
            studio = page.studio
            cells, width = cells_of(page.settings(*values), (across, columns), (down, rows), studio.settings)
            return Sheet(cells, width, (across, down), studio.folder)

        yield from page.run(name, make)

    inputs = [page.name, across, columns, down, rows, *page.controls]
    button.click(draw_sheet, inputs, [page.name, *page.shown], **_EVENT)
