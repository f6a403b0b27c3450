"""What is called for a prediction when pictures are drawn: the adapted model, with the shortcuts that it is to take."""

from __future__ import annotations

import dataclasses

from pixart_jax.adapters.adapter import Parameters, Params
from pixart_jax.errors import InputError
from pixart_jax.generation.parts import Parts, as_it_is
from pixart_jax.models.params import apply_of
from pixart_jax.models.path_drop import may_drop
from pixart_jax.samplers import FEW_STEPS
from pixart_jax.samplers.program import DROPPED_PATH, Prepare, as_they_are
from pixart_jax.samplers.steps import Apply, Stateful
from pixart_jax.shortcuts.eight_bits import MODES, in_eight_bits, mode_for, quantize_tree
from pixart_jax.shortcuts.reuse import PRESETS, reusing
from pixart_jax.shortcuts.text_once import remember_text, with_memory


def denoiser_of(parts: Parts, reuse: str | None = None) -> tuple[Apply | Stateful, Prepare]:
    """What `program.make_sample_fn` takes as its model and to prepare what that is given.

    Whatever is asked of the text once per picture, the copies of a ControlNet ask at every step: they draw the plain
    way.

    Args:
      reuse: key of `reuse.PRESETS`, or None, see `check_reuse`.
    """
    model = parts.model
    apply: Apply
    if not parts.text_once or parts.needs:
        prepare, apply = as_they_are, may_drop(model, parts.path_drop, apply_of)
    else:
        remember = parts.over(may_drop(model, parts.path_drop, remember_text))
        apply = may_drop(model, parts.path_drop, with_memory)

        def prepare(params, conditions):
            # Called as the model is, of which it looks at the text alone.
            return remember(params, None, None, **conditions)

    if reuse is not None:
        return reusing(model, parts.over, PRESETS[reuse]), prepare
    return parts.wrap(parts.over(apply)), prepare


def check_path_drop(parts: Parts, guidance: str, reuse: str | None) -> None:
    """Raises InputError where the null branch is to go without a stretch of the model's blocks, and cannot."""
    if guidance != DROPPED_PATH:
        return
    what = f"guidance = {guidance!r}"
    if parts.path_drop is None:
        raise InputError(
            f"{what}: {parts.name} was not trained to do without some of its blocks "
            "(config.model.route.form='sprint'), or comes from a format that does not say so; take 'cfg'"
        )
    if parts.needs:
        raise InputError(f"{what}: a ControlNet adds to blocks that would be left out; take 'cfg'")
    if reuse is not None:
        raise InputError(f"{what} and reuse do not go together: both leave blocks out; take one of them")


def check_reuse(parts: Parts, reuse: str, sampler: str, num_steps: int, in_interval: bool) -> None:
    """Raises InputError unless what blocks change can be foretold in so many steps of a sampler.

    Args:
      in_interval: only some of the steps are guided.
    """
    if reuse not in PRESETS:
        raise InputError(f"reuse = {reuse!r}: must be one of {', '.join(PRESETS)}")
    least = PRESETS[reuse].first + PRESETS[reuse].every
    if sampler in FEW_STEPS or num_steps < least:
        raise InputError(
            f"reuse = {reuse!r}: takes {least} steps or more that lie close together, not {num_steps} of {sampler}; "
            "leave it out"
        )
    if in_interval:
        raise InputError("reuse and guidance_interval do not go together: what is used again is of both branches")
    if parts.needs:
        raise InputError("reuse: what a ControlNet adds would be left out with the blocks; leave it out")
    if parts.wrap is not as_it_is:
        raise InputError("reuse runs the model in pieces, and wrap would not be called; leave one of them out")


def eight_bit_parts(parts: Parts, mode: str) -> Parts:
    """The parts with the blocks' linear layers in int8, those of the model below its adapters. What is kept loaded is
    kept in int8 alone.

    Args:
      mode: one of `eight_bits.MODES`, or "auto", the device's fastest.

    Raises:
      InputError: another mode; or an adapter that takes the model's kernels for what they were.
    """
    if parts.whole:
        raise InputError(parts.whole)
    if mode not in (*MODES, "auto"):
        raise InputError(f"int8 = {mode!r}: must be one of auto, {', '.join(MODES)}")
    chosen = mode_for(parts.mesh.devices.flat[0]) if mode == "auto" else mode
    return dataclasses.replace(
        parts,
        # Inside of adapters, which add to its products.
        over=lambda model: parts.over(in_eight_bits(model, chosen)),
        weights=parts.weights.then(_below_adapters),
        in_int8=True,
    )


def _below_adapters(params: Params) -> Params:
    if isinstance(params, Parameters):
        return params._replace(frozen=_below_adapters(params.frozen))
    return quantize_tree(params)
