"""An array that does not fit is refused by its shape: it is not read first."""

import json
import struct

import numpy as np
import pytest
from conversion.test_diffusers import SIGMA, make_transformer
from golden_cases import GOLDEN
from models.t5_cases import TINY, reference_model

from pixart_jax.conversion.describe import describe
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.names.pixart import convert_pixart
from pixart_jax.conversion.names.t5 import convert_t5
from pixart_jax.conversion.sources import open_source
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes
from tools.convert import main

HUGE = 2**31


def with_hole(path, name, shape):
    """A safetensors file whose array of that name has another shape: zeros that take no place on disk."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    end = len(body)
    size = int(np.prod(shape)) * 4
    header.pop(name)
    kept, place = b"", 0
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        kept += body[begin:stop]
        header[key]["data_offsets"] = [place, place + stop - begin]
        place += stop - begin
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + size]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + kept)
        file.truncate(file.tell() + size)
    assert end > 0


@pytest.mark.parametrize(
    "part,name,shape",
    [
        ("transformer", "proj_out.bias", [HUGE]),
        ("transformer", "transformer_blocks.0.attn1.to_q.weight", [HUGE, 24]),
        ("transformer", "pos_embed.proj.bias", [HUGE]),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q.weight", [HUGE, 20]),
        ("t5", "shared.weight", [HUGE, 20]),
    ],
)
def test_a_huge_array_of_a_wrong_shape(part, name, shape, tmp_path, capsys, monkeypatch):
    if part == "transformer":
        make_transformer(**SIGMA).save_pretrained(tmp_path / part)
        file = tmp_path / part / "diffusion_pytorch_model.safetensors"
    else:
        reference_model(TINY).save_pretrained(tmp_path / part)
        file = tmp_path / part / "model.safetensors"
    with_hole(file, name, shape)
    read = []
    from pixart_jax.conversion import arrays

    get = arrays._Safetensors.__getitem__
    monkeypatch.setattr(arrays._Safetensors, "__getitem__", lambda self, key: read.append(key) or get(self, key))
    options = ["--family=sigma"] if part == "transformer" else []
    assert main([str(tmp_path / part), str(tmp_path / "out"), *options]) == 2
    assert "wrong shape" in capsys.readouterr().err
    assert name not in read


class Unread(dict):
    """Arrays that must not be asked for, with their shapes."""

    def __init__(self, shapes):
        super().__init__(dict.fromkeys(shapes))
        self.shapes = shapes

    def __getitem__(self, name):
        raise AssertionError(f"{name} was read")


@pytest.mark.parametrize("shape", [(HUGE, HUGE, HUGE), (2**40,), (), (7, 7, 7, 7, 7)])
def test_nothing_that_does_not_fit_is_read(shape):
    source = open_source(GOLDEN / "sigma_plain.pth")
    stored = describe(source, Hints(num_heads=2, family="sigma"))
    shapes = {name: shape for name in source.shapes if name != "pos_embed"} | {"mystery.weight": shape}
    with pytest.raises(InputError, match="wrong shape"):
        convert_pixart(Unread(shapes), stored.model.segments(), parameter_shapes(stored.model))
    tables = {"shared.weight": shape, "encoder.embed_tokens.weight": shape}
    with pytest.raises(InputError, match="wrong shape"):
        convert_t5(Unread(tables), 1, {"shared/embedding_table": (9, 8)})
