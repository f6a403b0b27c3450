"""What a file or a folder is, and what model it holds, is told from names, shapes and configurations, or refused."""

import dataclasses
import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from golden_cases import GOLDEN, build_model, load_config, load_state_dict
from models.vae_cases import config as vae_config
from models.vae_cases import make_reference

from pixart_jax.conversion.describe import FAMILIES, describe
from pixart_jax.conversion.formats.base import Hints, Source
from pixart_jax.conversion.formats.reference import PIXART, read_position_scale
from pixart_jax.conversion.names.pixart import position_table
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import ARCHITECTURE, StoredModel
from pixart_jax.errors import InputError
from pixart_jax.models.pixart import PixArt
from tools.convert import main

CASES = [
    "alpha_single_scale",
    "alpha_multi_scale",
    "sigma_plain",
    "sigma_kv_compress",
    "sigma_kv_compress_qk_norm",
    "dit",
]
CONFIG = {
    "_class_name": "PixArtTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 3,
    "cross_attention_dim": 24,
    "caption_channels": 16,
    "sample_size": 32,
}


def write_torch(path, value):
    torch.save(value, path)
    return path


def write_folder(folder, config=CONFIG, arrays=None):
    """A diffusers transformer folder of which only names and shapes matter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    arrays = arrays or {"adaln_single.linear.weight": torch.zeros(144, 24)}
    safetensors.torch.save_file(arrays, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_model_of_a_reference_checkpoint(case):
    """Against the configuration that the checkpoint was made with; class-conditional models have no captions."""
    config = load_config(case)
    stored = describe(open_source(GOLDEN / f"{case}.pth"), Hints(num_heads=config["num_heads"], family="sigma"))
    wanted = build_model(config)
    text = {"text_dim", "max_text_tokens"} if wanted.num_classes else set()
    for name in set(ARCHITECTURE) - text:
        ours, theirs = getattr(stored.model, name), getattr(wanted, name)
        assert ours == theirs or (name == "kv_compress" and not ours and set(theirs) == {1}), name
    assert stored.position_base == config["input_size"] // 2
    assert stored.position_scale == config.get("pe_interpolation", 1.0)
    assert stored.null_text == ("none" if wanted.num_classes else "stored")


def test_model_json_keeps_everything():
    stored = describe(open_source(GOLDEN / "sigma_kv_compress.pth"), Hints(num_heads=2, family="sigma"))
    assert StoredModel.from_json(stored.to_json(), "") == stored
    how = {"remat", "attention", "dtype", "scan_unroll", "residual_dtype", "parent", "name"}
    assert {field.name for field in dataclasses.fields(PixArt)} == set(ARCHITECTURE) | how


@pytest.mark.parametrize("change", [{"format_version": 2}, {"extra": 1}, {"null_text": "maybe"}, {"model": {}}, None])
def test_a_damaged_model_json_is_refused(change):
    stored = describe(open_source(GOLDEN / "sigma_plain.pth"), Hints(num_heads=2, family="sigma"))
    text = "{" if change is None else json.dumps(json.loads(stored.to_json()) | change)
    with pytest.raises(InputError, match=r"^here"):
        StoredModel.from_json(text, "here")


@pytest.mark.parametrize(
    "hints,tokens,scale",
    [
        (Hints(num_heads=2, family="alpha"), 12, FAMILIES["alpha"]["latent_scale"]),
        (Hints(num_heads=2, family="sigma"), 12, FAMILIES["sigma"]["latent_scale"]),
    ],
)
def test_the_family_decides_the_latent_scale(hints, tokens, scale):
    stored = describe(open_source(GOLDEN / "alpha_single_scale.pth"), hints)
    assert (stored.model.max_text_tokens, stored.latent_scale) == (tokens, scale)


@pytest.mark.parametrize("rows,scale", [(120, 0.18215), (300, 0.13025)])
def test_the_null_caption_tells_the_family(rows, scale, tmp_path):
    state_dict = {name: torch.from_numpy(array) for name, array in load_state_dict("sigma_plain").items()}
    state_dict["y_embedder.y_embedding"] = torch.zeros(rows, 16)
    source = open_source(write_torch(tmp_path / "x.pth", {"state_dict": state_dict}))
    assert describe(source, Hints(num_heads=2)).latent_scale == scale


@pytest.mark.parametrize("base,scale", [(16, 1.0), (16, 0.5), (32, 1.0), (64, 2.0), (64, 4.0), (128, 4.0), (9, 1.5)])
def test_position_tables(base, scale):
    """Bit for bit diffusers' own, which equal the reference's buffers; and the scale is read back from them."""
    table = position_table(base, scale, 48)
    theirs = get_2d_sincos_pos_embed(48, base, base_size=base, interpolation_scale=scale, output_type="pt")
    np.testing.assert_array_equal(table[0], theirs.numpy().astype(np.float32))
    assert read_position_scale(table, "") == scale


def test_golden_position_tables():
    for case in CASES:
        config = load_config(case)
        table = position_table(config["input_size"] // 2, config.get("pe_interpolation", 1.0), config["hidden_size"])
        np.testing.assert_array_equal(table, load_state_dict(case)["pos_embed"])


@pytest.mark.parametrize("spoil", [lambda t: t[:, :15], lambda t: t * 1.1, lambda t: t[:, ::-1], lambda t: t[:, :1]])
def test_another_position_table_is_refused(spoil):
    with pytest.raises(InputError, match=r"^here: pos_embed is not"):
        read_position_scale(spoil(position_table(4, 2.0, 24)), "here")


@pytest.mark.parametrize(
    "ema,names,taken",
    [
        (None, ("state_dict", "state_dict_ema"), "state_dict"),
        (True, ("state_dict", "state_dict_ema"), "state_dict_ema"),
        (False, ("state_dict", "state_dict_ema"), "state_dict"),
        (None, ("state_dict_ema",), "state_dict_ema"),
        (None, ("model", "ema"), "ema"),
        (False, ("model", "ema"), "model"),
    ],
)
def test_which_of_several_weights(ema, names, taken, tmp_path):
    values = {name: {"t_block.1.weight": torch.full((2, 1), float(i))} for i, name in enumerate(names)}
    source = open_source(write_torch(tmp_path / "x.pth", values | {"epoch": 3}), ema=ema)
    assert source.weights == taken
    assert source.arrays["t_block.1.weight"][0, 0] == names.index(taken)


@pytest.mark.parametrize("names", [("state_dict",), None], ids=["no such weights", "one set of weights"])
def test_averaged_weights_that_are_not_there(names, tmp_path):
    value = {"t_block.1.weight": torch.zeros(2, 1)}
    with pytest.raises(InputError, match="leave out --ema"):
        open_source(write_torch(tmp_path / "x.pth", {"state_dict": value} if names else value), ema=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_and_formats(dtype, zipped, tmp_path):
    value = {"t_block.1.weight": torch.tensor([[1 / 3, -7.0]]).to(dtype)}
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    safetensors.torch.save_file(value, tmp_path / "x.safetensors")
    for name in ("x.pth", "x.safetensors"):
        array = open_source(tmp_path / name).arrays["t_block.1.weight"]
        np.testing.assert_array_equal(array.astype(np.float32), value["t_block.1.weight"].float())


@pytest.mark.parametrize(
    "change,base,scale,micro",
    [
        ({"sample_size": 32}, 16, 1, False),
        ({"sample_size": 64}, 32, 1, False),
        ({"sample_size": 128}, 64, 2, True),
        ({"sample_size": 256}, 128, 4, False),
        ({"sample_size": 32, "interpolation_scale": 0.5}, 16, 0.5, False),
        ({"sample_size": 128, "use_additional_conditions": False, "interpolation_scale": 2}, 64, 2, False),
        ({"_class_name": "Transformer2DModel"}, 16, 1, False),
    ],
)
def test_diffusers_configurations(change, base, scale, micro, tmp_path):
    """With diffusers' own fallbacks for what older files lack."""
    stored = describe(open_source(write_folder(tmp_path / "x", CONFIG | change)), Hints(family="alpha"))
    assert (stored.position_base, stored.position_scale) == (base, scale)
    assert stored.model.micro_condition == micro and stored.null_text == "missing"


def test_a_pipeline_tells_the_family_and_the_latent_scale(tmp_path):
    write_folder(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    for path in (tmp_path, tmp_path / "transformer"):
        stored = describe(open_source(path))
        assert (stored.model.max_text_tokens, stored.latent_scale) == (300, 0.13025)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text('{"scaling_factor": 0.5}')
    assert describe(open_source(tmp_path)).latent_scale == 0.5


def test_a_lone_file_of_diffusers(tmp_path):
    """Shapes tell all but the number of heads, the resolution and the family."""
    shapes = {
        "adaln_single.linear.weight": (144, 24),
        "pos_embed.proj.weight": (24, 4, 2, 2),
        "proj_out.weight": (32, 24),
        "caption_projection.linear_1.weight": (24, 16),
        "transformer_blocks.0.scale_shift_table": (6, 24),
        "transformer_blocks.1.scale_shift_table": (6, 24),
    }
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    hints = Hints(family="alpha", num_heads=3, resolution=512, position_scale=1.0)
    stored = describe(open_source(path), hints)
    fields = {name: getattr(stored.model, name) for name in ("hidden_size", "depth", "num_heads", "learn_sigma")}
    assert fields == {"hidden_size": 24, "depth": 2, "num_heads": 3, "learn_sigma": True}
    assert stored.position_base == 32
    for missing in ("family", "num_heads", "resolution", "position_scale"):
        with pytest.raises(InputError, match=f"pass .*--{missing.replace('_', '-')}"):
            describe(open_source(path), dataclasses.replace(hints, **{missing: None}))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"_class_name": "SanaTransformer2DModel"}, "is a SanaTransformer2DModel"),
        ({"norm_type": "ada_norm_zero"}, "norm_type = 'ada_norm_zero', must be 'ada_norm_single'"),
        ({"caption_channels": None}, "caption_channels is missing"),
        ({"cross_attention_dim": 25}, "cross_attention_dim = 25, must be 24"),
        ({"num_layers": "3"}, "num_layers = '3'"),
    ],
)
def test_another_diffusers_model_is_refused(change, message, tmp_path):
    source = open_source(write_folder(tmp_path / "x", CONFIG | change))
    with pytest.raises(InputError, match=message):
        describe(source, Hints(family="alpha"))


def test_a_controlnet_is_recognised_and_refused():
    source = open_source(GOLDEN / "alpha_controlnet.pth")
    assert source.format.name == "controlnet"
    with pytest.raises(InputError, match=r"split_controlnet"):
        describe(source)


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused(zipped, tmp_path):
    value = {"state_dict": {"t_block.1.weight": Payload(tmp_path / "ran")}}
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"x.pth is refused, because it asks to run posix.mkdir"):
        open_source(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def bytes_of(case, cut):
    return (GOLDEN / f"{case}.pth").read_bytes()[:cut]


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("x.pth", lambda: bytes_of("dit", -5000), "is damaged"),
        ("x.pth", lambda: b"", "is damaged, or no PyTorch file"),
        ("x.pth", lambda: b"not a checkpoint", "x.pth is refused|is damaged"),
        ("x.safetensors", lambda: b"not a checkpoint", "is damaged, or no safetensors file"),
        ("x.safetensors", lambda: safetensors.torch.save({"a": torch.zeros(9)})[:-3], "is damaged, or no safetensors"),
        ("x.safetensors", lambda: safetensors.torch.save({"conv_in.weight": torch.zeros(9)}), "neither a PixArt nor a"),
    ],
)
def test_damaged_and_foreign_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content())
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / name)


@pytest.mark.parametrize("value", [[1, 2], {"state_dict": {"t_block.1.weight": 3}}, {}, {"state_dict": {}}])
def test_a_file_of_something_else_is_refused(value, tmp_path):
    with pytest.raises(InputError, match=r"x\.pth holds no"):
        open_source(write_torch(tmp_path / "x.pth", value))


def test_nothing_and_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        open_source(tmp_path / "x.pth")
    with pytest.raises(InputError, match="is neither a model of ours"):
        open_source(tmp_path)


def test_shards(tmp_path):
    """An index beside its files; one that is not there is named."""
    folder = write_folder(tmp_path / "x")
    names = ["a-1.safetensors", "a-2.safetensors"]
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / names[0])
    safetensors.torch.save_file({"proj_out.bias": torch.arange(3.0)}, folder / names[1])
    index = {"weight_map": {"adaln_single.linear.weight": names[0], "proj_out.bias": names[1]}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    source = open_source(folder)
    assert source.shapes == {"adaln_single.linear.weight": (144, 24), "proj_out.bias": (3,)}
    np.testing.assert_array_equal(source.arrays["proj_out.bias"], np.arange(3))
    (folder / names[1]).unlink()
    with pytest.raises(InputError, match=r"files that are not there: a-2\.safetensors"):
        open_source(folder)


def test_the_released_size():
    """28 blocks of 1152 need no hint about heads; a size that nobody released does."""
    shapes = {
        "x_embedder.proj.weight": (1152, 4, 2, 2),
        "y_embedder.y_proj.fc1.weight": (1152, 4096),
        "y_embedder.y_embedding": (300, 4096),
        "blocks.0.mlp.fc1.weight": (4608, 1152),
        "blocks.27.scale_shift_table": (6, 1152),
        "final_layer.linear.weight": (32, 1152),
    }
    hints = Hints(resolution=512, position_scale=1.0)
    assert describe(Source(GOLDEN, PIXART, {}, shapes), hints) == StoredModel(
        model=PixArt(max_text_tokens=300),
        position_base=32,
        position_scale=1.0,
        latent_scale=0.13025,
        null_text="stored",
        caption_cleaning="sigma",
        sampler="dpm-solver",
        provenance={"source": "golden", "format": "pixart"},
    )
    source = open_source(GOLDEN / "dit.pth")
    with pytest.raises(InputError, match="pass --num-heads"):
        describe(source)
    with pytest.raises(InputError, match="cannot be split between 5 heads"):
        describe(source, Hints(num_heads=5))
    del shapes["final_layer.linear.weight"]
    with pytest.raises(InputError, match=r"is no whole pixart checkpoint: final_layer\.linear\.weight is"):
        describe(Source(GOLDEN, PIXART, {}, shapes), hints)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "base_model.model.blocks.0.attn.qkv.lora_B.default.weight",
        "base_model.model.transformer_blocks.0.attn1.to_q.base_layer.weight",
        "lora_transformer_transformer_blocks_21_attn1_to_out_0.lora_down.weight",
        "lora_unet_blocks_0_attn_qkv.hada_w1_a",
        "transformer.transformer_blocks.0.attn1.to_q.lora.up.weight",
        "transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
    ],
)
def test_an_adapter_is_no_model(name, tmp_path, capsys):
    safetensors.torch.save_file({name: torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    for path in (tmp_path / "adapter_model.safetensors", tmp_path):
        assert main([str(path), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "adapter_model.safetensors is an adapter (LoRA or the like)" in error and "merge_and_unload" in error
    assert os.listdir(tmp_path) == ["adapter_model.safetensors"]


def test_a_merged_model_under_pefts_prefix(tmp_path):
    """Is what it is, not a ControlNet."""
    state = {f"base_model.model.{name}": torch.tensor(a) for name, a in load_state_dict("sigma_plain").items()}
    source = open_source(write_torch(tmp_path / "x.pth", state))
    assert source.format is PIXART


@pytest.mark.parametrize(
    "variant",
    ["{}.fp16.safetensors", "{}.non_ema.bin", "{}.fp16-00001-of-00002.safetensors", "{}-00001-of-00002.safetensors"],
)
@pytest.mark.parametrize("parts", [["transformer", "vae"], ["vae"], ["transformer"]])
def test_nothing_but_a_variant(variant, parts, tmp_path, capsys):
    """It is named; the transformer alone is advised only where that one is whole."""
    folder = tmp_path / "pipeline"
    write_folder(folder / "transformer")
    (folder / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    make_reference(vae_config([4, 4, 8, 8], 1, norm_num_groups=2)).save_pretrained(folder / "vae")
    for part in parts:
        file = folder / part / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_name(variant.format("diffusion_pytorch_model")))
    assert main([str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{folder / parts[0]} holds weights only as a variant" in error
    assert variant.format("diffusion_pytorch_model") in error
    assert ("--no-encoders" in error) == (parts == ["vae"])
