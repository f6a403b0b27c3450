"""The model card: a README whose head hubs read, and whose body people do, made of what is recorded."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pixart_jax.conversion.pipelines import PIPELINES
from pixart_jax.hub.contents import CHECKPOINT, CONTROLNET, IMAGES, LORA, MODEL, PIPELINE, Contents
from pixart_jax.hub.facts import Facts

# What is measured of pictures, for the head; losses are nobody's benchmark.
_FIGURES = re.compile(
    r"(fid|frechet_distance|kid|kernel_distance|cmmd|clip_score|clip_discrepancy|inception_score|precision|recall"
    r"|retrieval_at_\d+)"
)
_PICTURES = {
    "samples": "drawn after step {step:,}",
    "quality": "the metrics by step",
    "validation": "the loss on held-out pictures",
    "eval": "the loss on held-out pictures",
    "loss": "the training loss",
}
_LONGEST = 200


@dataclasses.dataclass(frozen=True)
class Asked:
    """What only the one who publishes can say.

    Attributes:
      repo: owner/name.
      license: of the hub's list, such as "apache-2.0"; "" where it was not said.
      license_name, license_link: of the license "other".
      base_model: the hub's id of the weights that these came from; "" where there were none.
      note: a paragraph of one's own.
    """

    repo: str
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    base_model: str = ""
    note: str = ""


def make_card(asked: Asked, contents: Contents, facts: Facts | None) -> str:
    """The text of README.md.

    Args:
      facts: of the run that has trained it; None where there is none at hand.
    """
    base = asked.base_model or (facts.base if facts else "") or _converted_from(contents)
    paragraphs = [f"# {asked.repo.split('/')[-1]}", _about(contents, facts, base), asked.note]
    if facts:
        paragraphs += [
            f"![{name}]({IMAGES}/{name}.png)\n\n*{_PICTURES[name].format(step=picture.step)}*"
            for name, picture in facts.pictures.items()
        ]
    paragraphs += ["## Use", _use(asked.repo, contents, base)]
    if contents.stored:
        paragraphs += ["## Model", _table(_of_model(contents))]
    if facts:
        paragraphs += ["## Training", _table(_of_training(facts)), "### Data", _table(_of_data(facts))]
        if any(facts.figures.values()):
            paragraphs += [f"### Figures at step {facts.step:,}", _figures(facts)]
        paragraphs.append(_settings(facts))
    paragraphs += ["## Licence", _licence(asked)]
    head = _head(asked, contents, facts, base)
    return f"---\n{head}\n---\n\n" + "\n\n".join(filter(None, paragraphs)) + "\n"


def _head(asked: Asked, contents: Contents, facts: Facts | None, base: str) -> str:
    """The YAML that hubs read."""
    from huggingface_hub import EvalResult, ModelCardData

    fields: dict[str, Any] = {"base_model": base or None}
    if base and facts:
        fields["base_model_relation"] = "finetune" if facts.trained == "full" else "adapter"
    elif base and contents.kind in (LORA, CONTROLNET):
        fields["base_model_relation"] = "adapter"
    found = []
    if facts:
        data = str(facts.settings["data.source"]) or "unknown"
        rows = [row for figures in facts.figures.values() for row in figures.items() if _FIGURES.fullmatch(row[0])]
        found = [EvalResult("text-to-image", data, data, metric_type=name, metric_value=value) for name, value in rows]
    for name in ("license", "license_name", "license_link"):
        fields[name] = getattr(asked, name) or None
    classes = contents.stored is not None and contents.stored.model.num_classes > 0
    return ModelCardData(
        pipeline_tag=None if classes else "text-to-image",
        library_name=contents.kind.library,
        tags=list(dict.fromkeys(("pixart", *contents.kind.tags, *(_kinds(facts) if facts else ()), "pixart_jax"))),
        eval_results=found or None,
        model_name=asked.repo.split("/")[-1],
        **fields,
    ).to_yaml()


def _kinds(facts: Facts) -> Iterable[str]:
    """What was trained, where it is not the usual."""
    return {"consistency": ["lcm"], "distribution_matching": ["dmd"]}.get(facts.objective, [])


def _converted_from(contents: Contents) -> str:
    """The hub's id of a model that was converted and no more."""
    source = contents.stored.provenance.get("source", "") if contents.stored else ""
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)([@/].*)?", source, re.ASCII)
    return found[1] if found else ""


def _about(contents: Contents, facts: Facts | None, base: str) -> str:
    title = contents.kind.title
    of = f" `{contents.class_name}`" if contents.kind is not PIPELINE and contents.class_name else ""
    parts = [f"{title[0].upper()}{title[1:]}{of}, text to image, written by pixart_jax (PixArt in JAX)."]
    if facts and base:
        how = {"lora": "A LoRA over", "controlnet": "A ControlNet for"}.get(facts.trained, "Trained from")
        parts.append(f"{how} [{base}]({_endpoint()}/{base}).")
    elif base:
        parts.append(f"Weights of [{base}]({_endpoint()}/{base}).")
    elif facts and not facts.began_with_weights:
        parts.append("Trained from random weights.")
    return " ".join(parts)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _use(repo: str, contents: Contents, base: str) -> str:
    ours = "from pixart_jax.generation.pipeline import TextToImage\n\n"
    draw = 'images = pipeline("a lighthouse in fog", seed=1)  # uint8[1, height, width, 3]'
    if contents.kind is MODEL:
        return _python(f'{ours}pipeline = TextToImage.from_pretrained("{repo}")\n{draw}')
    if contents.kind is PIPELINE:
        name = contents.class_name or PIPELINES["sigma"]
        theirs = f'from diffusers import {name}\n\npipeline = {name}.from_pretrained("{repo}")\n'
        theirs += 'image = pipeline("a lighthouse in fog").images[0]'
        return f"{_python(theirs)}\n\nOr in JAX:\n\n" + _python(
            f'{ours}pipeline = TextToImage.from_pretrained("{repo}")\n{draw}'
        )
    over = base or "BASE"  # A reader puts it in.
    if contents.kind is LORA:
        where = repo if len(contents.files) > 1 else f"{repo}/{next(iter(contents.files))}"
        return _python(f'{ours}pipeline = TextToImage.from_pretrained("{over}", adapters=["{where}:1.0"])\n{draw}')
    if contents.kind is CONTROLNET:
        return _shell(
            f"python -m tools.convert {over} weights/base\n"
            f'python -m tools.sample --checkpoint weights/base --controlnet {repo} --control photo.jpg --prompt "..."'
        )
    name = f"{repo}/{next(iter(contents.files))}" if contents.kind is CHECKPOINT else repo
    return _shell(f"python -m tools.convert {name} weights/{repo.split('/')[-1]}")


def _python(text: str) -> str:
    return f"```python\n{text}\n```"


def _shell(text: str) -> str:
    return f"```bash\n{text}\n```"


def _of_model(contents: Contents) -> Mapping[str, Any]:
    stored = contents.stored
    assert stored is not None
    model = stored.model
    conditions = (
        f"one of {model.num_classes} classes"
        if model.num_classes
        else f"captions of at most {model.max_text_tokens} tokens, {model.text_dim} wide"
    )
    return {
        "resolution": f"{stored.resolution} px, and other aspect ratios of as many pixels",
        "transformer": f"{model.depth} blocks of {model.hidden_size}, {model.num_heads} heads",
        "conditions": conditions,
        "latents": f"{model.latent_channels} channels, times {stored.latent_scale:g}",
        "drawn with": f"{stored.sampler}, {stored.num_steps} steps"
        + (", without guidance" if stored.guidance == "none" else ""),
    }


def _of_training(facts: Facts) -> Mapping[str, Any]:
    read, recorded = facts.settings, facts.recorded
    versions = recorded.get("versions")
    rows = {
        "steps": f"{facts.step:,} of {facts.num_steps:,}",
        "batch": f"{read['data.batch_size']:,}",
        "what is trained": {"full": "everything", "lora": "a LoRA", "controlnet": "a ControlNet"}[facts.trained],
        "parameters trained": recorded.get("num_trained"),
        "objective": facts.objective,
        "optimizer": f"{read['optimizer.name']}, learning rate {read['optimizer.learning_rate']:g} "
        f"({read['optimizer.schedule']}, {read['optimizer.warmup_steps']:,} steps of warm-up)",
        "average of the weights": f"decay {read['train.ema_decay']:g}",
        "matrix products": read["dtype"],
        "hardware": _hardware(recorded),
        "jax": versions.get("jax") if isinstance(versions, Mapping) else None,
        "commit of pixart_jax": recorded.get("commit") or recorded.get("version"),
    }
    return {name: f"{value:,}" if isinstance(value, int) else value for name, value in rows.items() if value}


def _hardware(recorded: Mapping[str, Any]) -> str:
    kind, count = recorded.get("device_kind"), recorded.get("num_devices")
    return f"{count} × {kind}" if isinstance(kind, str) and isinstance(count, int) else ""


def _of_data(facts: Facts) -> Mapping[str, Any]:
    manifest = facts.manifest
    skipped = ", ".join(f"{count:,} {why}" for why, count in manifest.skipped.items())
    rows = {
        "source": facts.settings["data.source"],
        "samples": f"{manifest.num_samples:,}" if manifest.num_samples else "",
        "resolution": f"{manifest.resolution} px" if manifest.resolution else "",
        "sizes": f"{len(manifest.bucket_histogram)} of height by width" if len(manifest.bucket_histogram) > 1 else "",
        "text encoder": manifest.text_encoder,
        "autoencoder": manifest.autoencoder,
        "cleaning of captions": manifest.caption_cleaning,
        "left out": skipped,
        "control pictures": manifest.control if manifest.control != "none" else "",
    }
    return {name: value for name, value in rows.items() if value}


def _figures(facts: Facts) -> str:
    rows = {name: f"{value:.4g}" for found in facts.figures.values() for name, value in found.items()}
    return _table(rows)


def _settings(facts: Facts) -> str:
    """All that differs from the defaults, folded away."""
    lines = [f"--config.{name}={_short(value)}" for name, value in facts.changed.items()]
    return f"<details><summary>Settings that are not the defaults</summary>\n\n{_fenced(lines)}\n\n</details>"


def _fenced(lines: Sequence[str]) -> str:
    return "\n".join(["```", *(line.replace("```", "'''") for line in lines), "```"])


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """Text that neither ends its cell nor is read as HTML."""
    return _short(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


def _short(value: Any) -> str:
    text = " ".join(str(value).split(os.linesep)).strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _licence(asked: Asked) -> str:
    if asked.license == "other":
        return f"[{asked.license_name}]({asked.license_link})"
    return f"`{asked.license}`" if asked.license else "Not said yet."
