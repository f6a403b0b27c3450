"""Over which devices pictures are drawn: pictures and the two branches of guidance over "data", and the tokens of one
picture over "context", by the rules that training divides them by (`devices.sharding`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from pixart_jax.devices.sharding import PER_TOKEN, ROWS, TOKENS, MeshSpec, fitting_sharding, make_mesh, row_shards
from pixart_jax.errors import InputError
from pixart_jax.models.pixart import PixArt

_FORM = 'must be such as "context=4" or "data=2,context=4"'
# Axes of a mesh that one can draw over.
_AXES = ("data", "context")


def parse_mesh(text: str) -> MeshSpec:
    """ "data=2,context=4", also one of the two; without "data" it is all that "context" leaves.

    Raises:
      InputError: another form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        # isdecimal takes digits of other scripts too, as int does.
        if name not in _AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(f"mesh {text!r:.80}: {_FORM}")
        sizes[name] = int(size)
    return MeshSpec(**sizes)


def drawing_mesh(spec: MeshSpec, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh over all these devices; raises as `check_devices`."""
    check_devices(spec, len(devices))
    return make_mesh(spec, devices)


def check_devices(spec: MeshSpec, count: int) -> None:
    """Raises InputError unless it is a spec, and so many devices can be laid out so, by axes that pictures are divided
    over."""
    if not isinstance(spec, MeshSpec):
        raise InputError(f"mesh = {spec!r:.80}: must be a MeshSpec, such as MeshSpec(context=4); parse_mesh makes one")
    for name, size in dataclasses.asdict(spec).items():
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and (name, size) != ("data", -1)):
            raise InputError(f"mesh: {name} = {size!r:.80} must be a number of devices, at least 1")
    if spec.fsdp != 1 or spec.tensor != 1:
        raise InputError(f"mesh: pictures are drawn over {' and '.join(_AXES)} alone; leave out fsdp and tensor")
    fixed, known = spec.context * max(spec.data, 1), f"context={spec.context}"
    known = known if spec.data == -1 else f"data={spec.data},{known}"
    if count % fixed or (spec.data != -1 and fixed != count):
        raise InputError(
            f"mesh {known}: takes {fixed} devices, and here are {count}; the product must be that number, or divide it "
            "where data is left out"
        )


def check_tokens(context: int, model: PixArt, size: int, num_tokens: int) -> None:
    """Raises InputError unless each device along "context" has as many of a picture's tokens, in whole blocks of those
    that are compressed to one key.

    Args:
      context: devices along that axis.
      size: pixels along a side of the square that pictures are padded to.
      num_tokens: of that square.
    """
    ratio = max(model.kv_compress, default=1)
    units = num_tokens // ratio**2
    if units % context:
        of = "tokens" if ratio == 1 else f"blocks of {ratio}x{ratio} tokens"
        raise InputError(
            f"mesh context={context}: does not divide the {units} {of} of {size} px evenly; take "
            f"{math.gcd(units, context)}, or another size"
        )


def pictures_at_once(batch_size: int, count: int, mesh: Mesh, branches: int) -> int:
    """How many of `count` pictures are drawn at a time: as wished, but at least one for each share of a batch where
    there are as many, and so many that the branches of all are divided evenly.

    Args:
      branches: of guidance, 2, or 1 without.
    """
    shares = row_shards(mesh)
    unit = shares // math.gcd(shares, branches)
    return -(-min(max(batch_size, shares), count) // unit) * unit


def places(mesh: Mesh, batch: Sequence[Any]) -> Any:
    """Shardings of a batch that `samplers.program.sample_in_batches` makes: noise and what has one row for each token
    lie as `kept` leaves them, and all else, of leading axis B, over "data" alone."""

    def of(path, array):
        is_noise, name = path[0].idx == 0, getattr(path[-1], "key", None)
        dims = (ROWS, TOKENS) if is_noise or name in PER_TOKEN else (ROWS,)
        return fitting_sharding(mesh, array.shape, *dims)

    return jax.tree_util.tree_map_with_path(of, batch)


def place(mesh: Mesh, batch: Sequence[Any]) -> Any:
    """Such a batch on the devices."""
    return jax.device_put(batch, places(mesh, batch))


def kept(mesh: Mesh) -> Callable[[Any], Any]:
    """Inside a program: where what a step hands to the next lies, arrays [B or 2B, N, ...] and scalars. It is the same
    after every step, so that all steps are one program."""
    if mesh.size == 1:
        return lambda tree: tree

    def lie(array):
        if not array.ndim:
            return array
        return jax.lax.with_sharding_constraint(array, fitting_sharding(mesh, array.shape, ROWS, TOKENS))

    return lambda tree: jax.tree.map(lie, tree)
