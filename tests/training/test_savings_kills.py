"""What makes training cheaper, killed and started again, ends bit-identical to what never was.

All that goes together is in one run."""

import signal

import jax
import numpy as np
import pytest
from resume_runs import finish, last_saved, load_arrays, start, wait_for
from tiny_run import read_metrics, write_config, write_data

from pixart_jax.checkpoints.snapshots import FOLDER
from pixart_jax.conversion.averages import average_of_run

STEPS = 60
COMMON = {
    **{"train.num_steps": STEPS, "train.log_every": 7, "train.checkpoint_every": 11, "sample.every": 0},
    **{"average.every": 20},
}
RUNS = {
    "routing, alignment, flow and Muon": {
        **{"model.route.ratio": 0.5, "model.route.first": 0, "model.route.last": 0},
        **{"align.weight": 0.5, "align.block": 1, "align.dim": 6, "align.width": 16},
        **{"diffusion.prediction": "flow", "diffusion.timesteps": "logit_normal", "model.learn_sigma": False},
        "optimizer.name": "muon",
    },
    "no schedule": {"optimizer.name": "schedule_free"},
    "learned weights of v": {"train.learned_weights": True, "diffusion.prediction": "v"},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_sigkill(settings, tmp_path):
    aligned = {"align": "tiny", "align_dim": 6} if "align.weight" in settings else {}
    config = write_config(tmp_path / "config.py", write_data(tmp_path / "data", **aligned))
    flags = [f"--config.{key}={value}" for key, value in (COMMON | settings).items()]
    clean, workdir = tmp_path / "clean", tmp_path / "run"
    finish(start(config, clean, *flags), clean)
    process = start(config, workdir, *flags)
    assert wait_for(lambda: last_saved(workdir) >= 11, process)
    process.kill()
    finish(process, workdir, -signal.SIGKILL)
    assert "going on from step" in finish(start(config, workdir, *flags), workdir)
    jax.tree.map(np.testing.assert_array_equal, load_arrays(workdir, STEPS), load_arrays(clean, STEPS))
    assert read_metrics(workdir) == read_metrics(clean)
    assert sorted(path.name for path in (workdir / FOLDER).iterdir()) == ["20", "40", "60"]
    ours, theirs = (average_of_run(path, 0.06).weights for path in (workdir, clean))
    for path in list(theirs.paths)[:3]:
        np.testing.assert_array_equal(ours.read(path), theirs.read(path))
