"""LoRAs of a folder: what is none is named, and no part of it is run."""

import os
import pathlib
import pickle

import pytest

from pixart_jax.errors import InputError
from pixart_jax.studio.models import loras_of


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_what_is_no_lora_is_named_and_never_run(tmp_path):
    folder, mark = tmp_path / "loras", tmp_path / "mark"
    folder.mkdir()
    (folder / "pickle.safetensors").write_bytes(pickle.dumps(Evil(str(mark))))
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "huge.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    (folder / "header.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "dir.safetensors").mkdir()
    (folder / "weights.bin").write_bytes(pickle.dumps(Evil(str(mark))))
    told = []
    assert loras_of(folder, None, told.append) == {}
    names = ("dir", "empty", "header", "huge", "pickle")
    assert [line.split(" is left out: ")[0] for line in told] == [f"{name}.safetensors" for name in names]
    assert "is no safetensors file, whatever its name says" in told[-1]
    assert not mark.exists()
    with pytest.raises(InputError, match=r"--loras .*: No such file"):
        loras_of(pathlib.Path(tmp_path / "none"), None, told.append)
