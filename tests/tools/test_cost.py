"""tools.cost: its arithmetic from FLOPs to CO2, whose option is whose, and that it prints what it assumes."""

import json

import jax
import jax.numpy as jnp
import pytest

from pixart_jax.models.t5 import XXL
from pixart_jax.models.vae import AutoencoderKL
from pixart_jax.training.flops import count_flops
from tools.cost import main
from tools.encoder_costs import VAE

ALIGNED = ("--config.align.weight=0.5", "--config.align.block=0")
CONFIG = """
from pixart_jax.config import default_config

def get_config():
    config = default_config()
    config.model.update({{"hidden_size": 24, "depth": 1, "num_heads": 2, "num_classes": {classes}}})
    config.data.batch_size = 10
    config.train.num_steps = 30
    return config
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """The paths of a class-conditional and of a text-conditional config."""
    folder = tmp_path_factory.mktemp("cost")
    (folder / "labels.py").write_text(CONFIG.format(classes=5))
    (folder / "captions.py").write_text(CONFIG.format(classes=0))
    return str(folder / "labels.py"), str(folder / "captions.py")


def run(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_flops_to_co2(configs, capsys):
    labels, captions = configs
    chain = ["--hardware=a100", "--utilisation=0.25", "--price=2", "--pue=1.5", "--grid=0.1", "--num-devices=8"]
    result = run(
        capsys, *chain, "--config", labels, "--config.model.hidden_size=48", f"--config={captions}", "--images", "1e9"
    )
    first, second = result["stages"]
    assert (first["name"], first["images"]) == ("labels", 300)
    assert (second["name"], second["images"]) == ("captions", 1e9)
    # The setting held for the stage before it alone.
    assert first["flops_per_image"] > 2 * run(capsys, *chain, "--config", labels)["stages"][0]["flops_per_image"]
    days = second["images"] * second["flops_per_image"] / (312e12 * 0.25) / 86400
    assert second["device_days"] == pytest.approx(days)
    assert second["days"] == pytest.approx(days / 8)
    assert second["utilisation"] == pytest.approx(0.25)
    assert second["money"] == pytest.approx(days * 24 * 2)
    assert second["kwh"] == pytest.approx(days * 24 * 0.4 * 1.5)
    assert second["co2_kg"] == pytest.approx(second["kwh"] * 0.1)
    for field in ("images", "flops", "device_days", "days", "money", "kwh", "co2_kg"):
        assert result["total"][field] == pytest.approx(first[field] + second[field])


def test_time_as_measured_and_as_known(configs, capsys):
    labels, captions = configs
    stages = ["--config", labels, "--images-per-second=100", "--images=864e6", "--config", captions, "--device-days=3"]
    measured, known = run(capsys, "--hardware=v100", "--num-devices=4", *stages)["stages"]
    assert measured["device_days"] == pytest.approx(400)
    assert measured["images_per_second"] == pytest.approx(25)
    for cost in (measured, known):
        assert cost["utilisation"] == pytest.approx(cost["flops"] / (cost["device_days"] * 86400 * 125e12))
    assert known["device_days"] == 3
    # Without hardware there is no utilisation and no power; a stated power is enough for energy.
    assert run(capsys, *stages)["total"]["kwh"] is None
    stated = run(capsys, "--power=1000", "--pue=1", *stages)["total"]
    assert (stated["utilisation"], stated["kwh"]) == (None, pytest.approx((100 + 3) * 24))


def test_the_stated_utilisation_is_of_what_has_no_time_of_its_own(configs, capsys):
    labels, captions = configs
    chain = ["--hardware=h200", "--utilisation=0.5", "--config", labels, "--device-days=3"]
    for more in (["--config", captions], ["--pictures=1e6"]):
        known, other = run(capsys, *chain, *more)["stages"]
        assert known["device_days"] == 3 and other["utilisation"] == pytest.approx(0.5)


def test_the_table_names_every_assumption(configs, capsys):
    chain = ["--hardware=v5p", "--utilisation=0.37", "--price=4.2", "--power=450", "--num-devices=16"]
    labels, _ = configs
    assert main([*chain, "--config", labels, "--images=1e12", "--config.train.snr_loss=True"]) == 0
    text = capsys.readouterr().out
    for words in ("37.0%", "4.2 per device-hour", "450 W", "PUE 1.58", "0.481 kg/kWh", "459 TFLOP/s", "Devices: 16"):
        assert words in text
    assert f"{labels}, --config.train.snr_loss=True, images as stated" in text
    assert text.splitlines()[0].split()[:3] == ["stage", "images", "FLOPs/image"]
    assert main(["--hardware=v6e", "--utilisation=0.4", "--config", labels]) == 0
    text = capsys.readouterr().out
    assert "kg CO2" not in text and "money" not in text and "give --power" in text and "give --price" in text


def test_encoding_of_the_data(configs, capsys):
    vae, width = AutoencoderKL(**VAE), XXL["d_model"]
    picture = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(lambda x: vae.init(jax.random.key(0), x, method="encode"), picture)
    autoencoder = count_flops(lambda p, x: vae.apply(p, x, method="encode"), params, picture)
    inner = XXL["num_heads"] * XXL["d_kv"]
    t5 = 2 * 120 * XXL["num_layers"] * (4 * width * inner + 3 * width * XXL["d_ff"] + 2 * 120 * inner)

    stages = [option for config in configs for option in ("--config", config, "--pictures=1e6")]
    stages += ["--config", configs[1], "--pictures=1e6", *ALIGNED]
    # DINOv2's ViT-B/14, of 16 by 16 patches and a token more.
    vit = 2 * 256 * 14**2 * 3 * 768 + 12 * (2 * 257 * 12 * 768**2 + 4 * 257**2 * 768)
    costs = run(capsys, "--hardware=h200", "--utilisation=0.5", *stages)["stages"]
    names = ["labels", "labels: encoding", "captions", "captions: encoding", "captions", "captions: encoding"]
    assert [cost["name"] for cost in costs] == names
    assert costs[1]["flops_per_image"] == pytest.approx(autoencoder, rel=0.01)
    assert costs[3]["flops_per_image"] == pytest.approx(autoencoder + t5, rel=0.01)
    assert costs[5]["flops_per_image"] - costs[3]["flops_per_image"] == pytest.approx(vit, rel=0.02)
    assert costs[3]["device_days"] == pytest.approx(1e6 * costs[3]["flops_per_image"] / (989e12 * 0.5) / 86400)


def test_no_batch_is_too_large(configs, capsys):
    """Images are counted one at a time: a real batch of this size would be 16 TB."""
    labels, _ = configs
    stage = ["--config", labels, "--device-days=3"]
    few = run(capsys, *stage)["total"]["flops"]
    assert run(capsys, *stage, "--config.data.batch_size=1000000000")["total"]["flops"] == pytest.approx(few * 1e8)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hardware=h200"], "Give --utilisation"),
        (["--utilisation=0.4"], "Give --hardware"),
        (["--device-days=3", "--pictures=10"], "Give --utilisation"),
        (["--hardware=h200", "--utilisation=0.4", "--pictures=10", "--config.model.text_dim=8"], "other features"),
        (
            ["--hardware=h200", "--utilisation=0.4", "--pictures=10", *ALIGNED, "--config.align.dim=8"],
            "no network is known",
        ),
        (["--utilisation=0.4", "--images-per-second=9"], "--utilisation=0.4: every stage's time is given by"),
        (["--utilisation=0.4", "--hardware=h200", "--device-days=9"], "leave one of the two out"),
        (["--device-days=3", "--pue=1.2"], "--pue: of energy, and no power is known; give --power"),
        (["--hardware=v6e", "--utilisation=0.4", "--pue=1.2", "--grid=0.1"], "--pue, --grid: of energy"),
        (["--device-days=3", "--config.model.dpeth=2"], "config.model.depth"),
        (["--device-days=3", "--config.model.depth=two"], "must be of type int"),
    ],
)
def test_input_errors_name_the_cure(configs, capsys, argv, message):
    _, captions = configs
    assert main(["--config", captions, *argv]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--images=3", "--config", "a.py"], "belongs to the --config before it"),
        (["--config", "a.py", "--images=3", "--images=4"], "given twice"),
        (["--config", "a.py", "--device-days=3", "--images-per-second=4"], "give one"),
        (["--config", "a.py", "--utilisation=40"], "at most 1"),
        (["--config", "a.py", "--price=-1"], "must be positive"),
        (["--config", "a.py", "--num-devices=0"], "at least 1"),
        (["--hardware=h200"], "--config"),
    ],
)
def test_usage_errors(capsys, argv, message):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
