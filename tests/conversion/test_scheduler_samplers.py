"""A pipeline's scheduler that walks as a sampler of ours is honoured; that of a distilled model is never ignored."""

import json

import diffusers
import pytest
from conversion.test_schedulers import write_pipeline

from pixart_jax.conversion.describe import describe
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.scheduler_samplers import WALKS, drawing_of, how_to_call, scheduler_of, told_drawing
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import StoredModel, read_stored_model
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from tools import convert

BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def told(stored):
    return stored.sampler, stored.num_steps, stored.guidance


@pytest.mark.parametrize(
    "name,changes,expected",
    [
        ("LCMScheduler", {}, ("lcm-diffusers", 4, "none")),
        ("SASolverScheduler", {}, ("sa-solver-diffusers", 25, "cfg")),
        ("SASolverScheduler", {"predictor_order": 3}, ("dpm-solver", 20, "cfg")),
        ("EulerDiscreteScheduler", {}, ("euler", 20, "cfg")),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, ("dpm-solver", 20, "cfg")),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, ("dpm-solver", 20, "cfg")),
        ("HeunDiscreteScheduler", {}, ("heun", 20, "cfg")),
        ("DPMSolverMultistepScheduler", {}, ("dpm-solver", 20, "cfg")),
        ("DDIMScheduler", {}, ("dpm-solver", 20, "cfg")),
    ],
)
def test_a_pipeline_draws_as_its_scheduler_does(name, changes, expected, tmp_path):
    """The file is the one that diffusers itself writes."""
    scheduler = getattr(diffusers, name)(**BETAS | changes)
    scheduler.save_pretrained(tmp_path / "scheduler")
    config = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    path = write_pipeline(tmp_path / "pipeline", name, config)
    stored = describe(open_source(path))
    assert told(stored) == expected
    assert StoredModel.from_json(stored.to_json(), "x") == stored
    assert ("num_steps" in stored.to_json()) == (expected[1:] != (20, "cfg"))
    # Whoever leaves the scheduler out draws as with any other.
    assert told(describe(open_source(path), Hints(ignore_scheduler=True))) == ("dpm-solver", 20, "cfg")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"original_inference_steps": 100}, "original_inference_steps = 100, must be 50"),
        ({"timestep_scaling": 1.0}, "timestep_scaling = 1.0, must be 10.0"),
        ({"clip_sample": True}, "clip_sample = True, must be False"),
        ({"beta_schedule": "scaled_linear"}, "beta_schedule = 'scaled_linear', must be 'linear'"),
        ({"prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'"),
    ],
)
def test_a_consistency_model_with_another_schedule_is_refused(changes, message, tmp_path):
    path = write_pipeline(tmp_path, "LCMScheduler", BETAS | changes)
    with pytest.raises(InputError, match=f"{message}.*--ignore-scheduler"):
        describe(open_source(path))


@pytest.mark.parametrize(
    "sampler", ["lcm", "lcm-diffusers", "sa-solver", "sa-solver-diffusers", "euler", "heun", "dmd"]
)
def test_back_to_the_scheduler_that_draws_so(sampler):
    config = scheduler_of(sampler)
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    assert {key: scheduler.config[key] for key in config if key != "_class_name"} == {
        key: value for key, value in config.items() if key != "_class_name"
    }
    drawing = told_drawing(config["_class_name"], config)
    if sampler == "dmd":
        assert drawing is None and scheduler.config.clip_sample is False
    else:
        assert drawing["sampler"] == {"lcm": "lcm-diffusers", "sa-solver": "sa-solver-diffusers"}.get(sampler, sampler)
    assert scheduler_of("dpm-solver") is scheduler_of("iddpm") is None


def test_how_distilled_models_are_called():
    assert "num_inference_steps=1, timesteps=[400]" in how_to_call("dmd", "alpha")
    assert "PixArtSigmaPipeline does not draw in one step" in how_to_call("dmd", "sigma")
    assert "num_inference_steps=4, guidance_scale=0.0" in how_to_call("lcm", "sigma")
    assert how_to_call("dpm-solver", "sigma") is None
    assert drawing_of("dmd") == {"sampler": "dmd", "num_steps": 1, "guidance": "none"}
    assert set(WALKS) >= {"LCMScheduler", "SASolverScheduler"}


def test_a_consistency_model_goes_there_and_back(weights, tmp_path):
    """It draws in few steps without guidance unless it is told otherwise, and its pipeline has its scheduler."""
    assert convert.main([str(weights), str(tmp_path / "lcm"), "--sampler", "lcm-diffusers"]) == 0
    assert told(read_stored_model(tmp_path / "lcm")) == ("lcm-diffusers", 4, "none")
    pipeline = TextToImage.from_checkpoint(tmp_path / "lcm")
    manner = pipeline.manner(Request("x"))
    assert (manner.sampler, manner.num_steps, manner.guidance) == ("lcm-diffusers", 4, "none")
    guided = pipeline.manner(Request("x", guidance_scale=2.0, num_steps=6))
    assert (guided.num_steps, guided.guidance, guided.guidance_scale) == (6, "cfg", 2.0)
    ordinary = TextToImage.from_checkpoint(weights).manner(Request("x", sampler="dmd"))
    assert (ordinary.num_steps, ordinary.guidance) == (1, "none")

    assert convert.main([str(tmp_path / "lcm"), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    assert json.loads((tmp_path / "out/model_index.json").read_text())["scheduler"] == ["diffusers", "LCMScheduler"]
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(opened.scheduler, diffusers.LCMScheduler) and opened.scheduler.config.beta_end == 0.02
    assert convert.main([str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert told(read_stored_model(tmp_path / "again")) == ("lcm-diffusers", 4, "none")
