"""Settings of what makes training cheaper without changing the model: sections of `defaults.SETTINGS`."""

from __future__ import annotations

from pixart_jax.config.declaration import NOT_NEGATIVE, Range, Setting, one_of, within
from pixart_jax.models.routing import FORMS

# Tokens that pass a stretch of blocks by, in training alone (models.routing, docs/cheap.md).
ROUTE = {
    # Share of each picture's real tokens, drawn anew at each step; 0 routes nothing.
    "ratio": Setting(0.0, within(0, 0.95)),
    # The blocks that they pass by, from the one through the other, counted from 0; below 0 from the end: 2 and -3 leave
    # the first and the last two blocks to all tokens.
    "first": Setting(2, NOT_NEGATIVE),
    "last": Setting(-3, within(-(1 << 10), 1 << 10)),
    # "tread"; or "sprint", where all tokens of every tenth picture pass by, so that pictures can be guided by that.
    "form": Setting("tread", one_of(*FORMS)),
    # Share of train.num_steps after which no token passes by any more: SPRINT's last stage. 1 is never.
    "until": Setting(1.0, Range(lambda value: 0 < value <= 1, "must lie in (0, 1]")),
}
