"""numpy's files from outside: their headers are compared with their bytes before memory is taken."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from pixart_jax.conversion.transfer import read_null_text
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.errors import InputError
from pixart_jax.files.arrays import read_npy, read_npz
from pixart_jax.models.linear_autoencoder import LinearAutoencoder


def npy(array, **settings):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **settings)
    return file.getvalue()


def with_header(text, data=b"\0" * 64):
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def described(shape, dtype="<f4"):
    return with_header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(6, dtype=">f8"),
        np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        np.int64(7),
        np.zeros((0, 3)),
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_come_back(array, version, tmp_path):
    (tmp_path / "x.npy").write_bytes(npy(array, version=version))
    np.savez_compressed(tmp_path / "x.npz", one=array, two=array)
    read = [read_npy(tmp_path / "x.npy", "x", "y", 1 << 20)]
    read += read_npz(tmp_path / "x.npz", ("one", "two"), "x", "y", 1 << 20).values()
    for found in read:
        np.testing.assert_array_equal(found, array)
        assert found.dtype == np.asarray(array).dtype.newbyteorder("=") and found.flags.writeable


DAMAGED = {
    "cut": lambda: npy(np.ones(9))[:-1],
    "longer": lambda: npy(np.ones(9)) + b"\0",
    "huge": lambda: described((2**40, 4096)),
    "negative": lambda: described((-16,)),
    "overflow": lambda: described((2**62, 2**62)),
    "tokens": lambda: with_header("{'descr': '<f4', 'shape': ("),
    "unclosed": lambda: with_header('{\'descr\': """<f4'),
    "code": lambda: with_header("__import__('os').mkdir('ran')"),
    "deep": lambda: with_header("(" * 100),
    "not a header": lambda: with_header("5"),
    "version": lambda: b"\x93NUMPY\x07\x00" + b"\0" * 100,
    "empty": lambda: b"",
    "magic": lambda: b"\x93NUM",
    "objects": lambda: npy(np.array([{}], object), allow_pickle=True),
    "pickle": lambda: pickle.dumps(np.ones(3)),
    "complex": lambda: npy(np.ones((3, 4), complex)),
    "boolean": lambda: npy(np.ones((3, 4), bool)),
    "text": lambda: npy(np.array(["a"])),
    "records": lambda: npy(np.zeros(3, [("a", "f4")])),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_array_of_numbers_is_refused(name, tmp_path):
    (tmp_path / "x.npy").write_bytes(DAMAGED[name]())
    with pytest.raises(InputError, match=r"x\.npy: not that, or damaged: .*; copy it"):
        read_npy(tmp_path / "x.npy", "that", "copy it", 1 << 20)
    with pytest.raises(InputError, match=r"x\.npy: not features of the empty caption"):
        read_null_text(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", DAMAGED[name]())
    with pytest.raises(InputError, match=r"x\.npz: not that, or damaged: .*; copy it"):
        read_npz(tmp_path / "x.npz", ("a",), "that", "copy it", 1 << 20)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (1, 1, 3, 4), ()])
def test_a_null_caption_of_another_shape_is_refused(shape, tmp_path):
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))
    with pytest.raises(InputError, match="not features of the empty caption"):
        read_null_text(tmp_path / "x.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_null_caption_that_is_not_finite_is_refused(value, tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 4), value))
    with pytest.raises(InputError, match=r"x\.npy: 12 of 12 numbers are NaN or infinite as float32"):
        read_null_text(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "value,message",
    [
        (lambda torch: torch.ones(3, 4, dtype=torch.complex64), "is torch.complex64"),
        (lambda torch: torch.ones(3, 4, dtype=torch.bool), "is torch.bool"),
        (lambda torch: {"uncond_prompt_embeds": torch.ones(3, 4, dtype=torch.int32)}, "is torch.int32"),
        (lambda torch: torch.ones(3, 4, device="meta"), "on the device meta"),
        (lambda torch: torch.ones(3, 4).to_sparse(), "is torch.sparse"),
        (lambda torch: torch.ones(1, 4).expand(2**40, 4), "larger than the file"),
        (lambda torch: {"other": torch.ones(3, 4)}, "holds neither a tensor nor"),
        (lambda torch: 3, "holds neither a tensor nor"),
    ],
)
def test_a_null_caption_of_pytorchs_that_is_no_floats_is_refused(value, message, tmp_path):
    import torch

    torch.save(value(torch), tmp_path / "x.pth")
    with pytest.raises(InputError, match=message):
        read_null_text(tmp_path / "x.pth")


def test_a_null_caption_that_is_a_trained_parameter(tmp_path):
    import torch

    torch.save(
        {"uncond_prompt_embeds": torch.nn.Parameter(torch.ones(1, 3, 4, dtype=torch.bfloat16))}, tmp_path / "x.pth"
    )
    np.testing.assert_array_equal(read_null_text(tmp_path / "x.pth"), np.ones((3, 4), np.float32))


def bomb(path, names, size):
    """A small file that unfolds to so many bytes for each name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<f4", "fortran_order": False, "shape": (size // 4,)}
                )
                for _ in range(size >> 20):
                    member.write(bytes(1 << 20))


@pytest.mark.parametrize("load", ["linear", "words", "npz"])
def test_a_bomb_is_refused_before_it_unfolds(load, tmp_path):
    bomb(tmp_path / "word_embeddings.npz", ["embedding", "max_tokens"], 160 << 20)
    bomb(tmp_path / "x.npz", ["mean", "basis", "channel_scale", "latent_scale", "block"], 16 << 20)
    with pytest.raises(InputError, match=r"unfold to [\d,]+ bytes, where at most"):
        if load == "linear":
            LinearAutoencoder.load(tmp_path / "x.npz")
        elif load == "npz":
            read_npz(tmp_path / "x.npz", ["basis"], "x", "y", 1 << 20)
        else:
            WordEncoder.train(["red square"], dim=8, max_tokens=5).tokenizer.save(str(tmp_path / "tokenizer.json"))
            WordEncoder.load(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_only_regular_files_of_a_bounded_size_are_read(kind, tmp_path):
    path = tmp_path / "x.npz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    for read in (lambda: read_npy(path, "x", "y", 1 << 20), lambda: read_npz(path, ("a",), "x", "y", 1 << 20)):
        with pytest.raises(InputError, match=r"x\.npz"):
            read()
