"""The autoencoder against diffusers', with random weights; tiles against diffusers' and against the whole picture."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as Reference

from pixart_jax.conversion.names.vae import convert_vae
from pixart_jax.devices.sharding import PARTITION_RULES, make_mesh, tree_shardings
from pixart_jax.errors import InputError
from pixart_jax.models import vae
from pixart_jax.models.tiles import decode_tiled, encode_tiled
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


def assert_agrees(fields, reference, image_shape, tolerance):
    """Both halves; the reference's outputs must vary over the picture, or they would prove little."""
    model, encode, decode = load(fields, reference)
    images = random_images(*image_shape)
    grid = (side // model.downsample for side in image_shape[1:3])
    latents = random_latents(image_shape[0], *grid, model.latent_channels)
    for ours, theirs in (
        *zip(encode(images), reference_encode(reference, images), strict=True),
        (decode(latents), reference_decode(reference, latents)),
    ):
        assert ours.dtype == jnp.float32
        assert theirs.std(axis=(1, 2)).min() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("fields,shape", [(SD, (1, 96, 64, 3)), (SDXL, (1, 64, 96, 3))], ids=["sd", "sdxl"])
def test_released_sizes_equal_diffusers(fields, shape):
    assert_agrees(fields, make_reference(fields), shape, 1e-4)


@pytest.mark.parametrize(
    "fields,shape",
    [
        (SMALL, (2, 10, 6, 3)),
        (SMALL | {"in_channels": 1, "out_channels": 2, "latent_channels": 16}, (1, 6, 10, 1)),
        (
            config([12], 3, norm_num_groups=3, latent_channels=3)
            | dict.fromkeys(["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"], False),
            (1, 5, 7, 3),
        ),
        (config([8, 24, 16], 1, norm_num_groups=2), (1, 16, 12, 3)),
    ],
    ids=["small", "channels", "one level, no options", "three levels"],
)
def test_other_sizes_equal_diffusers(fields, shape):
    assert_agrees(fields, make_reference(fields), shape, 5e-5)


def test_nearly_flat_activations_equal_diffusers():
    """With variances near 1e-6 the norms' epsilon shows."""
    reference = make_reference(SMALL)
    with torch.no_grad():
        for half in (reference.encoder, reference.decoder):
            half.conv_in.weight *= 1e-3
            half.conv_in.bias *= 1e-3
    assert_agrees(SMALL, reference, (1, 16, 16, 3), 5e-5)


def test_std_is_clamped():
    """Log variances beyond [-30, 20] stop there."""
    reference = make_reference(SMALL)
    with torch.no_grad():
        reference.quant_conv.bias[4:6] = torch.tensor([-200.0, 200.0])
    _, encode, _ = load(SMALL, reference)
    std = np.asarray(encode(random_images(1, 8, 8, 3))[1])
    np.testing.assert_allclose(std[..., 0], np.exp(-15), rtol=1e-6)
    np.testing.assert_allclose(std[..., 1], np.exp(10), rtol=1e-6)


@pytest.mark.parametrize("dtype,spread,tolerance", [(jnp.float32, 1.0, 1e-3), (jnp.bfloat16, 16.0, 0.02)])
def test_norm_statistics_survive_a_large_mean(dtype, spread, tolerance):
    """Mean of squares minus square of the mean would be off by percents, bfloat16 statistics by a tenth."""
    x = jnp.asarray(1000 + spread * random_latents(2, 16, 16, 8), dtype)
    layer = vae.group_norm(2, dtype, name=None)
    ours = layer.apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x)
    groups = np.asarray(x, np.float64).reshape(2, 16, 16, 2, 4)
    centred = groups - groups.mean(axis=(1, 2, 4), keepdims=True)
    exact = centred / np.sqrt(np.square(centred).mean(axis=(1, 2, 4), keepdims=True) + 1e-6)
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact.reshape(x.shape), atol=tolerance)


def test_bfloat16_runs_close_to_float32():
    reference = make_reference(SMALL)
    images, latents = random_images(1, 32, 48, 3), random_latents(1, 16, 24, 4)
    _, encode, decode = load(SMALL, reference)
    _, encode_16, decode_16 = load(SMALL, reference, jnp.bfloat16)
    for exact, rough in (*zip(encode(images), encode_16(images), strict=True), (decode(latents), decode_16(latents))):
        error = np.abs(exact - rough).mean() / np.abs(exact).mean()
        assert rough.dtype == jnp.float32
        assert error < 0.03, error


@pytest.mark.parametrize("method,shape", [("encode", (1, 32, 48, 3)), ("decode", (1, 16, 24, 4))])
def test_bfloat16_products_are_bfloat16(method, shape):
    """All convolutions but the last of each half and the 1×1 beyond it; all projections."""
    model = AutoencoderKL.from_config(SMALL, jnp.bfloat16)
    image, inputs = np.zeros((1, 2, 2, 3), np.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    program = jax.jit(functools.partial(model.apply, method=method)).lower(variables, inputs).as_text().splitlines()
    convolutions = [line for line in program if "stablehlo.convolution" in line]
    assert len(convolutions) > 10 and sum("xf32>" in line for line in convolutions) == 2
    products = [line for line in program if "stablehlo.dot_general" in line]
    assert len(products) >= 6 and not any("xf32>," in line for line in products)


@pytest.mark.parametrize("size", [(1024, 1024), (512, 2048), (2880, 576), (64, 8)])
def test_shapes_of_aspect_ratios(size):
    model = AutoencoderKL.from_config(SDXL)
    grid = (size[0] // 8, size[1] // 8)

    def shapes(shape, method):
        variables = {"params": flax.traverse_util.unflatten_dict(params, sep="/")}
        inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.tree.map(jnp.shape, jax.eval_shape(functools.partial(model.apply, method=method), variables, inputs))

    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in expected_shapes(model).items()}
    assert shapes((2, *size, 3), "encode") == ((2, *grid, 4), (2, *grid, 4))
    assert shapes((2, *grid, 4), "decode") == (2, *size, 3)


@pytest.mark.parametrize(
    "method,shape",
    [
        ("encode", (1, 8, 9, 3)),
        ("encode", (1, 9, 8, 3)),
        ("encode", (1, 8, 8, 4)),
        ("encode", (8, 8, 3)),
        ("decode", (1, 8, 8, 3)),
        ("decode", (8, 8, 4)),
    ],
)
def test_wrong_shapes_are_refused(method, shape):
    with pytest.raises(InputError, match="the autoencoder takes"):
        AutoencoderKL.from_config(SMALL).apply({"params": {}}, np.zeros(shape, np.float32), method=method)


@pytest.mark.parametrize("max_logits", [10**6, 2 * 35 * 35, 2000, 100])
def test_attention_in_parts_is_attention(monkeypatch, max_logits):
    """35 queries in 1, 1, 2 and 25 parts: the last two need padding."""
    q, k, v = random_latents(3, 2, 35, 12)
    monkeypatch.setattr(vae, "MAX_LOGITS", max_logits)
    logits = np.einsum("bnc,bmc->bnm", q, k) / np.sqrt(12)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(vae.attend_in_parts(q, k, v), weights @ v, atol=1e-6)


def test_attention_in_parts_bounds_memory(monkeypatch):
    monkeypatch.setattr(vae, "MAX_LOGITS", 2**18)
    x = jax.ShapeDtypeStruct((1, 4096, 8), jnp.float32)
    memory = jax.jit(vae.attend_in_parts).lower(x, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**18 * 4 * 8  # all the logits are 2**24


def test_partition_rules_cover_every_parameter():
    model = AutoencoderKL.from_config(SD)
    tree = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in expected_shapes(model).items()}
    shardings = tree_shardings(flax.traverse_util.unflatten_dict(tree, sep="/"), make_mesh(devices=jax.devices()[:1]))
    specs = {path: s.spec for path, s in flax.traverse_util.flatten_dict(shardings, sep="/").items()}
    assert {path for path, spec in specs.items() if "fsdp" in spec} == {p for p in specs if p.endswith("/kernel")}
    assert len(PARTITION_RULES) > 0 and len(specs) == 248


# Conversion.


@pytest.fixture(scope="module")
def small():
    """(state dict, expected shapes) of the small model."""
    return numpy_state(make_reference(SMALL)), expected_shapes(AutoencoderKL.from_config(SMALL))


def test_layouts(small):
    """Convolution kernels are [rows, columns, in, out], the attention's [in, out]."""
    state_dict, expected = small
    params = convert_vae(state_dict, expected)
    kernel = params["encoder/down_blocks_0/downsamplers_0/kernel"]
    assert kernel[0, 2, 3, 5] == state_dict["encoder.down_blocks.0.downsamplers.0.conv.weight"][5, 3, 0, 2]
    projection = params["decoder/mid_block/attentions_0/to_k/kernel"]
    assert projection[3, 5] == state_dict["decoder.mid_block.attentions.0.to_k.weight"][5, 3]
    assert {path: array.shape for path, array in params.items()} == expected
    assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("trailing", [(), (1,), (1, 1)], ids=["linear", "1-d convolution", "convolution"])
def test_old_attention_names(small, trailing):
    state_dict, expected = small
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, array in state_dict.items():
        for new_part, old_part in old_names.items():
            if f".{new_part}." in name:
                name = name.replace(f".{new_part}.", f".{old_part}.")
                array = array.reshape(array.shape + trailing) if array.ndim == 2 else array
        old[name] = array
    assert len(old.keys() - state_dict.keys()) == 16
    ours, theirs = convert_vae(old, expected), convert_vae(state_dict, expected)
    assert ours.keys() == theirs.keys()
    for path in theirs:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


ATTENTION = "encoder.mid_block.attentions.0"


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s.pop("quant_conv.bias"), "not filled: quant_conv/bias (8,)"),
        (lambda s: s.update({"mystery.weight": np.zeros(3)}), "no parameter takes: mystery.weight"),
        (
            lambda s: s.update({"encoder.down_blocks.0.resnets.1.conv1.bias": np.zeros(8)}),
            "no parameter takes: encoder/down_blocks_0/resnets_1/conv1/bias (8,)",
        ),
        (
            lambda s: s.update({f"{ATTENTION}.query.bias": np.zeros(16)}),
            f"{ATTENTION}.query.bias, because {ATTENTION}.to_q.bias has filled it",
        ),
        (
            lambda s: s.update({f"{ATTENTION}.to_q.weight": np.zeros((16, 16, 3, 3))}),
            "wrong shape: encoder/mid_block/attentions_0/to_q/kernel is (144, 16)",
        ),
        (
            lambda s: s.update({"quant_conv.weight": np.zeros((8, 8))}),
            "wrong shape: quant_conv/kernel is (8, 8), the model has (1, 1, 8, 8)",
        ),
    ],
)
def test_everything_that_does_not_fit_is_listed(small, change, message):
    state_dict, expected = small
    state_dict = dict(state_dict)
    change(state_dict)
    with pytest.raises(InputError) as error:
        convert_vae(state_dict, expected)
    assert message in str(error.value)


# Configuration.


def test_from_config_reads_every_field():
    fields = config([8, 12], 3, norm_num_groups=4, latent_channels=5, in_channels=1, out_channels=2) | {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "scaling_factor": 0.5,
        "shift_factor": None,
    }
    model = AutoencoderKL.from_config(fields, jnp.bfloat16)
    read = {name: getattr(model, name) for name in AutoencoderKL.__dataclass_fields__ if name in fields}
    assert read == {name: fields[name] for name in read} | {"block_out_channels": (8, 12)} and len(read) == 10
    assert model.dtype == jnp.bfloat16 and model.downsample == 2


def test_scaling_factors_of_the_releases():
    assert AutoencoderKL.from_config(SD).scaling_factor == 0.18215
    assert AutoencoderKL.from_config(SDXL).scaling_factor == 0.13025
    assert AutoencoderKL.from_config(SDXL).downsample == 8


@pytest.mark.parametrize(
    "name,value",
    [
        ("_class_name", "AsymmetricAutoencoderKL"),
        ("act_fn", "gelu"),
        ("block_out_channels", []),
        ("block_out_channels", [8, 18]),
        ("block_out_channels", 8),
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        ("down_block_types", ["DownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D"] * 3),
        ("in_channels", 0),
        ("latent_channels", 4.0),
        ("layers_per_block", True),
        ("norm_num_groups", -4),
        ("use_quant_conv", "yes"),
        ("shift_factor", 0.1159),
        ("latents_mean", [0.0]),
        ("scaling_factor", 0.0),
        ("scaling_factor", float("nan")),
        ("scaling_factor", None),
        ("temporal_compression", 4),
    ],
)
def test_from_config_names_what_is_wrong(name, value):
    with pytest.raises(InputError, match=f"autoencoder config: {name}="):
        AutoencoderKL.from_config(SMALL | {name: value})


@pytest.mark.parametrize("name", ["block_out_channels", "layers_per_block", "latent_channels"])
def test_from_config_names_what_is_missing(name):
    with pytest.raises(InputError, match=f"{name}=None is missing"):
        AutoencoderKL.from_config({key: value for key, value in SMALL.items() if key != name})


def test_float16_only_for_weights_that_stand_it():
    assert AutoencoderKL.from_config(SMALL | {"force_upcast": False}, jnp.float16).dtype == jnp.float16
    for fields in (SMALL, SDXL):
        with pytest.raises(InputError, match="force_upcast"):
            AutoencoderKL.from_config(fields, jnp.float16)


# Tiles.


def enlarge(latents):
    """A decoder without context, for which tiles must change nothing: twice the size, a little different each pixel."""
    return np.kron(latents, np.array([[1.0, 2.0], [3.0, 5.0]])[None, :, :, None]).astype(np.float32)


@pytest.mark.parametrize("tile_size,overlap", [(8, 0.25), (8, 0.5), (8, 0.8), (5, 0.3)])
@pytest.mark.parametrize("grid", [(8, 8), (3, 8), (9, 8), (20, 3), (17, 21), (14, 20)])
def test_tiles_of_a_local_decoder_change_nothing(grid, tile_size, overlap):
    shapes = []

    def decode(latents):
        shapes.append(latents.shape)
        return enlarge(latents)

    latents = random_latents(2, *grid, 3)
    tiled = decode_tiled(decode, latents, tile_size=tile_size, overlap=overlap)
    np.testing.assert_allclose(tiled, enlarge(latents), atol=1e-5)
    assert tiled.dtype == np.float32
    assert set(shapes) == {(1, min(tile_size, grid[0]), min(tile_size, grid[1]), 3)}


def test_seams():
    """Each tile painted in its own number: the ramps, the last one in the middle of its larger overlap."""
    numbers = iter(range(100))

    def decode(latents):
        return np.full((1, 2 * latents.shape[1], 2 * latents.shape[2], 1), next(numbers), np.float32)

    row = decode_tiled(decode, np.zeros((1, 4, 17, 1)), tile_size=8, overlap=0.25)[0, 5, :, 0]
    # Tiles begin at cells 0, 6 and 9. Ramps of 2 cells, 4 pixels: from cell 6, and from cell 10.5 between 9 and 14.
    expected = [0] * 12 + [0, 0.25, 0.5, 0.75] + [1] * 5 + [1, 1.25, 1.5, 1.75] + [2] * 9
    np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize("tile_size,overlap", [(8, 0.0), (8, 0.1), (8, 1.0), (1, 0.25), (8, -0.25)])
def test_tiles_need_an_overlap(tile_size, overlap):
    with pytest.raises(InputError, match="must overlap"):
        decode_tiled(enlarge, np.zeros((1, 16, 16, 1)), tile_size=tile_size, overlap=overlap)


@pytest.fixture(scope="module")
def tiled_models():
    """(reference with tiles of 8 cells, our encode, our decode)."""
    reference = make_reference(SMALL)
    reference.enable_tiling()
    reference.tile_latent_min_size, reference.tile_sample_min_size = 8, 16
    return reference, *load(SMALL, reference)[1:]


def away_from_last_seams_and_corners(cells, unit):
    """Where our tiles and diffusers' mean the same, of 20×20 cells in tiles of 8.

    Tiles begin at cells 0, 6 and 12; diffusers has one more of 2 cells, from 18. Ramps are cells 6-8 and 12-14.
    """
    index = np.arange(cells * unit) / unit
    ramp = ((index >= 6) & (index < 8)) | ((index >= 12) & (index < 14))
    before_last = index < 18
    return before_last[:, None] & before_last & ~(ramp[:, None] & ramp)


def test_tiled_decode_equals_diffusers(tiled_models):
    reference, _, decode = tiled_models
    latents = random_latents(2, 20, 20, 4)
    ours = decode_tiled(decode, latents, tile_size=8)
    theirs = reference_decode(reference, latents)
    same = away_from_last_seams_and_corners(20, 2)
    assert same.mean() > 0.7
    np.testing.assert_allclose(ours[:, same], theirs[:, same], atol=5e-5)
    # The tiles are not so alike that any blending would pass.
    whole = np.asarray(decode(latents))
    assert np.abs(ours - whole)[:, same].mean() > 0.01


def test_four_tiles_meet_bilinearly(tiled_models):
    _, _, decode = tiled_models
    latents = random_latents(1, 14, 14, 4)
    corner = 0
    for row, row_weight in ((0, [1, 0.75, 0.5, 0.25]), (6, [0, 0.25, 0.5, 0.75])):
        for column, column_weight in ((0, [1, 0.75, 0.5, 0.25]), (6, [0, 0.25, 0.5, 0.75])):
            tile = np.asarray(decode(latents[:, row : row + 8, column : column + 8]))
            part = tile[0, 12 - 2 * row :, 12 - 2 * column :][:4, :4]
            corner = corner + np.outer(row_weight, column_weight)[..., None] * part
    np.testing.assert_allclose(decode_tiled(decode, latents, tile_size=8)[0, 12:16, 12:16], corner, atol=1e-5)


def test_tiled_encode_equals_diffusers(tiled_models):
    """Means; the stds differ in the ramps, where diffusers blends log variances."""
    reference, encode, _ = tiled_models
    images = random_images(2, 40, 40, 3)
    mean, std = encode_tiled(encode, images, downsample=2, tile_size=8)
    same = away_from_last_seams_and_corners(20, 1)
    theirs = reference_encode(reference, images)
    np.testing.assert_allclose(mean[:, same], theirs[0][:, same], atol=5e-5)
    np.testing.assert_allclose(std[:, :6, :6], theirs[1][:, :6, :6], rtol=5e-5)
    assert std.min() > 0 and std.shape == mean.shape == (2, 20, 20, 4)
    with pytest.raises(InputError, match="whole cells"):
        encode_tiled(encode, images[:, :39], downsample=2, tile_size=8)


def test_pictures_within_a_tile_are_whole(tiled_models):
    """One at a time, and exactly what the decoder gives for each."""
    _, encode, decode = tiled_models
    latents, images = random_latents(3, 8, 8, 4), random_images(3, 16, 16, 3)
    np.testing.assert_array_equal(
        decode_tiled(decode, latents, tile_size=8), np.concatenate([decode(z[None]) for z in latents])
    )
    mean, std = encode_tiled(encode, images, downsample=2, tile_size=8)
    np.testing.assert_array_equal(mean[1:2], encode(images[1:2])[0])
    np.testing.assert_array_equal(std[1:2], encode(images[1:2])[1])


def test_moved_last_tile_is_closer_to_the_whole_than_a_cut_one(tiled_models):
    """Near the lower and right borders, over several pictures; elsewhere both are as far."""
    reference, _, decode = tiled_models
    latents = random_latents(8, 15, 15, 4)
    whole = np.asarray(decode(latents))
    border = np.add.outer(np.arange(30) >= 24, np.arange(30) >= 24)
    ours = np.abs(decode_tiled(decode, latents, tile_size=8) - whole)[:, border].mean()
    theirs = np.abs(reference_decode(reference, latents) - whole)[:, border].mean()
    assert ours < 0.9 * theirs, (ours, theirs)
