"""A pipeline's scheduler tells what its transformer predicts and over which noise: what is not PixArt's is refused."""

import json
import re

import diffusers
import numpy as np
import pytest
from conversion.test_sources import write_folder

from pixart_jax.conversion.describe import describe
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.pipelines import SCHEDULER
from pixart_jax.conversion.scheduler_samplers import predicting
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.errors import InputError
from tools.convert import main

BETAS = np.linspace(0.0001, 0.02, 1000)


def write_pipeline(folder, name="DPMSolverMultistepScheduler", config=SCHEDULER, **changes):
    """A pipeline of which only names and shapes matter; config None leaves the scheduler's folder out."""
    write_folder(folder / "transformer")
    index = {"_class_name": "PixArtSigmaPipeline", "scheduler": ["diffusers", name]}
    (folder / "model_index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "scheduler").mkdir()
        fields = {**config, "_class_name": name, **changes}
        (folder / "scheduler/scheduler_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    "name,config,changes",
    [
        ("DPMSolverMultistepScheduler", SCHEDULER, {}),
        ("DPMSolverMultistepScheduler", SCHEDULER, {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
        ("DPMSolverMultistepScheduler", SCHEDULER, {"flow_shift": 3.0, "beta_end": 0.019999999552965164}),
        ("DPMSolverMultistepScheduler", SCHEDULER, {"trained_betas": BETAS.astype(np.float32).tolist()}),
        ("DDPMScheduler", {}, {}),
        ("EulerDiscreteScheduler", {}, {}),
        ("HeunDiscreteScheduler", {}, {"beta_start": 0.0001, "beta_end": 0.02}),
        ("DPMSolverMultistepScheduler", None, {}),
    ],
)
def test_what_walks_along_the_same_noise_is_taken(name, config, changes, tmp_path):
    path = write_pipeline(tmp_path, name, config, **changes)
    assert describe(open_source(path)).model.depth == 3


@pytest.mark.parametrize(
    "name,config,changes,told",
    [
        ("DPMSolverMultistepScheduler", SCHEDULER, {"prediction_type": "v_prediction"}, ("v", 1.0, "dpm-solver")),
        ("DDIMScheduler", {}, {"prediction_type": "sample"}, ("x0", 1.0, "dpm-solver")),
        ("FlowMatchEulerDiscreteScheduler", {}, {"shift": 3.0}, ("flow", 3.0, "flow-euler")),
        (
            "DPMSolverMultistepScheduler",
            SCHEDULER,
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0},
            ("flow", 2.0, "flow-dpm-solver"),
        ),
    ],
)
def test_a_scheduler_says_what_its_transformer_predicts(name, config, changes, told, tmp_path):
    stored = describe(open_source(write_pipeline(tmp_path, name, config, **changes)))
    assert (stored.prediction, stored.flow_shift, stored.sampler.removesuffix("-diffusers")) == told
    assert StoredModel.from_json(stored.to_json(), "model.json") == stored
    written = predicting(SCHEDULER, stored.target)
    (tmp_path / "again").mkdir()
    again = write_pipeline(tmp_path / "again", "DPMSolverMultistepScheduler", written)
    assert describe(open_source(again)).target == stored.target
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(written)
    assert scheduler.config.use_flow_sigmas == (stored.prediction == "flow")


@pytest.mark.parametrize(
    "name,config,changes,message",
    [
        ("DPMSolverMultistepScheduler", SCHEDULER, {"prediction_type": "score"}, "prediction_type = 'score'"),
        ("DDIMScheduler", {}, {"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction'"),
        (
            "FlowMatchEulerDiscreteScheduler",
            {},
            {"use_dynamic_shifting": True},
            "use_dynamic_shifting = True, must be False",
        ),
        ("DDIMScheduler", {}, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True, must be False"),
        ("DDIMScheduler", {}, {"beta_schedule": "scaled_linear"}, "beta_schedule = 'scaled_linear', must be 'linear'"),
        ("DDIMScheduler", {}, {"beta_start": 0.00085, "beta_end": 0.012}, "beta_start = 0.00085.*; beta_end = 0.012"),
        ("DDIMScheduler", {}, {"trained_betas": (BETAS / 2).tolist()}, r"trained_betas = .*\.\.\."),
        ("DDIMScheduler", {}, {"num_train_timesteps": 4000}, "num_train_timesteps = 4000, must be 1000"),
        ("UniPCMultistepScheduler", {}, {"use_flow_sigmas": True}, "use_flow_sigmas = True"),
        ("HeunDiscreteScheduler", {}, {}, "beta_start = 0.00085, by default, must be 0.0001"),
        ("LCMScheduler", {}, {}, "beta_start = 0.00085, by default, must be 0.0001"),
        ("LCMScheduler", None, {}, "beta_start = 0.00085, by default, must be 0.0001"),
        ("TCDScheduler", {}, {}, "scheduler_config.json: a TCDScheduler is for a network of another kind"),
        ("FlowMatchLCMScheduler", None, {}, "model_index.json: a FlowMatchLCMScheduler"),
        ("DDIMScheduler", {}, {"_class_name": "TCDScheduler"}, "a TCDScheduler is"),
        ("DDPMScheduler", {}, {"predict_epsilon": False}, "predict_epsilon = False"),
        ("DDPMScheduler", {}, {"thresholding": True}, "thresholding = True, must be False"),
        ("EulerDiscreteScheduler", {}, {"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
    ],
)
def test_what_is_for_another_network_is_refused(name, config, changes, message, tmp_path):
    """Whether the pipeline is named or its transformer; --ignore-scheduler takes it, and says so."""
    path = write_pipeline(tmp_path, name, config, **changes)
    for part in (path, path / "transformer"):
        with pytest.raises(InputError, match=f"{message}.*--ignore-scheduler"):
            describe(open_source(part))
    ignored = describe(open_source(path), Hints(ignore_scheduler=True)).provenance["ignored"]
    assert re.search(message, ignored) and str(tmp_path) not in ignored


def test_nothing_is_written(tmp_path, capsys):
    path = write_pipeline(tmp_path / "pipeline", prediction_type="score")
    assert main([str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "score" in error and not (tmp_path / "out").exists()


def test_a_damaged_scheduler_is_refused(tmp_path):
    path = write_pipeline(tmp_path)
    (path / "scheduler/scheduler_config.json").write_text("{")
    with pytest.raises(InputError, match=r"scheduler_config\.json is damaged"):
        open_source(path)


@pytest.mark.parametrize("link", ["transformer", "parent", "both"])
def test_a_linked_transformer_keeps_its_family(link, tmp_path):
    """α's transformer in one place, the pipeline that names it in another: by whichever path it is reached."""
    path = write_pipeline(tmp_path / "real")
    (tmp_path / "links").mkdir()
    if link == "parent":
        (tmp_path / "links/pipeline").symlink_to(path)
        target = tmp_path / "links/pipeline"
    else:
        (path / "transformer").rename(tmp_path / "store")
        (path / "transformer").symlink_to(tmp_path / "store")
        target = path
        if link == "both":
            (tmp_path / "links/pipeline").symlink_to(path)
            target = tmp_path / "links/pipeline"
    for part in (target, target / "transformer"):
        assert describe(open_source(part)).latent_scale == 0.13025


def test_a_scheduler_without_an_index_counts(tmp_path):
    path = write_pipeline(tmp_path, prediction_type="v_prediction")
    (path / "model_index.json").unlink()
    assert describe(open_source(path / "transformer"), Hints(family="sigma")).prediction == "v"


@pytest.mark.parametrize("kind", ["PixArtSigmaPipeline", "PixArtSigmaPAGPipeline"])
def test_the_family_of_a_link_is_that_of_the_pipeline_with_it(kind, tmp_path):
    """Not of the one that it leads into, whatever that is called."""
    alpha = write_pipeline(tmp_path / "alpha")
    (alpha / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (mine / "transformer").symlink_to(alpha / "transformer")
    assert describe(open_source(mine / "transformer")).caption_cleaning == "sigma"
    (tmp_path / "lone").symlink_to(alpha / "transformer")
    assert describe(open_source(tmp_path / "lone")).caption_cleaning == "alpha"
