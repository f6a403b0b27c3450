"""The page of training runs: curves, pictures over steps, how far each is and what is wrong; it only reads."""

from __future__ import annotations

import base64
import html
import io
import pathlib
from collections.abc import Sequence

import gradio as gr
from PIL import Image

from pixart_jax.studio.runs import RATE, RunView, read_run
from pixart_jax.training.metrics import format_duration

from .charts import chart

# Seconds between two looks.
_EVERY = 5.0
# Pixels along the longer side of a page of samples.
_SAMPLES = 1024


def lay_runs(workdirs: Sequence[pathlib.Path]) -> None:
    """Lays them into the blocks that are open."""
    text = gr.HTML(_page(workdirs), elem_id="runs")
    with gr.Row():
        latest = gr.Checkbox(True, label="Newest samples", elem_id="latest")
        share = gr.Slider(0, 100, 100, step=1, label="or those at this share of the run (%)", elem_id="share")
    samples = gr.HTML(_samples(workdirs, 100), elem_id="samples")
    private = {"api_visibility": "private", "show_progress": "hidden"}

    def look(latest: bool, share: float) -> list[str]:
        return [_page(workdirs), _samples(workdirs, 100 if latest else share)]

    gr.Timer(_EVERY).tick(look, [latest, share], [text, samples], **private)
    share.input(lambda share: [False, _samples(workdirs, share)], share, [latest, samples], **private)


def _page(workdirs: Sequence[pathlib.Path]) -> str:
    runs = [read_run(workdir) for workdir in workdirs]
    heads = "".join(map(_head, runs))
    names = dict.fromkeys((file, name) for run in runs for file, curves in run.curves.items() for name in curves)
    charts = ""
    for file, name in names:
        curves = {run.name: run.curves.get(file, {}).get(name, []) for run in runs}
        charts += chart(name if file == "metrics" else f"{file}: {name}", curves)
    return f'<div class="studio-runs">{heads}<div class="studio-charts">{charts}</div></div>'


def _head(run: RunView) -> str:
    told = [f"step {run.step:,} of {run.num_steps:,}" if run.num_steps else f"step {run.step:,}"]
    told += [f"{run.rate:.3g} img/s"] if run.rate and RATE in run.curves.get("metrics", {}) else []
    told += [f"{format_duration(run.seconds_left)} to go"] if run.seconds_left is not None else []
    told += ["done"] if run.is_over else []
    problems = "".join(f'<div class="studio-error" role="alert">{html.escape(text)}</div>' for text in run.problems)
    return f"<p><b>{html.escape(run.name)}</b>: {html.escape(', '.join(told))}</p>{problems}"


def _samples(workdirs: Sequence[pathlib.Path], share: float) -> str:
    body = ""
    for run in map(read_run, workdirs):
        for name, pages in run.pictures.items():
            steps = [*pages]
            step = steps[round(share / 100 * (len(steps) - 1))]
            told = f"{run.name}: {name} after step {step:,}"
            body += f"<figure><figcaption>{html.escape(told)}</figcaption>{_picture(pages[step])}</figure>"
    return f'<div class="studio-charts">{body or "no pictures yet"}</div>'


def _picture(path: pathlib.Path) -> str:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            small = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "<p>it cannot be read yet</p>"
    small.thumbnail((_SAMPLES, _SAMPLES))
    file = io.BytesIO()
    small.save(file, format="PNG")
    return f'<img alt="samples" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
