"""A whole T2I-CompBench: which scores its categories are made of, where each comes from, and what they add up to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pixart_jax.evaluators.compbench.layout import Pictures, read_prompts
from pixart_jax.evaluators.compbench.report import SUITE
from pixart_jax.evaluators.compbench.score_files import mean_of, read_scores, scores_path, write_scores
from pixart_jax.evaluators.compbench.scorers import About, Scorer
from pixart_jax.evaluators.compbench.three_in_one import three_in_one
from pixart_jax.evaluators.compbench.units import Judged, Units
from pixart_jax.files import write_atomically
from pixart_jax.files.typed_json import read_fields

# Beside a file of scores: the network that they are of, and the digest of the file.
ABOUT = "about.json"


@dataclasses.dataclass(frozen=True)
class Scored:
    """values: f64[N], NaN of pictures that could not be read; skipped: why, by their numbers."""

    values: np.ndarray
    about: About
    skipped: Mapping[int, str]

    @classmethod
    def read(cls, path: pathlib.Path, count: int) -> Scored:
        """What the benchmark's scripts, or we, have written; errors as of `read_scores`."""
        values = read_scores(path, count)
        beside = path.with_name(ABOUT)
        if beside.exists():
            fields = read_fields(beside, f"remove {beside}")
            if fields.text("scores_sha256") == hashlib.sha256(path.read_bytes()).hexdigest():
                about = About(fields.text("name"), fields.text("sha256"), fields.text("differs"))
                return cls(values, about, {})
        return cls(values, About(f"as found in {path}", "", "made elsewhere: nothing is known of its network"), {})


@dataclasses.dataclass(frozen=True)
class Relations:
    """Complex prompts with relations of one kind alone: in space, or by what is done."""

    spatial: tuple[str, ...]
    action: tuple[str, ...]

    @classmethod
    def read(cls, prompts: pathlib.Path) -> Relations:
        """From the benchmark's folder of prompts; errors as of `read_prompts`."""
        return cls(*(read_prompts(prompts, f"complex_val_{kind}") for kind in ("spatial", "action")))


@dataclasses.dataclass(frozen=True)
class Part:
    """One kind of score of one category.

    Attributes:
      score: its name in `score_files.FILES`.
      scorer: who gives it; None where it is given.
      looks: whether the scorer must look at the pictures, which takes long.
      given: scores that the benchmark's own scripts have written.
    """

    pictures: Pictures
    score: str
    scorer: Scorer | None
    looks: bool = True
    given: Scored | None = None

    def judge_share(
        self, out: pathlib.Path, size: int, index: int, count: int, num_threads: int, report: Callable[[int], None]
    ) -> None:
        """What `Units.judge` does, where pictures must be looked at."""
        if self.scorer is not None and self.looks:
            units = self._units(out, size)
            units.begin({"network": self.scorer.about.name, "weights": self.scorer.about.sha256})
            units.judge(self.scorer.judge, index, count, num_threads, report)

    def share(self, size: int, index: int, count: int) -> int:
        """How many pictures of the category process `index` of `count` looks at."""
        rows = range(len(self.pictures))
        return sum(len(rows[start : start + size]) for start in range(index * size, len(rows), count * size))

    def scored(self, out: pathlib.Path, size: int) -> Scored | None:
        """The category's scores; None where other processes are still at them."""
        if self.scorer is None:
            return self.given
        rows = range(len(self.pictures))
        judged: Judged | None
        if self.looks:
            judged = self._units(out, size).read()
        else:
            judged = Judged(dict(zip(rows, self.scorer.judge(self.pictures, rows, []), strict=True)), {})
        if judged is None:
            return None
        values = np.full(len(self.pictures), np.nan)
        for row, said in judged.values.items():
            values[row] = self.scorer.score(self.pictures, row, said)
        return Scored(values, self.scorer.about, judged.skipped)

    def _units(self, out: pathlib.Path, size: int) -> Units:
        return Units(self.pictures, out / ".units" / self.pictures.category / self.score, size)


def finish(
    out: pathlib.Path, parts: Sequence[Part], relations: Relations | None, size: int
) -> tuple[dict[str, Any], list[str]] | None:
    """Writes the benchmark's files into `out/CATEGORY`; None where other processes are still at their share.

    Args:
      relations: of complex prompts, where they are among the parts.
      size: pictures in a unit.

    Returns:
      What was found, as JSON; and a line for each picture that could not be read.

    Raises:
      InputError: a unit is damaged.
    """
    found: dict[str, dict[str, Scored]] = {}
    pictures = {part.pictures.category: part.pictures for part in parts}
    for part in parts:
        scored = part.scored(out, size)
        if scored is None:
            return None
        found.setdefault(part.pictures.category, {})[part.score] = scored
    result: dict[str, Any] = {"suite": SUITE, "scores": {}, "parts": {}, "networks": {}, "pictures": {}}
    skipped = set()
    for name, scores in found.items():
        category = pictures[name]
        for score, scored in scores.items():
            write_scores(out / name, score, scored.values)
            _write_about(scores_path(out / name, score), scored.about)
            skipped |= {f"{name}/samples/{category.name(row)}: {why}" for row, why in scored.skipped.items()}
        final = next(iter(scores.values())).values
        if relations and name == "complex":
            final = three_in_one(
                category.prompts,
                spatial_prompts=relations.spatial,
                action_prompts=relations.action,
                attribute=scores["blip"].values,
                spatial=scores["spatial"].values,
                action=scores["clip"].values,
            )
            write_scores(out / name, "three_in_one", final)
        result["scores"][name] = _known(mean_of(final))
        result["parts"][name] = {score: _known(mean_of(scored.values)) for score, scored in scores.items()}
        result["networks"][name] = {score: dataclasses.asdict(scored.about) for score, scored in scores.items()}
        result["pictures"][name] = _about_pictures(category, final)
    return result, sorted(skipped)


def _about_pictures(pictures: Pictures, final: np.ndarray) -> dict[str, Any]:
    """What the scores of a category depend on but for the networks."""
    recipe = pictures.folder / "recipe.json"  # Where they were drawn here.
    drawn = dict(read_fields(recipe, "name pictures as they were drawn")) if recipe.exists() else {}
    rows = range(len(pictures))
    return {
        "path": str(pictures.folder),
        "prompts": len(pictures.prompts),
        "prompts_sha256": hashlib.sha256("\n".join(pictures.prompts).encode()).hexdigest(),
        "files": len(pictures),
        "used": int(np.isfinite(final).sum()),
        "fingerprint": pictures.fingerprint(rows),
        "drawn": {key: value for key, value in drawn.items() if key not in ("pictures", "prompts")},
    }


def _known(mean: float) -> float | None:
    return mean if math.isfinite(mean) else None


def _write_about(path: pathlib.Path, about: About) -> None:
    content = dataclasses.asdict(about) | {"scores_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    text = json.dumps(content, ensure_ascii=False)
    write_atomically(path.with_name(ABOUT), lambda file: file.write(text.encode()))
