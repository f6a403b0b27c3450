"""Folders of networks as transformers writes them, opened with PyTorch: an extra, imported where it is used."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

from pixart_jax.errors import InputError
from pixart_jax.files import reason
from pixart_jax.files.typed_json import Fields, read_fields

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclasses.dataclass(frozen=True)
class TorchFolder:
    """A folder that says which architecture it holds.

    Attributes:
      config: of its `config.json`.
      architectures: as the config names them.
      sha256: hex digest of its files of weights.
    """

    path: pathlib.Path
    config: Fields
    architectures: tuple[str, ...]
    sha256: str

    @classmethod
    def open(cls, path: pathlib.Path, option: str) -> TorchFolder:
        """Raises InputError if PyTorch is not installed, or the folder holds no network."""
        try:
            import torch  # noqa: F401
            import transformers  # noqa: F401
        except ImportError as error:
            raise InputError(f"{option} {path} is run by PyTorch: pip install torch transformers") from error
        config = read_fields(path / "config.json", f"{option} names a folder as transformers' save_pretrained makes it")
        files = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
        if not files:
            raise InputError(f"{option} {path}: holds no weights (model.safetensors); copy the whole folder")
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return cls(path, config, tuple(config.sequence("architectures", str, [])), digest.hexdigest())

    @property
    def kind(self) -> str:
        return " and ".join(self.architectures) or "network that does not say what it is"

    def load(self, factory: Any) -> Any:
        """The network that transformers' class `factory` makes of the folder, on a GPU where there is one.

        Raises:
          InputError: the weights are of another network, or damaged.
        """
        import torch

        try:
            model, told = factory.from_pretrained(self.path, local_files_only=True, output_loading_info=True)
        except Exception as error:  # transformers meets folders that do not fit with some ten kinds of exceptions.
            cause = reason(error)
            raise InputError(f"{self.path} cannot be opened as {factory.__name__}: {cause}; copy it again") from error
        if lacking := sorted({*told["missing_keys"], *told.get("mismatched_keys", ())}):
            raise InputError(
                f"{self.path}: {len(lacking)} arrays of {type(model).__name__} are not among its weights, the first "
                f"{lacking[0]}; copy the whole folder"
            )
        return model.eval().to(dtype=torch.float32, device="cuda" if torch.cuda.is_available() else "cpu")

    def helper(self, factory: Any) -> Any:
        """Its tokenizer or image processor, by transformers' class; errors as of `load`."""
        try:
            return factory.from_pretrained(self.path, local_files_only=True)
        except Exception as error:  # As above.
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{self.path} lacks what {factory.__name__} reads: {first}; copy the whole folder"
            ) from error
