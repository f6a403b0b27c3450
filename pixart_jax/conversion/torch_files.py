"""PyTorch's files, of which nothing is run and no length is believed.

Nothing is ever unpickled beyond tensors: files are opened with `weights_only=True`. But PyTorch maps the records of a
zip as they lie there, compressed or cut short; so the zip is checked first.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import struct
import warnings
import zipfile
from typing import Any

from pixart_jax.conversion.weight_files import check_weight_file
from pixart_jax.errors import InputError

_ZIP = b"PK\x03\x04"
# Bytes of a record's own header, and where in it the lengths of name and padding stand.
_HEADER, _LENGTHS = 30, slice(26, 30)
# Weights hardly compress: what unfolds to more than that many times its bytes holds something else.
MAX_RATIO = 20


class _Nothing:
    """Takes the place of all that a pickle makes, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


def load_torch(path: pathlib.Path) -> Any:
    """What a PyTorch file holds, memory-mapped where its format allows it.

    Raises:
      InputError: it is damaged, it holds objects other than tensors, or PyTorch is not installed.
    """
    check_weight_file(path)
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path} can only be opened with PyTorch: pip install torch") from error
    try:
        with path.open("rb") as file:
            # The other format, of PyTorch before 1.6, is a plain pickle.
            zipped = file.read(len(_ZIP)) == _ZIP
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_harmless()):
            mapped = zipped and _check_zip(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks to run {name[1]}" if name else "it is no checkpoint of PyTorch's"
        raise InputError(
            f"{path} is refused, because {what}; only files of plain tensors are loaded: where you trust it, load it "
            "with PyTorch and save its state_dict alone"
        ) from error
    except MemoryError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    # A damaged pickle makes PyTorch raise almost anything.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} is damaged, or no PyTorch file: {reason}; download it again") from error


def _harmless() -> list[Any]:
    """What training files hold beside tensors: DiT's command line; numpy's numbers and arrays, which nobody needs, so
    that none is made."""
    modules = [f"numpy.{core}.multiarray" for core in ("core", "_core")]
    names = ["numpy.dtype", "numpy.ndarray"]
    names += [f"{module}.{name}" for module in modules for name in ("scalar", "_reconstruct")]
    return [argparse.Namespace, *((_Nothing, name) for name in names)]


def _check_zip(path: pathlib.Path) -> bool:
    """Whether all records of a checkpoint's zip lie in it as they are, and so can be mapped.

    Raises:
      InputError: a record is not there, not whole, or longer or shorter than its tensors.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        records = {info.filename: info for info in archive.infolist()}
        # PyTorch looks names up without their case.
        if len({name.lower() for name in records}) < len(archive.infolist()):
            raise InputError(f"{path} is damaged: two of its records have one name; download it again")
        if packed := {info.compress_type for info in records.values()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise InputError(
                f"{path} is a zip compressed by method {packed.pop()}; unzip it, and zip it with zip -0 -r"
            )
        _check_extents(path, file, archive)
        folder = next(iter(records)).split("/")[0]
        for key, (dtype, count) in _read_storages(archive.open(f"{folder}/data.pkl")).items():
            wanted, record = _itemsize(dtype) * count, records.get(f"{folder}/data/{key}")
            if record is None or record.file_size != wanted:
                found = "is not there" if record is None else f"has {record.file_size:,} bytes"
                raise InputError(
                    f"{path} is damaged: its record data/{key} {found}, of {wanted:,} bytes of tensors; download it "
                    "again"
                )
    return all(info.compress_type == zipfile.ZIP_STORED for info in records.values())


def _check_extents(path: pathlib.Path, file: Any, archive: zipfile.ZipFile) -> None:
    """Raises InputError unless each record lies within the file, before the next one, with the length it says."""
    records = sorted(archive.infolist(), key=lambda info: info.header_offset)
    ends = [info.header_offset for info in records[1:]] + [archive.start_dir]
    unfolded, folded = (sum(getattr(info, size) for info in records) for size in ("file_size", "compress_size"))
    if unfolded > MAX_RATIO * folded + 2**20:
        raise InputError(
            f"{path} is refused: its {folded:,} bytes are to become {unfolded:,}, which weights do not; if they are "
            "weights, unzip it, and zip it with zip -0 -r"
        )
    for info, end in zip(records, ends, strict=True):
        file.seek(info.header_offset)
        header = file.read(_HEADER)
        whole = header.startswith(_ZIP) and len(header) == _HEADER and not info.flag_bits & 1
        if whole:
            start = info.header_offset + _HEADER + sum(struct.unpack("<HH", header[_LENGTHS]))
            stored = info.compress_type == zipfile.ZIP_STORED
            whole = start + info.compress_size <= end and (not stored or info.compress_size == info.file_size)
        if not whole:
            raise InputError(f"{path} is damaged: its record {info.filename} is not whole; download it again")


def _itemsize(storage: str) -> int:
    """Bytes of an element of what PyTorch calls FloatStorage and so on."""
    import torch

    kind = getattr(torch, storage, None)
    if kind is None:
        raise pickle.UnpicklingError(f"unknown {storage}")
    return 1 if kind is torch.UntypedStorage else kind.dtype.itemsize


def _read_storages(pickled: Any) -> dict[str, tuple[str, int]]:
    """Key of each record that a pickle refers to, to what its elements are and how many."""
    reader = _StorageReader(pickled)
    reader.load()
    return reader.storages


# Not the faster one in C, which takes memory for as many objects as a pickle says it will make.
class _StorageReader(pickle._Unpickler):
    """Reads a pickle without making any of its objects."""

    def __init__(self, file: Any):
        super().__init__(file)
        self.storages: dict[str, tuple[str, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        return name if module in ("torch", "torch.storage") and name.endswith("Storage") else _Nothing

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(count, int) or count < 0:
            raise pickle.UnpicklingError(f"unknown reference {pid}")
        known = self.storages.setdefault(str(key), (str(storage), count))
        if known != (str(storage), count):
            raise pickle.UnpicklingError(f"the record data/{key} is to have two lengths")
        return _Nothing()
