"""Token routing: in training a random share of each picture's tokens passes a stretch of blocks by, and rejoins.

Sources: TREAD (Krause et al. 2025, arXiv:2501.04765) §3: tokens that are not chosen keep what they were before the
stretch. SPRINT (Park et al. 2025, arXiv:2510.21986) §3: few dense blocks, a sparse stretch of up to three quarters
dropped, few dense blocks; and of some pictures no token takes the stretch, so that its absence can guide.

SPRINT fuses what comes before and after the stretch by a linear layer of its own, and fills the gaps with a mask token.
Here the residual stream fuses them, before + (after - before), where the difference of a token that passed by is zero:
no parameter is added, and the model that is drawn with is a plain one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pixart_jax.devices.sharding import ROWS, TOKENS, WHOLE, constrain
from pixart_jax.models.params import apply_of
from pixart_jax.models.path_drop import Stretch, may_drop
from pixart_jax.models.pixart import Block, BlockConditions, ModelOutput, PixArt
from pixart_jax.models.remat import remat_options
from pixart_jax.samplers.steps import Apply

# The condition that routes: a PRNG key for each sample [B]. Without it all tokens go through all blocks.
ROUTE_KEYS = "route_keys"
FORMS = ("tread", "sprint")
# SPRINT's share of pictures that pass the stretch by as a whole (`cfg_mask_prob` of its code).
PATH_DROP = 0.1


@dataclasses.dataclass(frozen=True)
class Route:
    """Which tokens pass which blocks by.

    Attributes:
      ratio: share of each picture's real tokens, rounded down to whole tokens, of key/value compression to whole r×r
        blocks of them; below 1. With 0 none does, but for path_drop.
      first, last: blocks from the one through the other are passed by, counted from 0.
      path_drop: share of pictures of which all tokens pass by.
    """

    ratio: float
    first: int
    last: int
    path_drop: float = 0.0

    @property
    def dropped(self) -> Stretch | None:
        """The blocks that the model learns to do without altogether."""
        return (self.first, self.last) if self.path_drop else None

    def kept(self, units: int) -> int:
        """How many of so many tokens, or blocks of tokens, do not pass by: at least one of one or more."""
        return units - int(np.floor(self.ratio * units))


class Tapped(NamedTuple):
    """What a block leaves.

    Attributes:
      features: [B, K, D] in the model's dtype, of the tokens that went through it.
      num_tokens: i32[B], how many of the K are real; None when all are.
      pick: [B, N, ...] of all tokens -> [B, K, ...] of these.
    """

    features: jax.Array
    num_tokens: jax.Array | None
    pick: Callable[[jax.Array], jax.Array]


def routed(model: PixArt, route: Route) -> Apply:
    """The model, whose tokens are routed where it is given ROUTE_KEYS. Where not, it is `params.apply_of`, which of a
    route that drops the path may drop it (`path_drop.may_drop`)."""
    plain = may_drop(model, route.dropped, apply_of)

    def apply(params, tokens, t, **conditions):
        if conditions.get(ROUTE_KEYS) is None:
            conditions.pop(ROUTE_KEYS, None)
            return plain(params, tokens, t, **conditions)
        return forward(model, params, tokens, t, route=route, **conditions)[0]

    return apply


def forward(
    model: PixArt,
    params: Any,
    tokens,
    t,
    *,
    positions,
    route: Route | None = None,
    route_keys=None,
    tap: int | None = None,
    text=None,
    **conditions,
) -> tuple[ModelOutput, Tapped | None]:
    """The model in stretches; arguments and prediction as those of `PixArt`, but for a ControlNet's residuals.

    Args:
      route: None, or without keys, routes nothing.
      route_keys: a PRNG key for each sample [B].
      tap: the number of a block, counted from 0, that is looked at.

    Returns:
      The prediction, and what that block leaves.
    """
    bound = model.bind({"params": params})
    cond = bound.embed_conditions(t, text=text, **conditions)
    x, tapped = bound.embed_tokens(tokens, positions), None
    routing = None
    if route is not None and route_keys is not None:
        routing = _choose(model, route, route_keys, x.shape[1], cond.num_tokens)
    before, narrow = x, cond if routing is None else dataclasses.replace(cond, num_tokens=routing.num_tokens)
    for begin, end in _stretches(model, route, tap):
        inside = routing if route is not None and route.first <= begin <= route.last else None
        if inside and route is not None and begin == route.first:
            before, x = x, inside.take(x)
        own = narrow if inside else cond
        x = _run(model, params, x, own, begin, end)
        if tap is not None and end == tap + 1:
            tapped = Tapped(x, own.num_tokens, inside.pick if inside else lambda array: array)
        if inside and route is not None and end == route.last + 1:
            x = inside.rejoin(before, x)
    return bound.predict(x, cond), tapped


def _stretches(model: PixArt, route: Route | None, tap: int | None) -> list[tuple[int, int]]:
    """(first block, the one after the last) of runs of blocks with parameters in one stack and the same tokens."""
    cuts = {first for first, _, _ in model.segments()} | {model.depth}
    if route is not None:
        cuts |= {route.first, route.last + 1}
    if tap is not None:
        cuts.add(tap + 1)
    return list(itertools.pairwise(sorted(cuts)))


def _run(model: PixArt, params, x, cond: BlockConditions, begin: int, end: int):
    """Blocks from `begin` to before `end`, of x [B, M, D]."""
    first, _, ratio = next(segment for segment in reversed(model.segments()) if segment[0] <= begin)
    block = Block(**model.block_fields(ratio))
    stack = jax.tree.map(lambda leaf: leaf[begin - first : end - first], params[f"blocks_{first}"])

    def step(x, own):
        return block.apply({"params": own}, x, None, cond)

    length = end - begin
    unroll = min(model.scan_unroll, length)
    if model.remat != "none":
        step = jax.checkpoint(step, **remat_options(model.remat, unroll=unroll, length=length))
    x, _ = jax.lax.scan(step, x, stack, unroll=unroll)
    return x


@dataclasses.dataclass(frozen=True)
class _Routing:
    """Which tokens of a batch take the stretch. A unit is a token, or where keys are compressed a block of them.

    Attributes:
      order: i32[B, U], each picture's units, those that take it first.
      rank: i32[B, U], its inverse.
      count: i32[B], how many take it.
      taken: bool[B], whether what they become is used.
      length: K, the most units of a picture that can take it.
      unit: tokens in each.
      mesh: that they lie on.
    """

    order: jax.Array
    rank: jax.Array
    count: jax.Array
    taken: jax.Array
    length: int
    unit: int
    mesh: Mesh | None

    @property
    def num_tokens(self) -> jax.Array:
        """i32[B], how many of the tokens that `pick` gives are to take it: others lie behind."""
        return self.count * self.unit

    def pick(self, array):
        """[B, U·unit, ...] -> [B, K·unit, ...]."""
        units = array.reshape(array.shape[0], -1, self.unit, *array.shape[2:])
        found = _picked(units, self.order[:, : self.length], self.rank)
        return found.reshape(array.shape[0], -1, *array.shape[2:])

    def take(self, x):
        """`pick` of the residual stream."""
        x = constrain(x, self.mesh, ROWS, WHOLE, WHOLE)
        return constrain(self.pick(x), self.mesh, ROWS, TOKENS, WHOLE)

    def rejoin(self, before, after):
        """[B, N, D]: of `after` [B, K·unit, D] the tokens that took it, of `before` [B, N, D] those that passed by."""
        after = constrain(after, self.mesh, ROWS, WHOLE, WHOLE)
        units = after.reshape(after.shape[0], -1, self.unit, after.shape[-1])
        back = _placed(units, self.order[:, : self.length], self.rank).reshape(before.shape)
        came = (self.rank < self.count[:, None]) & self.taken[:, None]
        joined = jnp.where(jnp.repeat(came, self.unit, axis=1)[..., None], back, before)
        return constrain(joined, self.mesh, ROWS, TOKENS, WHOLE)


def _choose(model: PixArt, route: Route, keys, num_tokens: int, lengths) -> _Routing:
    unit = max(model.kv_compress, default=1) ** 2
    units = num_tokens // unit
    real = jnp.full(len(keys), units, jnp.int32) if lengths is None else lengths // unit
    # By a table, so that float32 does not round otherwise than what must be known in advance.
    count = jnp.asarray(np.array([route.kept(n) for n in range(units + 1)], np.int32))[real]
    score_keys, path_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    scores = jax.vmap(lambda key: jax.random.uniform(key, (units,)))(score_keys)
    scores = jnp.where(jnp.arange(units) < real[:, None], scores, 2.0)
    takes = jnp.argsort(jnp.argsort(scores, axis=1), axis=1) < count[:, None]
    # Both kinds in the picture's order, in which memory is read best.
    rank = jnp.where(takes, jnp.cumsum(takes, 1) - 1, count[:, None] + jnp.cumsum(~takes, 1) - 1)
    taken = jnp.ones(len(keys), bool)
    if route.path_drop:
        taken = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - route.path_drop))(path_keys)
    order = jnp.argsort(rank, axis=1)
    return _Routing(order, rank, count, taken, route.kept(units), unit, model.attention.mesh)


# Taking rows and putting them back are one another's transposes: as gathers both, where the transpose that JAX knows of
# a gather is a scatter that adds, row after row.


def _gather(x, index):
    """x [B, U, ...] at index i32[B, K]: [B, K, ...]."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="promise_in_bounds"))(x, index)


def _scattered(x, rank):
    """x [B, K, ...] to its places [B, U, ...], zeros elsewhere."""
    within = rank < x.shape[1]
    found = _gather(x, jnp.where(within, rank, 0))
    return jnp.where(within.reshape(*within.shape, *(1,) * (x.ndim - 2)), found, 0)


@jax.custom_vjp
def _picked(x, index, rank):
    return _gather(x, index)


_picked.defvjp(
    lambda x, index, rank: (_gather(x, index), rank),
    lambda rank, cotangent: (_scattered(cotangent, rank), None, None),
)


@jax.custom_vjp
def _placed(x, index, rank):
    return _scattered(x, rank)


_placed.defvjp(
    lambda x, index, rank: (_scattered(x, rank), index),
    lambda index, cotangent: (_gather(cotangent, index), None, None),
)
