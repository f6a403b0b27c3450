"""Classifier-free guidance (Ho & Salimans 2022) as a wrapper around a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.samplers.steps import Denoiser, Stateful, stateful

# The condition, bool[B], that asks a model for its prediction without the blocks that it was trained to do without
# (`models.path_drop`); only whether it is there counts.
PATH_DROPPED = "path_dropped"


def guide(
    model: Callable,
    conditions: Mapping,
    null: Mapping | None,
    guidance_scale,
    *,
    prepare: Callable[[Mapping], Mapping] = lambda conditions: conditions,
    interval=None,
) -> Denoiser:
    """eps = null + scale·(conditional - null) over every eps channel; the variance is the conditional one.

    The reference's IDDPM guides three of four channels by mistake; nothing here does.

    Args:
      model: (x, t, conditions) -> (eps, v), or `Stateful`; called once per step with the null and the conditional batch
        side by side.
      conditions: arrays of leading axis B.
      null: those of them that differ in the null branch, e.g. `null_branch(conditions)`; None switches guidance off.
      guidance_scale: float or traced f32[]: one program serves all scales.
      prepare: what the model is given in place of a batch's conditions, made once for all steps.
      interval: f32[2] or None: timesteps from the first to the second are guided, others see the conditional batch
        alone, which is half the work (Kynkäänniemi et al. 2024, arXiv:2404.07724). Traced: one program serves all. The
        model then hands nothing on.
    """
    return guided(
        model, branches(conditions, null, prepare=prepare, alone=interval is not None), guidance_scale, interval
    )


def branches(
    conditions: Mapping,
    null: Mapping | None,
    *,
    prepare: Callable[[Mapping], Mapping],
    alone: bool,
    dropping: bool = False,
) -> dict[str, Mapping]:
    """What `guided` takes: "both" branches side by side, the conditional one "alone", or the two; args: see `guide`.

    Args:
      dropping: the null branch is "weak", in a call of its own: of the model without the blocks that it was trained to
        do without (PATH_DROPPED). SPRINT's Path-Drop Guidance (Park et al. 2025, arXiv:2510.21986).
    """
    found: dict[str, Mapping] = {}
    if null is not None and dropping:
        mark = {PATH_DROPPED: jnp.ones(len(next(iter(conditions.values()))), bool)}
        found["weak"] = {**prepare({**conditions, **null, **mark}), **mark}
    elif null is not None:
        found["both"] = prepare({name: _pairs(null.get(name, value), value) for name, value in conditions.items()})
    if null is None or alone or dropping:
        found["alone"] = prepare(conditions)
    return found


def guided(model: Callable, given: Mapping[str, Mapping], guidance_scale, interval=None) -> Denoiser:
    """`guide` of branches that are prepared already."""
    inner = stateful(model)
    if given.keys() == {"alone"}:
        return Stateful(lambda x, t, state: inner.call(x, t, given["alone"], state), inner.begin)
    apart = "weak" in given

    def denoise(x, t, state):
        if apart:
            null = inner.call(x, t, given["weak"], state)[0][0]
            (cond, v), state = inner.call(x, t, given["alone"], state)
        else:
            (eps, both), state = inner.call(_pairs(x, x), _pairs(t, t), given["both"], state)
            (null, cond), v = _unpaired(eps), None if both is None else _unpaired(both)[1]
        return (null + guidance_scale * (cond - null), v), state

    if interval is None:
        return Stateful(denoise, inner.begin if apart else lambda x: inner.begin(_pairs(x, x)))

    def inside_only(x, t):
        inside = (interval[0] <= t[0]) & (t[0] <= interval[1])
        return jax.lax.cond(
            inside, lambda: denoise(x, t, ())[0], lambda: tuple(inner.call(x, t, given["alone"], ())[0])
        )

    return inside_only


# Rows of a sample lie next to each other, so that a batch that is split over devices stays where it is.


def _pairs(null, cond):
    """[B, ...] twice as [2B, ...]: a row of one, a row of the other."""
    return jnp.stack([null, cond], axis=1).reshape(-1, *cond.shape[1:])


def _unpaired(both):
    """The two [B, ...] of `_pairs`."""
    pairs = both.reshape(-1, 2, *both.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def null_branch(conditions: Mapping) -> dict[str, np.ndarray]:
    """The null branch as the reference samples it: the null caption at the prompt's own length (or the null label)."""
    return {"text_drop": np.ones(conditions["text_drop"].shape, bool)}


def empty_branch(conditions: Mapping) -> dict[str, np.ndarray]:
    """The null branch of who encodes the empty caption: at its own length, which is one token, T5's end of a text."""
    return null_branch(conditions) | {"text_length": np.ones(conditions["text_drop"].shape, np.int32)}
