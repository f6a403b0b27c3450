"""Curves as SVG, with every name escaped: a legend, a logarithmic scale where the values ask for it, and their ends."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT, _MARGIN = 560, 220, 44
_COLOURS = ("#4f46e5", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
# Points of a curve; of more, every so many-th.
_POINTS = 400

Points = Sequence[tuple[int, float]]


def chart(title: str, curves: Mapping[str, Points]) -> str:
    """One chart of curves by name; "" where none has a point."""
    curves = {name: thinned(points) for name, points in curves.items() if points}
    if not curves:
        return ""
    values = [value for points in curves.values() for _, value in points]
    steps = [step for points in curves.values() for step, _ in points]
    is_log = min(values) > 0 and max(values) >= 10 * min(values)
    scale = math.log10 if is_log else float
    low, high, last = scale(min(values)), scale(max(values)), max(*steps, 1)
    span = (high - low) or 1.0

    def place(step: int, value: float) -> str:
        x = _MARGIN + (_WIDTH - _MARGIN - 8) * step / last
        return f"{x:.1f},{8 + (_HEIGHT - 30) * (1 - (scale(value) - low) / span):.1f}"

    body = ""
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(place(*point) for point in points)
        end = points[-1]
        body += f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>'
        x, y = place(*end).split(",")
        body += f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"><title>{html.escape(name)}</title></circle>'
    for value, height in ((max(values), 14), (min(values), _HEIGHT - 24)):
        body += f'<text x="2" y="{height}" class="studio-tick">{value:.3g}</text>'
    body += f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end" class="studio-tick">step {last:,}</text>'
    legend = ""
    for number, (name, points) in enumerate(curves.items()):
        mark = f'<i style="background:{_COLOURS[number % len(_COLOURS)]}"></i>'
        legend += f"<span>{mark}{html.escape(name)} {points[-1][1]:.4g}</span>"
    kind = ", logarithmic" if is_log else ""
    return (
        f'<figure class="studio-chart"><figcaption>{html.escape(title)}{kind}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{body}</svg><div class="studio-legend">{legend}</div></figure>'
    )


def thinned(points: Points) -> Points:
    """At most about as many points as a chart has room for, the last among them."""
    every = -(-len(points) // _POINTS)
    return points if every <= 1 else [*points[::every], points[-1]]


CSS = """
.studio-charts {display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: .8rem}
.studio-chart {margin: 0; padding: .5rem; border: 1px solid var(--border-color-primary); border-radius: .4rem}
.studio-chart svg {width: 100%; height: auto}
.studio-tick {font-size: 11px; fill: var(--body-text-color-subdued)}
.studio-legend {display: flex; flex-wrap: wrap; gap: .2rem .9rem; font-size: .8rem; overflow-wrap: anywhere}
.studio-legend i {display: inline-block; width: .7rem; height: .2rem; margin-right: .3rem; vertical-align: middle}
"""
