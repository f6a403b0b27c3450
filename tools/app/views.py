"""What the page shows of a job, as HTML in which every word of a visitor is escaped."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from pixart_jax.studio.jobs import Drawn, State, View
from pixart_jax.studio.settings import NO_STYLE
from pixart_jax.training.metrics import format_duration

# Pixels along the longer side of a preview.
_PREVIEW = 256

CSS = """
.studio-view {min-height: 5rem; padding: .2rem}
.studio-bar {height: .5rem; border-radius: .25rem; background: var(--border-color-primary); overflow: hidden}
.studio-bar > div {height: 100%; background: var(--color-accent); transition: width .15s}
.studio-previews {display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .6rem}
.studio-previews img {border-radius: .4rem; image-rendering: auto; filter: blur(1px)}
.studio-error {padding: .6rem .8rem; border-radius: .4rem; border: 1px solid var(--error-border-color, #b91c1c);
  background: var(--error-background-fill, #fef2f2); color: var(--error-text-color, #b91c1c); white-space: pre-wrap}
.studio-settings {font-size: .9rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere}
"""


def of_job(view: View) -> str:
    """A job's progress, previews and error."""
    body = ""
    if view.state is State.WAITING:
        body = f"<p>waiting: {view.ahead} before you</p>" if view.ahead else "<p>waiting</p>"
    elif view.state is State.DRAWING:
        share = 100 * view.done / view.total if view.total else 0
        words = f"{view.stage} {view.done}/{view.total}" if view.total else view.stage
        if view.seconds_left:
            words += f", {format_duration(view.seconds_left)} to go"
        words += f" ({format_duration(view.seconds)})" if view.seconds >= 1 else ""
        body = f'<p>{html.escape(words)}</p><div class="studio-bar"><div style="width:{share:.0f}%"></div></div>'
        body += '<div class="studio-previews">' + "".join(map(_preview, view.previews)) + "</div>"
    elif view.state is State.STOPPED:
        body = "<p>stopped</p>"
    elif view.state is State.DONE:
        count = len(view.pictures)
        body = f"<p>{count} picture{'s' * (count != 1)} in {format_duration(view.seconds)}</p>"
    if view.error:
        body = f'<div class="studio-error" role="alert">{html.escape(view.error)}</div>'
    return f'<div class="studio-view" data-state="{view.state.value}">{body}</div>'


def message(text: str, state: str = "failed") -> str:
    """Something that is wrong, or a hint."""
    kind = 'class="studio-error" role="alert"' if state == "failed" else ""
    return f'<div class="studio-view" data-state="{state}"><div {kind}>{html.escape(text)}</div></div>'


def of_picture(drawn: Drawn) -> str:
    """What a picture was drawn with."""
    settings = drawn.settings
    lines = [f"<b>{html.escape(settings.prompt) or 'no prompt'}</b>"]
    if settings.negative_prompt:
        lines.append(f"not: {html.escape(settings.negative_prompt)}")
    told = [f"seed {settings.seed}", f"{settings.sampler}, {settings.num_steps} steps"]
    told += [f"guidance {settings.guidance_scale:g}"]
    told += [f"guided by {settings.guidance}"] if settings.guidance != "cfg" else []
    told += [f"{settings.size} px, {settings.aspect_ratio}"]
    told += [f"style {settings.style}"] if settings.style != NO_STYLE else []
    told += [f"{name} at {scale:g}" for name, scale in settings.loras]
    told += [f"picture {drawn.number + 1} of {settings.num_images}"] if settings.num_images > 1 else []
    lines.append(html.escape("; ".join(told)))
    return f'<div class="studio-settings">{"<br>".join(lines)}</div>'


def _preview(picture: np.ndarray) -> str:
    height, width = picture.shape[:2]
    scale = _PREVIEW / max(height, width)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    return f'<img alt="half drawn" {size} src="data:image/png;base64,{data}">'
