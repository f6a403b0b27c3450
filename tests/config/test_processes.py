"""What no process has, or what would draw it wrongly, is refused before anything is trained."""

import pytest

from pixart_jax.config import check_config, default_config, override, target_of
from pixart_jax.config.processes import timesteps_of
from pixart_jax.errors import InputError

FLOW = {"diffusion.prediction": "flow", "model.learn_sigma": False}


def config_of(settings):
    config = default_config()
    config.data.source = "synthetic"
    for key, value in settings.items():
        override(config, f"--config.{key}={value}")
    return config


def test_flow_is_shifted_for_its_resolution():
    config = config_of(FLOW | {"diffusion.shift": 0.0, "model.resolution": 1024, "sample.sampler": "flow-heun"})
    check_config(config)
    assert target_of(config) == ("flow", 4.0, False) and timesteps_of(config).shift == 4
    assert target_of(default_config()) == ("eps", 1.0, True)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"diffusion.prediction": "flow"}, "model.learn_sigma = True: rectified flow has no variance"),
        (FLOW | {"sample.sampler": "iddpm"}, "sample.sampler = 'iddpm'"),
        (
            {"sample.sampler": "flow-euler"},
            "cannot draw from .*prediction='eps' .*; set one of dpm-solver",
        ),
        ({"diffusion.prediction": "v", "diffusion.shift": 3.0}, "diffusion.shift = 3.0: is of"),
        ({"diffusion.timestep_mean": 0.5}, "diffusion.timesteps = 'uniform': heeds no timestep_mean"),
        ({"diffusion.prediction": "x0", "train.snr_loss": True}, "train.snr_loss = True: measures the error of eps"),
        ({"diffusion.prediction": "v", "objective.kind": "consistency"}, "distils teachers that predict the noise"),
        ({"diffusion.timesteps": "logit_normal", "objective.kind": "consistency"}, "has timesteps of its own"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check_config(config_of(settings))
