"""The PyTorch peer of a config, as seen from a process that imports no PyTorch: whether there is one, and what it is.

The peer itself is in `tools.bench.torch_*`, which only its own process imports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import math
import os
import zlib
from collections.abc import Iterator, Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.config import ConfigDict, build_model, position_base
from pixart_jax.conversion.names.diffusers import diffusers_config
from pixart_jax.models.params import parameter_shapes

from .turns import Call, in_process

# "cudnn" is "compile" with SDPA told to try cuDNN's kernel first, which PyTorch by itself does not.
VARIANTS = ("eager", "compile", "cudnn")
# Of the GPU's memory, for each of the two frameworks.
MEMORY_SHARE = 0.47


@dataclasses.dataclass(frozen=True)
class PeerSpec:
    """What a process needs to make the peer's transformer.

    Attributes:
      config: diffusers' config.json of it.
      shapes: '/'-joined path to shape of each of our parameters; `random_array` fills them.
      segments: `PixArt.segments()`.
      side: tokens along one side of the square.
      patch_size, learn_sigma: the model's.
      dtype: "float32" or "bfloat16", of matrix products.
      device: as PyTorch calls it.
    """

    config: dict[str, object]
    shapes: dict[str, tuple[int, ...]]
    segments: tuple[tuple[int, int, int], ...]
    side: int
    patch_size: int
    learn_sigma: bool
    dtype: str
    device: str


def peer_spec(config: ConfigDict) -> PeerSpec:
    """The peer of a config; see `missing_peer` for whether there is one."""
    model, side = build_model(config), position_base(config)
    return PeerSpec(
        config=diffusers_config(model, side, config.model.position_scale),
        shapes=parameter_shapes(model),
        segments=tuple(model.segments()),
        side=side,
        patch_size=model.patch_size,
        learn_sigma=model.learn_sigma,
        dtype=config.dtype,
        device=torch_device(),
    )


def torch_device() -> str:
    return "cuda" if jax.devices()[0].platform == "gpu" else "cpu"


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def share_memory() -> None:
    """Leaves a part of the GPU to PyTorch; JAX would take three quarters. To be called before JAX looks for devices."""
    if installed("torch"):
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(MEMORY_SHARE))


def missing_torch() -> str | None:
    """Why PyTorch cannot be compared with here, or None."""
    if not installed("torch"):
        return "torch"
    if jax.devices()[0].platform not in ("cpu", "gpu"):
        return f"PyTorch for {jax.devices()[0].platform}"
    return None


def missing_peer(config: ConfigDict, num_devices: int = 1) -> str | None:
    """Why diffusers' transformer cannot be compared with a config's model here, or None."""
    if missing := missing_torch():
        return missing
    if not installed("diffusers"):
        return "diffusers"
    model = build_model(config)
    for there, what in (
        (model.num_classes, "a class-conditional model in diffusers"),
        (model.kv_compress, "key/value compression in diffusers"),
        (model.qk_norm, "qk-norm in diffusers"),
        (model.adaln != "single", "full adaLN in diffusers' PixArt"),
        (num_devices > 1, "a comparison on several devices; ours runs on all"),
    ):
        if there:
            return what
    return None


def choose_variants(option: str) -> list[str]:
    """The variants of a `--peer`."""
    if option == "auto":
        return ["compile", "cudnn"] if torch_device() == "cuda" else ["eager", "compile"]
    return [] if option == "none" else option.split(",")


@contextlib.contextmanager
def open_peers(
    option: str, missing: str | None, contender: str, *arguments
) -> Iterator[tuple[dict[str, Call], dict[str, str]]]:
    """The processes of a `--peer`, by the variant's name; and where there are none, the figure that says why.

    Args:
      missing: why there can be none, or None.
      contender: "module.Class" of this package, made in each process, as the variant says, of whether it is to compile
        and the arguments.
    """
    variants = [] if missing else choose_variants(option)
    with contextlib.ExitStack() as stack:
        calls = {
            name: stack.enter_context(in_process(make_contender, contender, name, *arguments)) for name in variants
        }
        yield calls, {} if variants else {"peer_missing": missing or "--peer=none"}


def make_contender(contender: str, variant: str, *arguments):
    """Imports PyTorch, which the process that asks for it does not. The process is the contender's for good."""
    module, _, name = contender.rpartition(".")
    made = getattr(importlib.import_module(f".{module}", __package__), name)
    if variant == "cudnn":
        attention = importlib.import_module("torch.nn.attention")
        order = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
        backends = [getattr(attention.SDPBackend, backend) for backend in order]
        attention.sdpa_kernel(backends, set_priority=True).__enter__()
    return made(variant != "eager", *arguments)


def random_array(path: str, shape: Sequence[int]) -> np.ndarray:
    """f32 numbers that depend on the path alone, so that two processes have the same without sending them.

    They keep activations near 1, and none is zero: fresh models have zeros, behind which differences hide.
    """
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    array = rng.standard_normal(shape, np.float32)
    # The blocks' are stacked along the first axis.
    fan_in = math.prod(shape[1 if path.startswith("blocks") else 0 : -1])
    array *= fan_in**-0.5 if path.endswith("kernel") else 0.3
    return array


def random_params(shapes: dict[str, tuple[int, ...]], dtype=jnp.float32):
    """A tree of `random_array`s on the default device, kernels in the dtype of matrix products.

    Args:
      shapes: '/'-joined path to shape.
    """
    arrays = {
        path: jnp.asarray(random_array(path, shape), dtype if path.endswith("kernel") else jnp.float32)
        for path, shape in shapes.items()
    }
    return flax.traverse_util.unflatten_dict(arrays, sep="/")
