"""Two steps of every config of configs/ at its own size and batch, in shapes; one of them also compiled."""

import concurrent.futures

import pytest
from config_runs import DEVICES, FSDP, KV, PATHS, SIGMA, train_abstractly
from forked import processes, use_devices

from pixart_jax.config import read_config_file


@pytest.fixture(scope="module")
def worker():
    devices = {"initializer": use_devices, "initargs": [DEVICES]}
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=processes, **devices) as pool:
        yield pool


# Whose batches are for one device or a few.
SMALL = (
    *("finetune_small_alpha", "finetune_small_sigma", "dreambooth_alpha_1024", "dreambooth_sigma_1024"),
    "lora_sigma_512",
)
# Parameters, of those that differ from all others'.
TRAINED = {"stage1_256": 675e6, "lora_sigma_512": 13.77e6} | dict.fromkeys(
    ("controlnet_alpha_1024", "controlnet_sigma_512"), 294_917_760
)
TRAINED |= {name: 27.5e6 for name in PATHS if name.startswith("lcm_lora_")}
# Student and score network.
TRAINED |= dict.fromkeys(("dmd_alpha_512", "dmd_sigma_512"), 1222e6)
# With a projector.
TRAINED["fast_alpha_256"] = 619e6
FULL_SIZE = [(name, {"data.batch_size": DEVICES} if name in SMALL else {}) for name in PATHS] + [
    (name, KV) for name in SIGMA
]
# Compiled too, which takes ten times as long as all else: the one with the most in it.
COMPILED = [("sigma_512", KV)]


@pytest.mark.parametrize("name,settings", FULL_SIZE, ids=lambda value: value if isinstance(value, str) else str(value))
def test_two_steps_at_full_size_in_shapes(worker, name, settings):
    is_compiled = (name, settings) in COMPILED
    figures = worker.submit(train_abstractly, name, settings, is_compiled).result()
    if not read_config_file(str(PATHS[name])).model.hidden_size:
        assert figures["params"] == pytest.approx(TRAINED.get(name, 611e6), rel=0.01)
        # Vectors are whole on every device; they are few.
        assert figures["state_bytes"] == pytest.approx(figures["whole_state_bytes"] / FSDP, rel=0.01)
    if is_compiled:
        # But for a few bytes that the step does not read, such as Σ's micro-conditions.
        expected = figures["state_bytes"] + figures["batch_bytes"]
        assert figures["argument_bytes"] == pytest.approx(expected, rel=1e-3)
        # Donated: the new state lies where the old one was.
        assert figures["alias_bytes"] == pytest.approx(figures["state_bytes"], rel=1e-3)
