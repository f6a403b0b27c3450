"""Settings of what makes training cheaper without changing the model: sections of `defaults.SETTINGS`."""

from __future__ import annotations

from pixart_jax.config.declaration import NOT_NEGATIVE, POSITIVE_SHARE, Range, Setting, listed, one_of, within
from pixart_jax.models.routing import FORMS
from pixart_jax.optimizers.power_averages import LONGEST

# Tokens that pass a stretch of blocks by, in training alone (models.routing, docs/cheap.md).
ROUTE = {
    # Share of each picture's real tokens, drawn anew at each step; 0 lets all of them through.
    "ratio": Setting(0.0, within(0, 0.95)),
    # The blocks that they pass by, from the one through the other, counted from 0; below 0 from the end: 2 and -3 leave
    # the first and the last two blocks to all tokens.
    "first": Setting(2, NOT_NEGATIVE),
    "last": Setting(-3, within(-(1 << 10), 1 << 10)),
    # "tread"; or "sprint", where all tokens of every tenth picture pass by, whatever the ratio, so that pictures can be
    # guided by that (sample.guidance).
    "form": Setting("tread", one_of(*FORMS)),
    # Share of train.num_steps after which the ratio is 0: SPRINT's last stage. 1 is never.
    "until": Setting(1.0, POSITIVE_SHARE),
}

# Representation alignment: what a block makes of the noisy tokens is drawn to a frozen network's features of the
# picture, which tools.extract_features --align has put into the shards (objectives.alignment, docs/cheap.md).
ALIGN = {
    # Of the mean of 1 - cos beside the other loss; REPA's is 0.5. 0 aligns nothing.
    "weight": Setting(0.0, NOT_NEGATIVE),
    # The block whose tokens are compared, counted from 0: REPA's is the eighth of 28.
    "block": Setting(7, NOT_NEGATIVE),
    # Width of the features, 768 of a ViT-B; and between the projector's three layers.
    "dim": Setting(768, within(1, 1 << 16)),
    "width": Setting(2048, within(1, 1 << 16)),
    # Share of train.num_steps after which the other loss goes on alone. 1 is never.
    "until": Setting(1.0, POSITIVE_SHARE),
}


def _are_lengths(text: str) -> bool:
    try:
        lengths = [float(part) for part in listed(text)]
    except ValueError:
        return False
    distinct = len({f"{length:g}" for length in lengths}) == len(lengths)
    return len(lengths) >= 1 and distinct and all(0.01 <= length <= LONGEST for length in lengths)


# Averages of the weights, snapshots of which are kept, so that their length can be chosen afterwards by tools.average
# (optimizers.power_averages, docs/cheap.md).
AVERAGE = {
    # Steps between snapshots; the last step has one too. 0 keeps no such averages.
    "every": Setting(0, NOT_NEGATIVE),
    # Lengths of those that are kept, as shares of the steps so far: EDM2's two.
    "sigma_rel": Setting(
        "0.05,0.1", Range(_are_lengths, f"must be lengths from 0.01 to {LONGEST:.4g}, each once, with commas between")
    ),
    # Of the numbers in a snapshot; in training they are float32.
    "dtype": Setting("float16", one_of("float16", "bfloat16", "float32")),
}
