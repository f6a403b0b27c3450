"""A look at pictures as they lie, before they are encoded: what tools.inspect_data says of them."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from pixart_jax.data.decoding import MAX_RATIO, decode
from pixart_jax.data.picture_survey import PictureSurvey, survey_pictures
from pixart_jax.data.pictures import Pictures
from pixart_jax.data.shards.manifest import bucket_name
from pixart_jax.errors import InputError
from pixart_jax.figures.data_set import contact_sheet
from pixart_jax.figures.images import save_png
from pixart_jax.files import check_writable

from .picture_source import open_named

# So many items that would be skipped are named for each reason.
_NAMED = 3
# As extraction's, where nothing else is said there.
_LIMITS = {"min_side": 64, "max_pixels": 2**27}
_SIDES = (256, 512, 1024)


def inspect_pictures(args: argparse.Namespace, out: pathlib.Path, progress: Callable[[int, int], None]) -> int:
    """Looks at a source's pictures; 0 where all of them can be used, 1 where some would be skipped.

    Raises:
      InputError: there is no such source, or no picture in it can be seen.
    """
    pictures, _ = open_named(args, args.source)
    if not len(pictures):
        raise InputError(f"{args.source} holds no pictures; docs/data.md lists what is read")
    check_writable(out, "--out")
    survey = survey_pictures(pictures, range(len(pictures)), **_LIMITS, progress=progress)
    print("\n".join(_report(args.source, pictures, survey)))
    if not survey.visible:
        raise InputError(f"{args.source}: none of its {len(pictures):,} items can be used; see the reasons above")
    path = out / "contact_sheet.png"
    _draw_sheet(args, pictures, survey, path)
    print(f"\npictures: {path}")
    return 1 if survey.bad else 0


def _report(source: str, pictures: Pictures, survey: PictureSurvey) -> Iterator[str]:
    yield f"{source}: {len(survey.seen):,} items, {len(survey.good):,} of which can be used"
    if pictures.class_names:
        yield f"classes: {len(pictures.class_names):,}"
    if survey.bad:
        yield "\nwould be skipped (docs/data.md says what each reason means):"
        for reason, count in survey.reasons.most_common():
            yield f"{count:>10,}  {reason}"
            named = [item for item in survey.bad if item.reason == reason][:_NAMED]
            yield from (f"{'':12}{item.key}: {item.message}" for item in named)
    if not survey.visible:
        return
    heights, widths = survey.sizes.T
    yield f"\n{'':<22}{'least':>10}{'median':>10}{'most':>10}"
    for name, values in (("height, px", heights), ("width, px", widths), ("height / width", heights / widths)):
        yield _spread(name, values)
    if len(survey.words):
        yield _spread("words of a caption", survey.words)
    yield ""
    for side in _SIDES:
        share = np.mean(heights * widths < side**2)
        yield f"smaller than {side}×{side} pixels, so enlarged for --resolution {side}: {share:.1%}"
    if survey.good:
        counts = sorted(survey.captions_per_picture.items())
        yield "captions per picture: " + ", ".join(f"{count:,} with {number}" for number, count in counts)
    if len(survey.words):
        yield f"captions that are not unique: {survey.repeated:.1%}"


def _spread(name: str, values: np.ndarray) -> str:
    form = ",.2f" if values.dtype.kind == "f" else ",.0f"
    return f"{name:<22}" + "".join(f"{value:>10{form}}" for value in (values.min(), np.median(values), values.max()))


def _draw_sheet(args: argparse.Namespace, pictures: Pictures, survey: PictureSurvey, path: pathlib.Path) -> None:
    """Pictures from all parts of the source, with their first captions, or why they would be skipped."""
    parts = np.array_split(np.arange(len(survey.visible)), min(args.num_pictures, len(survey.visible)))
    rng, shown, words = np.random.default_rng(args.seed), [], []
    for part in parts:
        item = survey.visible[rng.choice(part)]
        image = decode(pictures.data(item.index), **_LIMITS, max_ratio=MAX_RATIO)
        told, caption = [bucket_name((image.height, image.width))], item.reason
        if not item.reason:
            _, captions, label = pictures.words(item.index)
            told += [] if label is None else [f"class {pictures.class_names[label]}"]
            told += [f"1 of {len(captions)} captions"] if len(captions) > 1 else []
            caption = captions[0][0] if captions else ""
        image.thumbnail((512, 512))
        shown.append(np.asarray(image))
        words.append(f"[{', '.join(told)}] {caption}")
    heading = f"{pathlib.PurePath(args.source).name}: {len(survey.good):,} of {len(survey.seen):,} items can be used"
    save_png(path, contact_sheet(shown, words, heading))
