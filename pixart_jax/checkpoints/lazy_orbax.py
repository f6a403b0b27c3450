"""`orbax.checkpoint`, imported when something of it is first asked for: who maps converted weights needs none of it."""

from typing import Any


def __getattr__(name: str) -> Any:
    import orbax.checkpoint

    return getattr(orbax.checkpoint, name)
