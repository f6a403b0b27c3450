"""What an evaluation found, as files, as a table and as a curve, and whether two of them may stand side by side."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_jax import __version__
from pixart_jax.errors import InputError
from pixart_jax.evaluators.evaluation import write_text
from pixart_jax.evaluators.networks import FeatureNetwork
from pixart_jax.evaluators.picture_sets import PictureSet, SetFeatures
from pixart_jax.evaluators.references import Reference
from pixart_jax.figures.trade_off import over_setting_png, trade_off_png
from pixart_jax.files.typed_json import Fields, read_fields

# What two results must have in common to stand side by side; see docs/evaluation.md.
COMPARED = ("pictures.used", "reference.fingerprint", "reference.used", "kid_subset_size")
# And what they must have in common where both know it.
COMPARED_IF_KNOWN = ("drawn.prompts.sha256", "gallery.fingerprint", "captions.sha256")
# Of a curve: what is better where it is lower, and what tells that pictures show what they should; the first there is.
_DISTANCES = ("fid", "frechet_distance", "cmmd", "clip_discrepancy", "kid", "kernel_distance")
_AGREEMENTS = ("clip_score", "retrieval_at_1", "precision", "inception_score")

Result = Mapping[str, Any]


def make_result(
    figures: Mapping[str, float],
    *,
    networks: Mapping[str, FeatureNetwork],
    kid_subset_size: int | None,
    pictures: Mapping[str, Any],
    reference: Mapping[str, Any],
    gallery: Mapping[str, Any] | None,
    drawn: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The figures, and all that they depend on, as JSON.

    Args:
      networks: by what they are for.
      pictures, reference: see `about_set` and `about_reference`.
      gallery: as pictures: what retrieval looks among; None without it.
      drawn: how the pictures were drawn; None of pictures that were there.
    """
    return {
        "metrics": dict(figures),
        "networks": {
            purpose: {
                "name": network.name,
                "sha256": network.sha256,
                "published": network.published,
                "preprocessing": network.preprocessing,
            }
            for purpose, network in networks.items()
        },
        "kid_subset_size": kid_subset_size,
        "pictures": dict(pictures),
        "drawn": drawn and dict(drawn),
        "reference": dict(reference),
        "gallery": gallery and dict(gallery),
        "versions": {"pixart_jax": __version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy", "pillow")},
    }


def about_set(pictures: PictureSet, found: SetFeatures) -> dict[str, Any]:
    """What a result says of a set of pictures."""
    return {
        "path": pictures.path,
        "files": len(pictures),
        "used": len(found.read),
        "skipped": len(found.skipped),
        "fingerprint": pictures.fingerprint,
    }


def about_reference(given: Reference | None, pictures: PictureSet | None, found: SetFeatures | None) -> dict[str, Any]:
    """What a result says of its reference: a file of statistics, pictures, or none."""
    if given is not None:
        return {"path": str(given.path), "used": given.statistics.count, "fingerprint": given.fingerprint}
    if pictures is not None and found is not None:
        return about_set(pictures, found)
    return {"path": "", "used": 0, "fingerprint": ""}


def compare(first: pathlib.Path, second: pathlib.Path) -> str:
    """Two results' table; raises InputError, with the reason, if they do not compare or one is none."""
    one, two = (_read_result(path) for path in (first, second))
    keys = [key for key in COMPARED if _field(one, key) != _field(two, key)]
    for key in COMPARED_IF_KNOWN:
        known = [value for value in (_field(one, key), _field(two, key)) if value is not None]
        keys += [key] if len(known) == 2 and known[0] != known[1] else []
    for purpose in one["networks"].keys() & two["networks"].keys():
        keys += [
            f"networks.{purpose}.{key}"
            for key in ("name", "sha256", "preprocessing")
            if _field(one, f"networks.{purpose}.{key}") != _field(two, f"networks.{purpose}.{key}")
        ]
    if not one["metrics"].keys() & two["metrics"].keys():
        raise InputError(f"{first} and {second} have no metric in common")
    if keys:
        rows = [f"{key}: {_field(one, key)!r} and {_field(two, key)!r}" for key in keys]
        raise InputError(f"{first} and {second} do not compare, as they differ in\n  " + "\n  ".join(rows))
    for result in (one, two):
        if (drawn := result.fields("drawn", None)) is not None:
            _check_drawn(drawn)
    return table([one, two])


def _read_result(path: pathlib.Path) -> Fields:
    fields = read_fields(path, "name a result.json of an evaluation")
    metrics, networks = fields.fields("metrics"), fields.fields("networks")
    for name in metrics:
        metrics.number(name, -1e300, 1e300)
    for purpose in networks:
        network = networks.fields(purpose)
        for key in ("name", "sha256", "preprocessing"):
            network.text(key)
        network.flag("published", None)
    for side in (fields.fields("pictures"), fields.fields("reference")):
        side.text("path")
        side.text("fingerprint")
        side.integer("used", 0, 1 << 40)
    return fields


def _check_drawn(drawn: Fields) -> None:
    """Of what `_drawn` says."""
    for key in ("checkpoint", "weights", "sampler"):
        drawn.text(key)
    drawn.integer("step", 0, 1 << 60, None)
    for key in ("num_steps", "height", "width", "pictures"):
        drawn.integer(key, 0, 1 << 40)
    prompts = drawn.fields("prompts")
    prompts.integer("total", 0, 1 << 40)
    prompts.integer("seed", -(1 << 64), 1 << 64)
    for key in ("source", "sha256"):
        prompts.text(key)


def _field(result: Result, dotted: str) -> Any:
    """A field of a field; None where there is none."""
    value: Any = result
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def table(results: Sequence[Result]) -> str:
    """Markdown: a row per result, and what is to be known of them."""
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    rows = [(result["pictures"]["path"], result["pictures"]["used"], result) for result in results]
    return "\n".join([*_rows(("pictures", "N"), names, rows), "", *_notes(results)])


def _rows(heads: Sequence[str], names: Sequence[str], rows: Sequence[tuple[Any, Any, Result]]) -> list[str]:
    lines = ["| " + " | ".join((*heads, *names)) + " |", "|---" * (len(names) + len(heads)) + "|"]
    for *begin, result in rows:
        figures = [f"{result['metrics'][name]:.4f}" if name in result["metrics"] else "" for name in names]
        lines.append("| " + " | ".join((*map(str, begin), *figures)) + " |")
    return lines


def _notes(results: Sequence[Result]) -> list[str]:
    """Lines on the networks and the reference, which all have in common, and on how each was drawn."""
    first = results[0]
    said = []
    for network in first["networks"].values():
        if not network["sha256"]:
            said.append(f"{network['name']} ({network['preprocessing']})")
            continue
        weights = {True: "its published weights", False: "weights that are not the published ones"}
        which = weights.get(network.get("published"), f"weights {network['sha256'][:8]}")
        said.append(f"{network['name']} with {which}, preprocessing {network['preprocessing']}")
    lines = [f"Features of {'; of '.join(said)}."]
    if first["reference"]["path"]:
        used = first["reference"]["used"] or "an unknown number of"
        lines[0] = lines[0][:-1] + f"; reference {first['reference']['path']} ({used} pictures)."
    drawn = list(dict.fromkeys(_drawn(result) for result in results if result.get("drawn")))
    return [*lines, *(line for text in drawn for line in ("", text))]


def _drawn(result: Result) -> str:
    """How pictures were drawn, but for the guidance scale."""
    drawn = result["drawn"]
    prompts = drawn["prompts"]
    step = "" if drawn.get("step") is None else f", step {drawn['step']}"
    source = f"{drawn['pictures']} of the {prompts['total']} prompts of {prompts['source']}"
    return (
        f"Drawn by {drawn['checkpoint']} (weights {drawn['weights']}{step}) with {drawn['sampler']} in "
        f"{drawn['num_steps']} steps at {drawn['height']} × {drawn['width']}, seed {prompts['seed']}; "
        f"{source} (SHA-256 {prompts['sha256'][:12]})."
    )


def write_curve(out: pathlib.Path, results: Sequence[Result]) -> None:
    """The papers' curve: results of several guidance scales, as curve.json, curve.md and curve.png; and each metric
    against the scale, as by_guidance.png."""
    scales = [result["drawn"]["guidance_scale"] for result in results]
    names = list(results[0]["metrics"])
    points = [{"guidance_scale": scale, **result["metrics"]} for scale, result in zip(scales, results, strict=True)]
    write_text(out / "curve.json", json.dumps({"curve": points, "results": list(results)}, indent=2) + "\n")
    rows = [(scale, result["pictures"]["used"], result) for scale, result in zip(scales, results, strict=True)]
    text = "\n".join([*_rows(("guidance", "N"), names, rows), "", *_notes(results)])
    write_text(out / "curve.md", text + "\n")
    axes = [next((name for name in kinds if name in names), None) for kinds in (_AGREEMENTS, _DISTANCES)]
    across = [(axis, [point[axis] for point in points]) for axis in axes if axis is not None]
    if len(across) < 2:
        name = across[0][0] if across else names[0]
        across = [("guidance scale", scales), (name, [point[name] for point in points])]
    trade_off_png(out / "curve.png", across[0], across[1], [f"{scale:g}" for scale in scales])
    figures = {name: [point[name] for point in points] for name in names if not name.endswith("_std")}
    over_setting_png(out / "by_guidance.png", ("guidance scale", scales), figures)
