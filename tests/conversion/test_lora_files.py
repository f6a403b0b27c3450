"""Adapters of every format draw what the reference draws with them; what is not told, or does not fit, is refused."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from lora_cases import (
    ALPHA,
    LORA,
    arrays,
    base,
    base_params,
    inputs,
    params_of,
    program,
    relative_error,
    shapes,
    to_nchw,
    trained_half,
)

from pixart_jax.adapters.lora import Lora
from pixart_jax.conversion.formats.lora_reading import read_lora, read_loras, split_scale
from pixart_jax.conversion.lora import adapter_arrays, merge
from pixart_jax.errors import InputError
from pixart_jax.generation.adaptation import Adaptation, adapted
from pixart_jax.generation.parts import as_it_is
from pixart_jax.models.params import apply_of

# File, case, and the alpha of those that do not tell it.
FILES = [
    ("peft_lora", "lora", None),
    ("diffusers_adapter", "lora", None),
    ("diffusers_pipeline", "lora", None),
    ("diffusers_pipeline_nometa", "lora", ALPHA),
    ("repo_transformer_lora", "lora", ALPHA),
    ("kohya/lora_kohya.safetensors", "lora", None),
    ("peft_dora", "dora", None),
    ("peft_rslora", "rslora", None),
    ("peft_pattern", "pattern", None),
]
KERNELS = {
    "transformer_blocks.1.attn1.to_q.weight": lambda p: p["blocks_0"]["attn"]["qkv"]["kernel"][1, :, :24].T,
    "transformer_blocks.0.ff.net.2.weight": lambda p: p["blocks_0"]["mlp"]["fc2"]["kernel"][0].T,
    "pos_embed.proj.weight": lambda p: p["x_embedder"]["kernel"].reshape(2, 2, 4, 24).transpose(3, 2, 0, 1),
}


@pytest.mark.parametrize(("file", "case", "alpha"), FILES)
def test_every_format_draws_what_the_reference_draws(file, case, alpha):
    lora = read_lora(LORA / file, alpha=alpha)
    for scale, name in ((1, "scale1"), (0.5, "scale05"), (0, "scale0")):
        output = to_nchw(program()(trained_half(lora, scale), base_params()))
        assert relative_error(output, f"out/{case}_{name}") < 2e-5


@pytest.mark.parametrize("case", ["lora", "dora", "rslora", "pattern"])
def test_merged_weights_are_the_references(case):
    weights = merge(base(), [(read_lora(LORA / f"peft_{case}"), 1.0)])
    params = params_of(weights)
    for name, kernel in KERNELS.items():
        np.testing.assert_allclose(kernel(params), arrays()[f"merged/{case}/{name}"], atol=2e-6)
    tokens, t, conditions = inputs()
    output = to_nchw(apply_of(weights.stored.model)(params, tokens, t, **conditions))
    assert relative_error(output, f"out/{case}_merged") < 2e-5


def test_several_merged_are_what_they_draw():
    """DoRA's lengths are of the base and one adapter, whatever else is laid over it."""
    loras = [
        (read_lora(LORA / f"peft_{case}"), scale) for case, scale in (("lora", 0.5), ("dora", 0.7), ("rslora", 1.0))
    ]
    model = apply_of(base().stored.model)
    laid = [Adaptation(Lora, lambda pair=pair: trained_half(*pair)) for pair in loras]
    over, weights = adapted(as_it_is, base_params, laid)
    tokens, t, conditions = inputs()
    drawn = to_nchw(over(model)(weights(), tokens, t, **conditions))
    merged = to_nchw(model(params_of(merge(base(), loras)), tokens, t, **conditions))
    np.testing.assert_allclose(drawn, merged, atol=2e-5 * np.abs(merged).max())
    assert relative_error(drawn, "out/dora_scale1") > 0.01


def test_a_file_that_does_not_say_is_read_as_the_user_says():
    as_rank = read_lora(LORA / "diffusers_pipeline_nometa", alpha=4.0)
    output = to_nchw(program()(trained_half(as_rank), base_params()))
    assert relative_error(output, "out/lora_nometa_scale1") < 2e-5


def test_a_change_of_scale_compiles_nothing_anew():
    lora = read_lora(LORA / "peft_rslora")
    program()(trained_half(lora), base_params())
    size = program()._cache_size()
    program()(trained_half(lora, 0.3), base_params())
    assert program()._cache_size() == size


def stored(file="peft_lora/adapter_model.safetensors"):
    return safetensors.numpy.load_file(LORA / file)


def written(folder, found, **config):
    """A folder of PEFT's with these arrays, and its configuration changed."""
    folder.mkdir(exist_ok=True)
    fields = json.loads((LORA / "peft_lora" / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    safetensors.numpy.save_file(found, folder / "adapter_model.safetensors")
    return folder


def renamed(rename):
    return {rename(name): array for name, array in stored().items()}


OLD = "base_model.model.transformer_blocks.0.attn1."


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("lora_A", "lora.down").replace("lora_B", "lora.up").removeprefix("base_model.model."),
        lambda name: (
            name.replace("lora_A", "lora_down").replace("lora_B", "lora_up").replace("base_model.model.", "unet.")
        ),
        lambda name: name.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"),
        lambda name: (
            "unet."
            + name.removeprefix("base_model.model.")
            .replace("to_out.0.lora", "to_out_lora")
            .replace("to_q.lora", "to_q_lora")
            .replace("to_k.lora", "to_k_lora")
            .replace("to_v.lora", "to_v_lora")
            .replace("attn1.", "attn1.processor.")
            .replace("attn2.", "attn2.processor.")
            .replace("lora_A", "lora.down" if "attn" not in name else "lora_A")
            .replace("lora_B", "lora.up" if "attn" not in name else "lora_B")
            .replace("_lora_A", "_lora.down")
            .replace("_lora_B", "_lora.up")
        ),
    ],
    ids=["dots", "underscores", "adapter's name", "processors"],
)
def test_other_names_are_the_same_arrays(rename, tmp_path):
    file = tmp_path / "style.safetensors"
    safetensors.numpy.save_file(renamed(rename), file)
    expected = adapter_arrays(read_lora(LORA / "peft_lora"), shapes())
    found = adapter_arrays(read_lora(file, alpha=ALPHA), shapes())
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path])


def test_the_copy_of_the_references_scripts_has_its_scale_beside_it(tmp_path):
    shutil.copy(LORA / "peft_lora" / "adapter_config.json", tmp_path)
    shutil.copy(LORA / "repo_transformer_lora" / "pytorch_lora_weights.safetensors", tmp_path)
    assert {layer.alpha for layer in read_lora(tmp_path).layers.values()} == {8.0}


def test_integer_alphas_and_dora_of_kohya(tmp_path):
    found = {}
    for name, array in stored("peft_dora/adapter_model.safetensors").items():
        layer, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
        kind = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight", "magnitude_vector": "dora_scale"}[kind]
        flat = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{flat}.{kind}"] = array.reshape(len(array), 1) if kind == "dora_scale" and array.ndim == 1 else array
        found[f"{flat}.alpha"] = np.array(6)
    safetensors.numpy.save_file(found, tmp_path / "dora.safetensors")
    expected = adapter_arrays(read_lora(LORA / "peft_dora"), shapes())
    for path, array in adapter_arrays(read_lora(tmp_path / "dora.safetensors"), shapes()).items():
        np.testing.assert_array_equal(array, expected[path])


def test_what_is_not_told_is_asked_for():
    for file in ("diffusers_pipeline_nometa", "repo_transformer_lora"):
        with pytest.raises(InputError, match=r"nothing tells the alpha of .* pass --alpha"):
            read_lora(LORA / file)
    with pytest.raises(InputError, match=r"--alpha 8: nothing heeds it"):
        read_loras([str(LORA / "peft_lora")], 8.0)
    with pytest.raises(InputError, match="positive"):
        read_lora(LORA / "repo_transformer_lora", alpha=float("nan"))


def test_unknown_arrays_are_all_listed(tmp_path):
    found = stored() | {"base_model.model.proj_in.lora_A.weight": np.zeros((4, 4), np.float32)}
    found["text_encoder.layers.0.q.lora_A.weight"] = np.zeros((4, 4), np.float32)
    with pytest.raises(InputError, match=r"(?s)no linear layer of a PixArt.*proj_in\.lora_A.*text_encoder"):
        read_lora(written(tmp_path / "unknown", found))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 3}, r"of rank 4, and 3 by its configuration"),
        ({"peft_type": "LOHA"}, r"of the kind LOHA"),
        ({"lora_alpha": None}, r"lora_alpha is null"),
        ({"use_dora": True}, r"lacks DoRA's magnitudes"),
        ({"alpha_pattern": {"(": 3}}, r"no regular expression"),
        ({"init_lora_weights": "pissa_niter_4"}, r"changes the base's weights too"),
    ],
)
def test_a_configuration_that_contradicts_the_arrays_is_refused(config, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_lora(written(tmp_path / "odd", stored(), **config))


def test_damaged_arrays_are_refused(tmp_path):
    name = "base_model.model.proj_out.lora_A.weight"
    broken = stored() | {name: np.full_like(stored()[name], np.nan)}
    with pytest.raises(InputError, match=r"proj_out.*NaN"):
        read_lora(written(tmp_path / "nan", broken))
    half = {key: array for key, array in stored().items() if key != name}
    with pytest.raises(InputError, match=r"proj_out has no A"):
        read_lora(written(tmp_path / "half", half))
    twice = stored() | {name.replace("lora_A", "lora_down"): stored()[name]}
    with pytest.raises(InputError, match="are the same array"):
        read_lora(written(tmp_path / "twice", twice))


def test_an_adapter_of_another_model_is_refused_with_both_shapes(tmp_path):
    name = "base_model.model.proj_out.lora_B.weight"
    found = stored() | {name: np.zeros((16, 4), np.float32)}
    found |= {k.replace("blocks.2", "blocks.7"): array for k, array in stored().items() if "blocks.2.ff.net.2" in k}
    lora = read_lora(written(tmp_path / "other", found))
    expected = r"(?s)proj_out: the adapter's is \(16, 24\), the model has \(32, 24\).*blocks\.7\.ff.*no such layer"
    for use in (lambda: adapter_arrays(lora, shapes()), lambda: merge(base(), [(lora, 1.0)])):
        with pytest.raises(InputError, match=expected):
            use()


def test_scales_of_options(tmp_path):
    file = tmp_path / "a:1"
    file.write_text("")
    assert split_scale(f"{tmp_path}/b.safetensors:0.5") == (tmp_path / "b.safetensors", 0.5)
    assert split_scale(str(file)) == (file, 1.0)
    assert split_scale("style") == (split_scale("style:1")[0], 1.0)
    for slip in ("inf", "nan", "1e300"):
        with pytest.raises(InputError, match=f"style:{slip}: the scale of an adapter must be a finite number"):
            split_scale(f"style:{slip}")


def test_an_alpha_without_an_adapter_is_refused():
    with pytest.raises(InputError, match="--alpha 8: nothing heeds it, as there is no adapter"):
        read_loras([], 8.0)


def test_nothing_infinite_is_merged():
    path = "blocks_0/mlp/fc2/kernel"
    merged = merge(base(), [(read_lora(LORA / "peft_lora"), 1e39)])
    with pytest.raises(InputError, match=rf"{path} is too large for float32 with .*peft_lora:1e\+39 in it"):
        merged.read(path)
