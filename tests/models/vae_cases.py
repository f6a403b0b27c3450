"""Autoencoders of diffusers with random weights, and ours that hold the same."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKL as Reference

from pixart_jax.conversion.names.vae import convert_vae
from pixart_jax.models.vae import AutoencoderKL


def config(channels, layers, **changes):
    """A config.json with the keys that every release has."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.4.2",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": layers,
        "norm_num_groups": 32,
        "sample_size": 256,
    } | changes


# sd-vae-ft-ema's config.json says nothing of the scaling factor; the SDXL VAE's does.
SD = config([128, 256, 512, 512], 2)
SDXL = config([128, 256, 512, 512], 2, sample_size=1024, scaling_factor=0.13025, force_upcast=True)
SMALL = config([8, 16], 1, norm_num_groups=4, sample_size=16)


def make_reference(fields, seed=0):
    """Diffusers' model whose activations neither die nor explode, with norms that scale and shift."""
    reference = Reference.from_config(fields).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (1.5 / parameter[0].numel()) ** 0.5, generator=generator)
            else:
                parameter.normal_(float(name.endswith("weight")), 0.25, generator=generator)
    return reference


def numpy_state(reference):
    return {name: tensor.numpy() for name, tensor in reference.state_dict().items()}


def expected_shapes(model):
    image = np.zeros((1, model.downsample, model.downsample, model.in_channels), np.float32)
    shapes = flax.traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image)["params"], sep="/")
    return {path: leaf.shape for path, leaf in shapes.items()}


def load(fields, reference, dtype=jnp.float32):
    """Our model, and its two halves as compiled functions of one argument with the reference's weights."""
    model = AutoencoderKL.from_config(fields, dtype)
    params = convert_vae(numpy_state(reference), expected_shapes(model))
    variables = {"params": jax.device_put(flax.traverse_util.unflatten_dict(params, sep="/"))}
    halves = (
        functools.partial(jax.jit(functools.partial(model.apply, method=method)), variables)
        for method in ("encode", "decode")
    )
    return model, *halves


@torch.no_grad()
def reference_encode(reference, images):
    posterior = reference.encode(to_torch(images)).latent_dist
    return to_numpy(posterior.mean), to_numpy(posterior.std)


@torch.no_grad()
def reference_decode(reference, latents):
    return to_numpy(reference.decode(to_torch(latents)).sample)


def to_torch(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def to_numpy(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


def random_images(*shape, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def random_latents(*shape, seed=2):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
