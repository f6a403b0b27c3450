"""From a class-conditional DiT to a caption-conditioned PixArt: the second stage of training starts at the first's
weights. numpy only.

Source: PixArt-α (Chen et al. 2023) §2.3, "re-parameterization". The paper gives the tables and says nothing about the
shared MLP, and the released code has neither; the choice of the MLP is derived here.

With e(t) the embedded timestep, u the embedded "no class", c(t) = e(t) + u and s(t) = SiLU(c(t)), block l is modulated
by

    DiT:     S_l(t) = W_l s(t) + b_l
    PixArt:  S_l(t) = W̄ s(t) + b̄ + E_l

and the final layer by W_f s(t) + b_f and by c(t) + E_f, c added to both its rows. Over a set T of timesteps

    Σ_t Σ_l ‖W_l s(t) + b_l − W̄ s(t) − b̄ − E_l‖²,  t ∈ T,

is least at

    W̄ = mean_l W_l,  b̄ = mean_l b_l,  E_l = mean_t[W_l s(t) + b_l] − W̄ mean_t s(t) − b̄.

Proof: whatever W̄ and b̄, the best E_l is the mean over T of what they leave, so that (W_l − W̄)(s(t) − mean_t s)
remains; for each t the sum of its squares over l is least where W̄ is the mean of the W_l. Others reach the same sum
(b̄ may be moved into every E_l); this one has Σ_l E_l = 0. Likewise E_f = mean_t[W_f s(t) + b_f − c(t)], with no MLP to
choose: how c(t) changes is what PixArt's final layer gets, so expect the larger errors there.

The paper's method is T = {t*}: the sum is 0 there for every W̄, and the mean's is the least error at any other t,
(W_l − W̄)(s(t) − s(t*)). T = all timesteps is exact nowhere and closest on the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.models.timestep_freqs import TIMESTEP_FREQS

NUM_TIMESTEPS = 1000
TABLE_TIMESTEPS = (*range(0, NUM_TIMESTEPS, 100), NUM_TIMESTEPS - 1)
UNCONDITIONAL = ("null", "none")

# What only the one has and only the other has; a DiT's blocks are all equal, so there is one stack of them.
_DIT_ONLY = {
    "y_embedder/embedding_table",
    "blocks_0/adaLN_modulation/kernel",
    "blocks_0/adaLN_modulation/bias",
    "final_layer/adaLN_modulation/kernel",
    "final_layer/adaLN_modulation/bias",
}
_COMPUTED = {
    "t_block/kernel",
    "t_block/bias",
    "blocks_0/scale_shift_table",
    "final_layer/scale_shift_table",
}
_ZERO = {"blocks_0/cross_attn/proj/kernel", "blocks_0/cross_attn/proj/bias"}
_PIXART_ONLY = _COMPUTED | _ZERO | {"y_embedder/y_embedding"}
# What is taken from the freshly initialised target; of its other parameters only the shapes are looked at.
FRESH = ("blocks_0/cross_attn/", "y_embedder/")

# A tree of parameters, nested or '/'-joined, and what `_flatten` makes of it.
Params = Mapping[str, Any]
Flat = dict[str, np.ndarray]


def reparameterize(
    dit: Params, target: Params, *, method: str = "t500", unconditional: str = "null"
) -> dict[str, np.ndarray]:
    """Parameters of a PixArt that computes what a DiT computes without a class, whatever the caption.

    Copies what both have, computes `t_block` and the tables in float64 (module docstring) and takes what a DiT lacks,
    the cross-attention and the caption embedder, from `target`.

    Args:
      dit: parameters of a `PixArt` with num_classes > 0 and adaln="full", nested or '/'-joined.
      target: freshly initialised parameters of a `PixArt` with num_classes = 0, adaln="single" and otherwise the same
        fields; `num_heads` shows in no parameter, so see to it. Its cross-attention must still project to zero, else
        captions would count from the start.
      method: "t" and a timestep of 0..999, as in "t500", equals the DiT at that timestep; "mean" is the least-squares
        fit over all of them.
      unconditional: which u stands for no class. "null": the label table's last row, which DiT's guidance uses. It is
        added to the bias `t_embedder/mlp_2`, so that the shared MLP sees the DiT's own c(t) at every timestep; tables
        could make up for its absence at one only. "none": u = 0, an input that the DiT was not trained on.

    Returns:
      '/'-joined path to f32 array of every parameter of `target`. Copied arrays may share memory with the inputs.

    Raises:
      InputError: method or unconditional is none of the above; or lists every parameter by which `dit` is no such DiT,
        `target` is no such PixArt, or the two differ.
    """
    timesteps = _timesteps(method)
    dit, target = _flatten(dit), _flatten(target)
    _check(dit, target)

    params = {path: target[path] if path.startswith(FRESH) else dit[path] for path in target.keys() - _COMPUTED}
    params["t_embedder/mlp_2/bias"] = dit["t_embedder/mlp_2/bias"] + no_class(dit, unconditional)
    for name in ("kernel", "bias"):
        params[f"t_block/{name}"] = dit[f"blocks_0/adaLN_modulation/{name}"].mean(axis=0, dtype=np.float64)
    params = {path: array.astype(np.float32, copy=False) for path, array in params.items()}

    # The shared parameters are rounded by now, as the model will see them: the tables make up for it.
    dit_c, c = embed(dit, timesteps) + no_class(dit, unconditional), embed(params, timesteps)
    # The mean of modulations is the modulation of the mean s, because they are linear in it.
    dit_s, s = (_silu(vectors).mean(axis=0) for vectors in (dit_c, c))
    shared = _dense(params, "t_block", s)
    depth = len(target["blocks_0/scale_shift_table"])
    tables = [_dense(dit, "blocks_0/adaLN_modulation", dit_s, block) - shared for block in range(depth)]
    final = _dense(dit, "final_layer/adaLN_modulation", dit_s).reshape(2, -1) - c.mean(axis=0)
    params["blocks_0/scale_shift_table"] = np.asarray(tables, np.float32).reshape(depth, 6, -1)
    params["final_layer/scale_shift_table"] = final.astype(np.float32)
    return {path: params[path] for path in target}


class ModulationError(NamedTuple):
    """How far a PixArt's modulation is from a DiT's: ‖PixArt − DiT‖/‖DiT‖ at each of `timesteps`.

    Attributes:
      timesteps: i64[T].
      blocks: f64[T], root of the mean of its squares over the blocks.
      final: f64[T], of the final layer.
    """

    timesteps: np.ndarray
    blocks: np.ndarray
    final: np.ndarray


def modulation_error(
    dit: Params, params: Params, *, unconditional: str = "null", timesteps: Sequence[int] = TABLE_TIMESTEPS
) -> ModulationError:
    """The error that a change of parameters such as `reparameterize` leaves in the modulation, timestep by timestep.

    Args:
      dit, params: parameters of the DiT and of the PixArt, nested or '/'-joined.
      unconditional: the u of the DiT to compare with; as in `reparameterize`.
      timesteps: where to compare.

    Raises:
      InputError: as `reparameterize`, but a PixArt that has been trained is welcome.
    """
    dit, params = _flatten(dit), _flatten(params)
    _check(dit, params, fresh=False)
    t = np.asarray(timesteps)
    dit_c, c = embed(dit, t) + no_class(dit, unconditional), embed(params, t)

    shared = _dense(params, "t_block", _silu(c))
    squares = [
        _relative(shared + table.ravel(), _dense(dit, "blocks_0/adaLN_modulation", _silu(dit_c), block)) ** 2
        for block, table in enumerate(params["blocks_0/scale_shift_table"])
    ]
    final = c[:, None] + params["final_layer/scale_shift_table"]
    dit_final = _dense(dit, "final_layer/adaLN_modulation", _silu(dit_c))
    final = _relative(final.reshape(dit_final.shape), dit_final)
    return ModulationError(t, np.sqrt(np.mean(squares, axis=0)), final)


def format_error_table(errors: Mapping[str, ModulationError]) -> str:
    """A table to print: a row per timestep, two columns per method. errors: of each method, at the same timesteps."""
    lines = [
        "        " + "".join(f"{method:^20}" for method in errors),
        "     t  " + "    blocks     final" * len(errors),
    ]
    for i, t in enumerate(next(iter(errors.values())).timesteps):
        cells = (f"{error.blocks[i]:10.2%}{error.final[i]:10.2%}" for error in errors.values())
        lines.append(f"{t:6d}  " + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def check_method(method: str) -> None:
    """Raises InputError unless `reparameterize` knows the method."""
    _timesteps(method)


def _timesteps(method: str) -> np.ndarray:
    """The timesteps over which a method is the least-squares fit."""
    if method == "mean":
        return np.arange(NUM_TIMESTEPS)
    if match := re.fullmatch("t([0-9]{1,3})", method):
        return np.array([int(match[1])])
    raise InputError(f'method={method!r}: give "mean", or "t" and a timestep of 0..{NUM_TIMESTEPS - 1}, as in "t500"')


def _flatten(tree: Params, prefix: str = "") -> Flat:
    """'/'-joined path to f32 array."""
    flat: Flat = {}
    for name, value in tree.items():
        path = prefix + name
        flat |= _flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: np.asarray(value, np.float32)}
    return flat


def _check(dit: Flat, target: Flat, *, fresh: bool = True) -> None:
    """Raises InputError with all that keeps the two from being a DiT and a PixArt of equal blocks."""
    for params, needed, kind in (
        (dit, _DIT_ONLY, 'the source is not a class-conditional DiT (num_classes > 0, adaln="full")'),
        (target, _PIXART_ONLY, 'the target is not a caption-conditioned PixArt (num_classes=0, adaln="single")'),
    ):
        if missing := sorted(needed - params.keys()):
            raise InputError(f"{kind}; it lacks\n  " + "\n  ".join(missing))
    copied = {path for path in target.keys() - _COMPUTED if not path.startswith(FRESH)}
    problems = [f"the DiT has nothing for: {path}" for path in sorted(copied - dit.keys())]
    problems += [f"the target does not take: {path}" for path in sorted(dit.keys() - copied - _DIT_ONLY)]

    shapes = {path: dit[path].shape for path in copied & dit.keys()}
    depth, width, _ = dit["blocks_0/adaLN_modulation/kernel"].shape
    shapes |= {
        "t_block/kernel": (width, 6 * width),
        "t_block/bias": (6 * width,),
        "blocks_0/scale_shift_table": (depth, 6, width),
        "final_layer/scale_shift_table": (2, width),
    }
    problems += [
        f"wrong shape: {path} is {shape} by the DiT, {target[path].shape} in the target"
        for path, shape in sorted(shapes.items())
        if shape != target[path].shape
    ]
    if fresh:
        problems += [f"not zero in the target: {path}; initialise it" for path in sorted(_ZERO) if np.any(target[path])]
    if problems:
        raise InputError(
            "the target does not fit the DiT: it needs the DiT's depth, hidden_size, mlp_ratio, patch_size, "
            "latent_channels and learn_sigma, and no micro_condition, qk_norm or kv_compress:\n  "
            + "\n  ".join(problems)
        )


def no_class(dit: Flat, unconditional: str) -> np.ndarray | float:
    """u, f64[D] or 0, of `unconditional` as in `reparameterize`; raises InputError if it is neither of those."""
    if unconditional not in UNCONDITIONAL:
        raise InputError(f"unconditional={unconditional!r}: give one of {', '.join(UNCONDITIONAL)}")
    return dit["y_embedder/embedding_table"][-1].astype(np.float64) if unconditional == "null" else 0.0


def _dense(params: Flat, path: str, x: np.ndarray, block: int | tuple[()] = ()) -> np.ndarray:
    """A Dense layer, or one block's of a stack of them: only this one is in memory as float64."""
    kernel, bias = (params[f"{path}/{name}"][block].astype(np.float64) for name in ("kernel", "bias"))
    return x @ kernel + bias


def _silu(x: np.ndarray) -> np.ndarray:
    # By tanh, because exp(-x) overflows.
    return x * (1 + np.tanh(x / 2)) / 2


def embed(params: Flat, values: np.ndarray, embedder: str = "t_embedder") -> np.ndarray:
    """What an embedder of scalars [T] makes of them, f64[T, features]."""
    # The angles are rounded to float32 as in the model: at t = 999 that moves them by up to 3e-5.
    angles = (values.astype(np.float32)[:, None] * TIMESTEP_FREQS).astype(np.float64)
    hidden = _dense(params, f"{embedder}/mlp_0", np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
    return _dense(params, f"{embedder}/mlp_2", _silu(hidden))


def _relative(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
