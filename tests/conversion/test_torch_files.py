"""PyTorch's files that are not as PyTorch writes them: read right, or refused in one line."""

import argparse
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from golden_cases import GOLDEN

from pixart_jax.conversion.arrays import open_arrays
from pixart_jax.conversion.sources import open_source
from pixart_jax.errors import InputError

NAME = "t_block.1.weight"
WHOLE = {NAME: torch.arange(600.0).reshape(20, 30), "b": torch.ones(40, dtype=torch.bfloat16)}


def saved(value, **settings):
    file = io.BytesIO()
    torch.save(value, file, **settings)
    return file.getvalue()


def rezipped(data, method=zipfile.ZIP_STORED, only="", change=lambda name, content: content):
    """A zip's records, those that end with `only` packed by another method."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content, compress_type=method if name.endswith(only) else zipfile.ZIP_STORED)
    return file.getvalue()


def resized(record, size):
    def change(name, content):
        return (content * 2)[: int(len(content) * size)] if name.endswith(record) else content

    return change


@pytest.mark.parametrize("only", ["", "data/0", "data/1", "data.pkl", "version"])
def test_a_compressed_zip_is_read_as_it_was(only, tmp_path):
    (tmp_path / "x.pth").write_bytes(rezipped(saved(WHOLE), zipfile.ZIP_DEFLATED, only))
    arrays = open_source(tmp_path / "x.pth").arrays
    for name, tensor in WHOLE.items():
        np.testing.assert_array_equal(arrays[name], tensor.float())


def test_a_compressed_checkpoint_of_the_reference(tmp_path):
    data = (GOLDEN / "sigma_plain.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(rezipped(data, zipfile.ZIP_DEFLATED))
    ours, whole = (open_source(path).arrays for path in (tmp_path / "x.pth", GOLDEN / "sigma_plain.pth"))
    assert list(ours) == list(whole)
    for name in whole:
        np.testing.assert_array_equal(ours[name], whole[name])


def shifted(data):
    """The last of its records begins where the one before does."""
    end = data.index(b"PK\x01\x02")
    places = [place for place in range(end, len(data)) if data[place : place + 4] == b"PK\x01\x02"]
    last, before = places[-1], places[-2]
    return data[: last + 42] + data[before + 42 : before + 46] + data[last + 46 :]


def twice(data):
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/DATA/0", b"\0" * 2400)
    return file.getvalue()


def zeros():
    return rezipped(saved({NAME: torch.zeros(2_000_000)}), zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    "data,message",
    [
        (lambda: rezipped(saved(WHOLE), change=resized("data/0", 0.5)), "record data/0 has 1,200 bytes, of 2,400"),
        (lambda: rezipped(saved(WHOLE), change=resized("data/1", 0.5)), "record data/1 has 40 bytes, of 80"),
        (lambda: rezipped(saved(WHOLE), change=resized("data/0", 2)), "record data/0 has 4,800 bytes, of 2,400"),
        (lambda: rezipped(saved(WHOLE), change=resized("data/0", 0)), "record data/0 has 0 bytes"),
        (
            lambda: rezipped(saved(WHOLE), zipfile.ZIP_DEFLATED, change=resized("data/1", 0.5)),
            "record data/1 has 40 bytes",
        ),
        (
            lambda: rezipped(saved(WHOLE), change=lambda name, content: None if name.endswith("/0") else content),
            "record data/0 is not there",
        ),
        (lambda: shifted(saved(WHOLE)), "is not whole|damaged"),
        (lambda: twice(saved(WHOLE)), "two of its records have one name"),
        (lambda: rezipped(saved(WHOLE), zipfile.ZIP_BZIP2), "zip compressed by method 12; unzip it"),
        (lambda: rezipped(saved(WHOLE), zipfile.ZIP_LZMA, "data/0"), "zip compressed by method 14; unzip it"),
        (zeros, "are to become 8,.* which weights do not"),
        (lambda: rezipped(saved(WHOLE), change=lambda name, content: None), "is damaged|is refused"),
        (
            lambda: rezipped(saved(WHOLE), change=lambda name, content: b"\x80\x02." if "pkl" in name else content),
            "is damaged",
        ),
        # Of the other format.
        (lambda: b"\x80\x02.", "is damaged|is refused"),
        (lambda: b"\x80\x02]", "is damaged|is refused"),
        (lambda: b"\x80\x02}q\x00X\x01\x00\x00\x00", "is damaged|is refused"),
        (lambda: pickle.dumps(5), "is damaged|is refused"),
        (lambda: saved(WHOLE, _use_new_zipfile_serialization=False)[:-20], "is damaged"),
        (lambda: saved([WHOLE]), "holds no dict of tensors"),
        (lambda: saved({}), "holds no dict of tensors"),
    ],
)
def test_a_damaged_file_is_refused(data, message, tmp_path):
    (tmp_path / "x.pth").write_bytes(data())
    with pytest.raises(InputError, match=message) as raised:
        open_source(tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(raised.value)


NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "tensor,message",
    [
        (torch.ones(2, 2, device="meta"), "is on the device meta"),
        (torch.ones(2, 2).to_sparse(), "is torch.sparse_coo"),
        (torch.ones(2, 2).to_sparse_csr(), "is torch.sparse_csr"),
        (NESTED, "is nested|x.pth is damaged"),
        (torch.ones(2, 2, dtype=torch.complex64), "is torch.complex64"),
        (torch.ones(2, 2, dtype=torch.bool), "is torch.bool"),
        (torch.ones(2, 2, dtype=torch.int64), "is torch.int64"),
        (torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8), "is torch.qint8"),
        (torch.ones(1, 2).expand(2**40, 2), "larger than the file"),
        (torch.ones(1, 2, dtype=torch.bfloat16).expand(2**40, 2), "larger than the file"),
        (torch.ones(1).as_strided((2**31, 2**20), (0, 0)), "larger than the file"),
        (3.0, "not names of tensors: t_block"),
        (np.float64(3), "not names of tensors: t_block"),
        ([torch.ones(2)], "not names of tensors: t_block"),
    ],
)
def test_tensors_without_numbers_to_read_are_refused(tensor, message, zipped, tmp_path):
    torch.save({"a": torch.ones(3), NAME: tensor}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=message) as raised:
        open_source(tmp_path / "x.pth")
    assert NAME in str(raised.value) or "damaged" in message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: torch.nn.Parameter(tensor),
        lambda tensor: tensor.clone().requires_grad_(),
        lambda tensor: torch._neg_view(-tensor),
        lambda tensor: tensor.T.contiguous().T,
        lambda tensor: torch.stack([tensor, tensor])[1],
        lambda tensor: tensor.double(),
    ],
)
def test_views_and_trained_tensors_are_read(make, zipped, tmp_path):
    tensor = WHOLE[NAME]
    torch.save({NAME: make(tensor)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(open_source(tmp_path / "x.pth").arrays[NAME], tensor)


BESIDE = {
    "epoch": np.int64(3),
    "loss": np.float32(0.1),
    "best": np.array([1.0, 2.0]),
    "random": {"numpy": np.random.RandomState(0).get_state(), "torch": torch.get_rng_state()},
    "args": argparse.Namespace(lr=1e-4),
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": np.float64(1)}]},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("old", [False, True])
def test_a_training_file_with_numpys_numbers(old, zipped, tmp_path):
    """Also as numpy 1 called its modules."""
    data = saved({"state_dict": WHOLE, **BESIDE}, _use_new_zipfile_serialization=zipped)
    core = b"cnumpy._core.multiarray\n"
    assert core in data
    if old:
        data = data.replace(core, b"cnumpy.core.multiarray\n")
        if zipped:  # Its place has changed.
            pickled = saved({"state_dict": WHOLE, **BESIDE})
            content = zipfile.ZipFile(io.BytesIO(pickled)).read("archive/data.pkl")
            content = content.replace(core, b"cnumpy.core.multiarray\n")
            data = rezipped(pickled, change=lambda name, kept: content if name.endswith("data.pkl") else kept)
    (tmp_path / "x.pth").write_bytes(data)
    source = open_source(tmp_path / "x.pth")
    np.testing.assert_array_equal(source.arrays[NAME], WHOLE[NAME])


class Run:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("value", [Run(), np.array([Run()], object), torch.nn.Linear(2, 2)])
def test_what_would_run_is_refused_with_a_cure(value, tmp_path):
    torch.save({"state_dict": WHOLE, "x": value}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"asks to run .*save its state_dict alone"):
        open_source(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.bin", "x.pt"])
def test_what_is_no_regular_file_is_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is a device or a pipe"):
        open_source(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"{name} is a device or a pipe"):
        open_arrays(tmp_path / name, [])
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(InputError, match=f"{name} is damaged: it is Git LFS's pointer to the file.*git lfs pull"):
        open_source(tmp_path / name)
