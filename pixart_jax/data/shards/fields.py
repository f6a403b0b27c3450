"""What the fields of a manifest may be: types, ranges, and that all are there."""

from __future__ import annotations

import dataclasses

from pixart_jax.errors import InputError

# Of which sets made before there were these say nothing.
_OPTIONAL = {"ends_crc32", "control", "align", "align_dim"}
_JSON_TYPES = {"int": (int,), "float": (int, float), "str": (str,), "int | None": (int, type(None))}
# What the numbers may be, with much room above what any set has; arithmetic on them stays within 64 bits.
_RANGES: dict[str, tuple[float, float]] = {
    "latent_channels": (1, 1 << 16),
    "downsample": (1, 1 << 10),
    "patch_size": (1, 1 << 10),
    "resolution": (0, 1 << 16),
    "text_dim": (0, 1 << 20),
    "align_dim": (0, 1 << 16),
    "max_text_tokens": (0, 1 << 20),
    "num_classes": (0, (1 << 31) - 1),
    "latent_scale": (1e-6, 1e6),
    "num_samples": (0, 1 << 48),
    "num_records": (1, 1 << 40),
    "num_bytes": (1, 1 << 56),
    "ends_crc32": (0, (1 << 32) - 1),
}


def check_ranges(described: object) -> None:
    """Raises InputError where a number that a manifest or a shard of one has lies outside; NaN lies nowhere."""
    for field, (low, high) in _RANGES.items():
        value = getattr(described, field, None)
        if value is not None and not low <= value <= high:
            bound = f"at most {high:,}" if value > high else f"at least {low}"
            raise InputError(f"{field} must be {bound}, not {str(value)[:80]}")


def checked_fields(cls: type, raw: object, what: str) -> dict:
    """The fields of a dataclass from JSON, each of its type.

    Raises:
      InputError: it is no object, a field is missing, unknown or of another type; begins with `what`.
    """
    if not isinstance(raw, dict):
        raise InputError(f"{what.removesuffix(': field')} must be an object, not {raw!r:.80}")
    names = {field.name: field.type for field in dataclasses.fields(cls)}
    if missing := sorted(names.keys() - raw.keys() - _OPTIONAL):
        raise InputError(
            f"{what} {missing[0]} is missing; encode the set again, or restore the manifest it was made with"
        )
    if unknown := sorted(raw.keys() - names.keys()):
        raise InputError(
            f"{what} {unknown[0][:80]} is unknown; remove it, or update pixart_jax if a newer version wrote it"
        )
    for name, type_name in names.items():
        if type_name in _JSON_TYPES and name in raw and not _has_type(raw[name], type_name):
            raise InputError(f"{what} {name} must be of type {type_name}, not {raw[name]!r:.80}")
    return dict(raw)


def _has_type(value: object, type_name: str) -> bool:
    return isinstance(value, _JSON_TYPES[type_name]) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    """Whether JSON's value is a number of samples, and not none."""
    return type(value) is int and 0 < value <= _RANGES["num_samples"][1]
