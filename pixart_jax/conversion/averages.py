"""A model of a run's weights averaged over a length that is chosen afterwards, from the run's snapshots."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np

from pixart_jax.checkpoints.contents import Damaged
from pixart_jax.checkpoints.snapshots import FOLDER, read_snapshot, snapshot_steps
from pixart_jax.config import build_model, load_config
from pixart_jax.conversion.finite import check_finite
from pixart_jax.conversion.formats.base import ModelWeights
from pixart_jax.conversion.runs import describe_run
from pixart_jax.conversion.stored_arrays import StoredArrays
from pixart_jax.data.shards.manifest import ENCODERS, read_manifest
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes
from pixart_jax.optimizers.power_averages import LONGEST, Fit, average_name, fit_profile

# Share of the profile that a fit may lack before it is refused: what came of it would be of another length.
MOST = 0.1
# Of the snapshots whose share is less than this of the largest, none would show in float32.
_LEAST = 1e-9


class Averaged(NamedTuple):
    """A model, and how near its average is to what was asked for.

    Attributes:
      weights: each array is computed when it is asked for.
      step: that the average ends at.
      kept: (step, σ_rel) of each average that it was fitted by.
      fit: how well.
    """

    weights: ModelWeights
    step: int
    kept: list[tuple[int, float]]
    fit: Fit


def average_of_run(workdir: pathlib.Path, sigma_rel: float, step: int | None = None) -> Averaged:
    """The average of a length, at a snapshot's step, the last one by default.

    Raises:
      InputError: there are no snapshots, or none of that step, or one is damaged or another model's; or those there are
        cannot make that length.
    """
    if not 0 < sigma_rel <= LONGEST:
        raise InputError(f"--sigma-rel {sigma_rel:g}: must lie in (0, {LONGEST:.4g}]; 0.05 to 0.1 are usual")
    config, steps = load_config(workdir), snapshot_steps(workdir)
    if not steps:
        raise InputError(
            f"{workdir / FOLDER}: no snapshot of averages; train with config.average.every=N, which writes one every N "
            "steps, and at the last"
        )
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"--step {step}: {workdir} has no snapshot of it; it has {', '.join(map(str, steps))}")
    model = build_model(config)
    shapes = parameter_shapes(model)
    kept, arrays = [], []
    for at in (at for at in steps if at <= step):
        try:
            recorded, lengths = read_snapshot(workdir, at)
        except Damaged as error:
            folder = workdir / FOLDER / str(at)
            raise InputError(f"{folder} is damaged: {error}; move it away to fit by the others") from error
        for length in sorted(lengths.values()):
            name = average_name(length)
            checksums = {path: array.checksum for path, array in recorded[name].items()}
            kept.append((at, length))
            arrays.append(StoredArrays(workdir / FOLDER / str(at) / name, shapes, checksums))
    fit = fit_profile(kept, step, sigma_rel)
    if fit.residual > MOST:
        raise InputError(
            f"--sigma-rel {sigma_rel:g}: what {workdir} kept makes that average of step {step} with an error of "
            f"{fit.residual:.1%} of its profile, and more than {MOST:.0%} would be another average; take a length "
            "nearer to config.average.sigma_rel, or train with more snapshots (config.average.every)"
        )
    least = _LEAST * np.abs(fit.coefficients).max()
    used = [(share, some) for share, some in zip(fit.coefficients, arrays, strict=True) if abs(share) > least]

    def read(path: str) -> np.ndarray:
        total = np.zeros(shapes[path], np.float64)
        for share, some in used:
            total += share * some[path].astype(np.float64)
        check_finite(total, f"{workdir}: averages of step {step}: {path}")
        return total.astype(np.float32)

    what = f"average of step {step}, sigma_rel {sigma_rel:g}, residual {fit.residual:.1e}"
    provenance = {"source": workdir.name, "format": "run", "weights": what}
    stored = describe_run(config, read_manifest(workdir / ENCODERS, may_be_empty=True), provenance)
    return Averaged(ModelWeights(stored, list(shapes), read), step, kept, fit)
