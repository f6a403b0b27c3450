"""What is written opens elsewhere, and comes back as it was."""

import dataclasses
import json
import shutil

import numpy as np
import peft
import pytest
import safetensors
import torch
from diffusers import PixArtTransformer2DModel
from lora_cases import LORA, arrays, base, relative_error, shapes
from safetensors.numpy import load_file, save_file

from pixart_jax.conversion.formats.lora import FewSteps, LoraLayer, LoraWeights
from pixart_jax.conversion.formats.lora_reading import FEW_STEPS, METADATA, read_lora
from pixart_jax.conversion.formats.lora_writing import write_diffusers_lora, write_peft
from pixart_jax.conversion.lora import adapter_arrays, merge
from pixart_jax.conversion.names.lora import WEIGHT_FILES
from pixart_jax.errors import InputError
from tools import convert

CASES = ["lora", "dora", "rslora", "pattern"]


def torch_output(model) -> np.ndarray:
    found = arrays()
    with torch.no_grad():
        return model(
            torch.from_numpy(found["in/latents"]),
            encoder_hidden_states=torch.from_numpy(found["in/text"]),
            timestep=torch.from_numpy(found["in/timestep"]),
            encoder_attention_mask=torch.from_numpy(found["in/mask"]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample.numpy()


@pytest.mark.parametrize("case", CASES)
def test_peft_draws_with_what_is_written(case, tmp_path):
    write_peft(tmp_path / case, read_lora(LORA / f"peft_{case}"))
    base = PixArtTransformer2DModel.from_pretrained(LORA / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / case).eval()
    assert relative_error(torch_output(model), f"out/{case}_scale1") < 2e-5


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_comes_back(case, tmp_path):
    lora = read_lora(LORA / f"peft_{case}")
    write_peft(tmp_path / "peft", lora)
    write_diffusers_lora(tmp_path / "style.safetensors", lora)
    expected = adapter_arrays(lora, shapes())
    for path in (tmp_path / "peft", tmp_path / "style.safetensors"):
        found = adapter_arrays(read_lora(path), shapes())
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name])
    # The reference's own names and shapes, exactly.
    ours, theirs = (load_file(folder / WEIGHT_FILES[0]) for folder in (tmp_path / "peft", LORA / f"peft_{case}"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_scales_of_several_kinds_are_told(tmp_path):
    layer = LoraLayer(np.ones((24, 2), np.float32), np.ones((2, 24), np.float32), 3.0)
    other = LoraLayer(np.ones((24, 5), np.float32), np.ones((5, 24), np.float32), 2.5)
    names = [f"transformer_blocks.{i}.attn2.to_q" for i in range(12)]
    layers = dict.fromkeys(names, layer) | {names[1]: other}
    write_diffusers_lora(tmp_path / "style.safetensors", LoraWeights(tmp_path, layers))
    found = read_lora(tmp_path / "style.safetensors")
    assert {name: found.scale(name) for name in names} == dict.fromkeys(names, 1.5) | {names[1]: 0.5}
    with safetensors.safe_open(tmp_path / "style.safetensors", "numpy") as opened:
        told = json.loads(opened.metadata()[METADATA])
    assert told["transformer.rank_pattern"] == {names[1]: 5} and told["transformer.lora_alpha"] == 3


def test_what_was_distilled_to_few_steps_is_known(tmp_path):
    """By the header that we write, and of what was released by its name, as nothing in it tells."""
    plain = read_lora(LORA / "repo_transformer_lora", alpha=8.0)
    assert plain.few_steps is None
    lora = dataclasses.replace(plain, few_steps=FewSteps("lcm", 2))
    write_peft(tmp_path / "peft", lora)
    write_diffusers_lora(tmp_path / "a.safetensors", lora)
    for name in ("peft", "a.safetensors"):
        assert read_lora(tmp_path / name).few_steps == ("lcm", 2)
    merged = merge(base(), [(lora, 1.0)]).stored
    assert (merged.sampler, merged.num_steps, merged.guidance) == ("lcm", 2, "none")
    released = tmp_path / "PixArt-LCM-LoRA-XL-2-1024-MS"
    shutil.copytree(LORA / "repo_transformer_lora", released)
    for path in (released, released / "pytorch_lora_weights.safetensors"):
        assert read_lora(path, alpha=8.0).few_steps == ("lcm", 4)
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {FEW_STEPS: '{"sampler": "ddim"}'})
    with pytest.raises(InputError, match="names no sampler of few steps: 'ddim'"):
        read_lora(tmp_path / "b.safetensors", alpha=8.0)


def test_a_file_that_would_not_be_read_again_is_not_written(tmp_path, capsys):
    command = [str(LORA / "peft_lora"), str(tmp_path / "style"), "--to", "diffusers-lora"]
    assert convert.main(command) == 2
    assert "style.safetensors" in capsys.readouterr().err and not [*tmp_path.iterdir()]
    assert convert.main([command[0], f"{command[1]}.safetensors", *command[2:]]) == 0
    assert read_lora(tmp_path / "style.safetensors").layers
