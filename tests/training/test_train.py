"""The real loop on a tiny config: what it writes, how often it compiles, and what it refuses."""

import json
import re
import threading
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from resume_runs import finish, start
from tiny_run import TEXT_DIM, read_metrics, tiny_config, write_config, write_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import check_offload, default_config, load_config
from pixart_jax.devices import hardware
from pixart_jax.errors import InputError, TrainingDiverged
from pixart_jax.training import run
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.metrics import MetricsWindow
from pixart_jax.training.program import Program
from pixart_jax.training.record import read_run
from tools.bench.train import synthetic_batch

# What a run compiles beyond what gives birth to its state.
PROGRAMS = {"jit(train_step)", "jit(tree_checksums)", "jit(evaluate)", "jit(sample)", "jit(draw_noise)"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("train") / "data")


def test_run_writes_what_it_promises_and_compiles_once(data, tmp_path, compilations, guarded_reads, monkeypatch):
    monkeypatch.setitem(hardware.HARDWARE, "this", hardware.Hardware(1e12, 1e9, 1e9, None, ("cpu",)))
    config = tiny_config(data)
    config.eval.update({"source": str(data), "every": 5, "num_samples": 8})
    state = train_and_evaluate(config, str(tmp_path))
    assert int(state.step) == 12
    assert {"jit(train_step)", "jit(sample)"} <= set(compilations)
    # After the step only these, unless another test has had them of these shapes: between the steps no stray operation
    # even runs. One of each, whatever the aspect ratios, and however often the run saves, evaluates and draws.
    after = compilations[compilations.index("jit(train_step)") :]
    assert set(after) <= {"jit(train_step)", "jit(evaluate)", "jit(sample)", "jit(draw_noise)"}, after
    check_once(compilations)

    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert rows[0].keys() == {"step", "loss", "mse", "vb", "grad_norm", "learning_rate"}
    flops = Program(config, None).flops(synthetic_batch(config))
    for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        steps_per_second = row["images_per_second"] / config.data.batch_size
        assert row["mfu"] == pytest.approx(flops * steps_per_second / (jax.device_count() * 1e12))
    for picture in ("samples.png", "loss.png", "samples/step_0000006.png"):
        assert np.asarray(Image.open(tmp_path / picture)).std() > 0
    assert list(tmp_path.glob("events.out.tfevents.*"))
    recorded = read_run(tmp_path)
    assert recorded["num_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert recorded["versions"]["jax"] == jax.__version__
    # Parameters, EMA and two moments in float32, and the batch.
    assert 16 * recorded["num_parameters"] < recorded["argument_bytes"] < 20 * recorded["num_parameters"]
    assert recorded["scratch_bytes"] > 0
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [8, 12]

    compilations.clear()
    config.train.num_steps = 16
    train_and_evaluate(config, str(tmp_path))
    # What the settings that have changed come to is said at the start.
    assert {"jit(train_step)"} <= set(compilations) <= PROGRAMS | {"jit(learning_rates)"}
    check_once(compilations)


@pytest.mark.parametrize("goes_on", [False, True], ids=["from step 0", "goes on"])
def test_what_may_compile_is_no_hang(data, tmp_path, monkeypatch, goes_on):
    """The first steps that the devices are given at once, and an evaluator's first look, where the watchdog waits."""
    beats = []

    class Watchdog(run.Watchdog):
        def beat(self, step, doing, *, first=False):
            beats.append((step, doing, first))

    config = tiny_config(data)
    config.train.num_steps = 12
    config.sample.update({"every": 6, "num_images": 1})
    if goes_on:
        config.train.num_steps = 4
        train_and_evaluate(config, str(tmp_path))
        config.train.num_steps = 12
    monkeypatch.setattr(run, "Watchdog", Watchdog)
    train_and_evaluate(config, str(tmp_path))
    begin = 4 if goes_on else 0
    steps = {step: first for step, doing, first in beats if doing == "a step"}
    assert [step for step, first in steps.items() if first] == [*range(begin, begin + 4)]
    assert len(steps) == 13 - begin
    looks = [(step, first) for step, doing, first in beats if "evaluation" in doing]
    assert (6, True) in looks and (6, False) not in looks
    assert (12, False) in looks and (12, True) not in looks


def check_once(compilations):
    names = [name for name in compilations if name in PROGRAMS]
    assert len(set(names)) == len(names), names


def test_no_step_reads_from_the_devices(data, tmp_path, guarded_reads, monkeypatch):
    add = MetricsWindow.add

    def add_and_look(self, step, metrics):
        add(self, step, metrics)
        if step == 2 and metrics["loss"] > 1e9:
            raise AssertionError

    monkeypatch.setattr(MetricsWindow, "add", add_and_look)
    with pytest.raises(RuntimeError, match="Disallowed"):
        train_and_evaluate(tiny_config(data), str(tmp_path))


def test_a_slow_disk_does_not_hold_the_loop(data, tmp_path, monkeypatch, caplog):
    """The checkpoint of step 2 comes to its end after step 10: until then no other is begun, and the last one is."""
    finalize, add, done = ocp.CheckpointManager._finalize, MetricsWindow.add, threading.Event()

    def finalize_late(self, step, *args):
        assert done.wait(60)
        finalize(self, step, *args)

    def add_and_count(self, step, metrics):
        add(self, step, metrics)
        if step == 11:
            done.set()

    monkeypatch.setattr(ocp.CheckpointManager, "_finalize", finalize_late)
    monkeypatch.setattr(MetricsWindow, "add", add_and_count)
    config = tiny_config(data)
    config.train.update({"checkpoint_every": 2, "checkpoint_wait": 0})
    config.sample.every = 0
    with caplog.at_level("INFO", logger="absl"):
        train_and_evaluate(config, str(tmp_path))
    skipped = re.findall(r"NO CHECKPOINT OF STEP (\d+): that of step 2 is not complete after", caplog.text)
    assert skipped == ["4", "6", "8", "10"]
    assert re.findall(r"checkpoint of step (\d+): held the loop for", caplog.text) == ["2", "12"]
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 12]


def test_an_optimizer_in_host_memory_changes_nothing(data, tmp_path):
    """Bit for bit, saved and resumed; and it stays there."""
    config = tiny_config(data)
    config.sample.every = 0
    config.train.update({"log_every": 1, "num_steps": 6})
    plain = train_and_evaluate(config, str(tmp_path / "plain"))
    config.train.offload_optimizer = True
    for config.train.num_steps in (3, 6):
        offloaded = train_and_evaluate(config, str(tmp_path / "offloaded"))
    for state, kind in ((plain, "device"), (offloaded, "pinned_host")):
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1} == {kind}
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves((state.params, state.ema_params))} == {"device"}
    jax.tree.map(np.testing.assert_array_equal, plain, offloaded)
    assert read_metrics(tmp_path / "plain") == read_metrics(tmp_path / "offloaded")


def test_a_device_without_host_memory_is_refused():
    config, memories = default_config(), [types.SimpleNamespace(kind="device")]
    device = types.SimpleNamespace(device_kind="abacus", addressable_memories=lambda: memories)
    check_offload(config, device)
    config.train.offload_optimizer = True
    with pytest.raises(InputError, match=r"config.train.offload_optimizer = True: abacus has no .* pinned_host"):
        check_offload(config, device)


def test_a_run_of_before_a_setting_existed(tmp_path):
    """It has the setting's default."""
    config = tiny_config(tmp_path)
    values = config.to_dict()
    del values["data"]["group_buckets"], values["seed"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_config(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"model.num_classes": 3},
        {"model.num_classes": 3, "model.adaln": "full", "model.micro_condition": False},
        {"model.adaln": "full"},
        {"model.qk_norm": True, "model.remat": "full", "train.accumulation_steps": 2, "dtype": "bfloat16"},
        {"residual_dtype": "float32", "dtype": "bfloat16", "model.num_classes": 3},
        {"model.learn_sigma": False, "sample.sampler": "ddim", "diffusion.prediction": "x0"},
        {"diffusion.prediction": "v", "diffusion.timesteps": "logit_normal", "sample.sampler": "iddpm"},
        {"model.learn_sigma": False, "sample.sampler": "flow-heun", "diffusion.prediction": "flow"},
        {"train.snr_loss": True, "sample.sampler": "iddpm", "data.num_workers": 2},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_options_train(data, tmp_path, settings):
    config = tiny_config(data)
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    config.train.num_steps = 4
    train_and_evaluate(config, str(tmp_path))
    assert np.isfinite(read_metrics(tmp_path)[-1]["loss"])
    assert (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("sampling", ["conv", "uniform_every"])
def test_key_value_compression_trains(sampling, tmp_path):
    data = write_data(tmp_path / "data", buckets=((64, 64), (32, 128), (32, 64)))  # 4x4, 2x8 and 2x4 tokens
    config = tiny_config(data)
    config.model.update({"resolution": 64, "kv_compress_ratio": 2, "kv_compress_from": 1, "kv_sampling": sampling})
    config.train.num_steps = 4
    train_and_evaluate(config, str(tmp_path / "run"))
    assert np.isfinite(read_metrics(tmp_path / "run")[-1]["loss"])


def test_it_learns(data, tmp_path):
    config = tiny_config(data)
    config.train.update({"num_steps": 300, "log_every": 50, "checkpoint_every": 300})
    config.sample.every = 0
    train_and_evaluate(config, str(tmp_path))
    losses = [row["mse"] for row in read_metrics(tmp_path)]
    assert losses[-1] < 0.7 * losses[0], losses


def test_non_finite_loss_stops_the_run_and_spares_the_checkpoint(data, tmp_path):
    config = tiny_config(data)
    config.train.update({"num_steps": 5, "checkpoint_every": 5})
    config.sample.every = 0
    train_and_evaluate(config, str(tmp_path))
    config.optimizer.learning_rate = 1e30
    config.train.num_steps = 40
    with pytest.raises(TrainingDiverged, match=r"nan at step \d+; the checkpoint of step 5 is untouched"):
        train_and_evaluate(config, str(tmp_path))
    assert Checkpoints(tmp_path, read_only=True).latest_step == 5
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path))


def test_a_gradient_that_is_not_finite_is_never_saved():
    """Its loss, of the parameters before, may be."""
    window = MetricsWindow()
    window.add(3, {"loss": np.float32(1), "grad_norm": np.float32(np.nan)})
    with pytest.raises(TrainingDiverged, match="the grad_norm is nan at step 3"):
        window.fetch()


def test_a_run_that_is_further_than_it_is_to_go(data, tmp_path):
    config = tiny_config(data)
    config.train.update({"num_steps": 2, "checkpoint_every": 2})
    config.sample.every = 0
    train_and_evaluate(config, str(tmp_path))
    config.train.num_steps = 1
    with pytest.raises(InputError, match=r"num_steps = 1: the run in .* is at step 2 already"):
        train_and_evaluate(config, str(tmp_path))


def set_key(key, value):
    def change(config):
        *sections, name = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        node[name] = value

    return change


@pytest.mark.parametrize(
    "change,message",
    [
        (set_key("data.source", ""), r"config.data.source is empty"),
        (set_key("data.source", "/nowhere/at/all"), r"/nowhere/at/all.*extract_features"),
        (set_key("model.text_dim", TEXT_DIM + 1), r"text_dim"),
        (set_key("model.latent_channels", 5), r"latent_channels"),
        (set_key("model.max_text_tokens", 2), r"max_text_tokens"),
        (set_key("model.resolution", 16), r"num_tokens"),
        (set_key("model.kv_compress_ratio", 2), r"block"),
        (set_key("model.num_classes", 7), r"num_classes"),
        (set_key("model.num_heads", 5), r"config.model.hidden_size"),
        (
            set_key("model.remat", "some"),
            r"config.model.remat = 'some': must be one of auto, none, dots, ",
        ),
        (set_key("model.attention", "xla"), r"config.model.attention = 'xla': must be one of auto, plain, blockwise"),
        (set_key("model.attention", "cudnn"), r"config.model.attention = 'cudnn': needs an NVIDIA GPU .* of 12 on cpu"),
        (set_key("model.resolution", 40), r"config.model.resolution = 40: must be a multiple of 16"),
        (set_key("train.accumulation_steps", 3), r"batch_size = 8 cannot be split.*nearest that can: 6 or 9"),
        (set_key("mesh.fsdp", 3), r"config.mesh.fsdp = 3 must divide the number of devices, 1"),
        (set_key("mesh.fsdp", 0), r"config.mesh.fsdp = 0: must be at least 1"),
        (set_key("mesh.data", 0), r"config.mesh.data = 0: must be at least 1, or -1 for the rest"),
        (set_key("mesh.data", 2), r"config.mesh.data = 2 must be the number of devices, 1"),
        (set_key("mesh.tensor", 3), r"config.mesh.tensor = 3: must divide the 2 heads"),
        (set_key("mesh.context", 3), r"config.mesh.context = 3: must divide the 4 keys"),
        (set_key("sample.retrieval_captions", 4), r"retrieval_captions = 4: .* holds 3 sizes"),
        (set_key("sample.sampler", "magic"), r"config.sample.sampler = 'magic'"),
        (set_key("train.num_steps", 0), r"config.train.num_steps = 0: must be at least 1"),
    ],
)
def test_bad_settings_are_refused_before_any_work(data, tmp_path, change, message):
    config = tiny_config(data)
    change(config)
    with pytest.raises(InputError, match=message):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_workdir_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--workdir=.*file/run: cannot write there"):
        train_and_evaluate(tiny_config(data), str(tmp_path / "file" / "run"))


@pytest.mark.parametrize("mark", ["model.json", "model_index.json", "params", "manifest.json", "adapter_config.json"])
def test_a_folder_that_is_something_else_is_no_workdir(mark, data, tmp_path):
    (tmp_path / mark).touch()
    with pytest.raises(InputError, match=rf"--workdir=.* is an? .*, as its {mark} says; name another"):
        train_and_evaluate(tiny_config(data), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [mark]


def test_truncated_shard_is_named_with_its_records(data, tmp_path):
    broken = write_data(tmp_path / "data")
    shard = sorted(broken.glob("*.array_record"))[1]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(InputError, match=rf"{shard.name}.*10.*19"):
        train_and_evaluate(tiny_config(broken), str(tmp_path / "run"))


def test_checkpoint_of_another_model_lists_both_shapes(data, tmp_path):
    config = tiny_config(data)
    config.train.num_steps = 2
    config.sample.every = 0
    train_and_evaluate(config, str(tmp_path))
    recorded = (tmp_path / "config.json").read_text()
    config.model.hidden_size = 48
    with pytest.raises(InputError, match=r"x_embedder/kernel: checkpoint \(16, 24\), model \(16, 48\)"):
        train_and_evaluate(config, str(tmp_path))
    assert (tmp_path / "config.json").read_text() == recorded


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--config.optimizer.learnin_rate=1"], "unknown config key config.optimizer.learnin_rate; did you mean "),
        (["--config.train.num_steps=many"], "config.train.num_steps"),
        (["stray"], "what is 'stray'"),
    ],
)
def test_command_line_errors_are_one_line(data, tmp_path, arguments, message):
    config = write_config(tmp_path / "config.py", data)
    workdir = tmp_path / "run"
    output = finish(start(config, workdir, *arguments), workdir, expected_code=2)
    lines = [line for line in output.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ") and message in lines[-1]
    assert "Traceback" not in output
