"""The benchmarks compare like with like, and what fails is said; never how fast anything is."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from bench_contender import Contender
from made_once import made_once
from tiny_run import ROOT, tiny_config, write_config
from tiny_words import train_words_run

from pixart_jax.config import build_model, check_config
from pixart_jax.diffusion.gaussian import q_sample
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.models.params import parameter_shapes
from pixart_jax.objectives.denoising import diffusion_terms
from tools.bench import attention, shortcuts
from tools.bench.__main__ import BENCHMARKS, main
from tools.bench.peer import installed, make_contender, missing_peer, peer_spec, random_params
from tools.bench.table import table
from tools.bench.torch_train import Train
from tools.bench.train import missing_training, synthetic_batch, training_spec
from tools.bench.turns import compare, in_process, take_turns

SHORT = ["--rounds=2", "--steps=1"]


@pytest.fixture(autouse=True)
def denormals_as_before():
    """The peer has them flushed to zero, which here is for this process."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return write_config(folder / "tiny.py", folder)


@pytest.fixture
def config():
    config = tiny_config("unused")
    config.data.batch_size = 4
    check_config(config)
    return config


def bench(capsys, what, *arguments):
    assert main([f"--what={what}", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def assert_timed(row, rounds=2):
    assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
    assert row["rounds"] == rounds


# --------------------------------------------------------------------------------------------- The peer is a fair one.


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_the_peers_loss_is_ours(config, learn_sigma):
    config.model.learn_sigma = learn_sigma
    batch, model, schedule = synthetic_batch(config), build_model(config), linear_schedule()
    batch["text_drop"] = np.array([False, True, False, False])
    # With t = 0, whose loss is another.
    t, noise = np.array([0, 3, 400, 999]), np.random.default_rng(1).standard_normal(batch["tokens"].shape, np.float32)

    @jax.jit
    def ours(params):
        x_t = q_sample(schedule, batch["tokens"], t, noise)
        conditions = {name: value for name, value in batch.items() if name != "tokens"}
        output = model.apply({"params": params}, x_t, t, **conditions)
        terms = diffusion_terms(schedule, output, batch["tokens"], x_t, t, noise, batch["num_tokens"])
        return sum(term.mean() for term in terms.values())

    peer = Train(False, peer_spec(config), training_spec(config, "none"), batch)
    # The likelihood at t = 0 is over a variance of 1e-4, which magnifies what float32 rounds: processors differ.
    tolerance = 2e-4 if learn_sigma else 2e-5
    assert peer.loss(t, noise) == pytest.approx(float(ours(random_params(parameter_shapes(model)))), rel=tolerance)


def test_the_peer_trains_and_gives_its_memory_back_between_turns(config):
    peer = Train(False, peer_spec(config), training_spec(config, "none"), synthetic_batch(config))
    before = [parameter.detach().clone() for parameter in peer._params]
    first = peer.step().item()
    assert all((a != b).any() for a, b in zip(before, peer._params, strict=True) if a.grad is not None)
    for ema, old, new in zip(peer._ema, before, peer._params, strict=True):
        torch.testing.assert_close(ema, 0.9 * old + 0.1 * new.detach())
    for _ in range(2):
        figures = peer.turn(1)
        assert figures["seconds"] > 0
        assert len(peer._state()) == 4 * len(before)
        assert not any(tensor.untyped_storage().nbytes() for tensor in peer._state())
    peer._unpark()
    assert 0.1 * first < peer.step().item() < 10 * first


def test_the_peer_draws_what_we_draw(config, config_file, capsys):
    settings = ["--config.sample.sampler=dpm-solver-diffusers", "--config.sample.num_steps=4"]
    (row,) = bench(
        capsys, "sample", f"--config={config_file}", *SHORT, "--batch-sizes=2", "--peer=eager", "--vae=tiny", *settings
    )
    assert_timed(row)
    assert_timed(row["peer"]["eager"])
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    assert row["peer"]["eager"]["max_difference"] < 1e-3 * row["latents_std"]
    assert row["vae"] == "tiny"


def test_the_peers_forward_pass_is_ours(config_file, capsys):
    (row,) = bench(capsys, "forward", f"--config={config_file}", *SHORT, "--peer=eager")
    assert_timed(row)
    assert row["peer"]["eager"]["max_difference"] < 1e-4 * row["output_std"]
    assert row["ratio"] > 0 and row["fastest_peer"] == "eager"
    assert row["peer"]["eager"]["matrix_flops_per_second"] > 1e8
    assert row["utilisation"] == pytest.approx(row["model_flops"] / row["seconds"] / row["matrix_flops_per_second"])


@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"kv_compress_ratio": 2}, "key/value compression"),
        ({"qk_norm": True}, "qk-norm"),
        ({"adaln": "full"}, "full adaLN"),
        ({"num_classes": 3}, "class-conditional"),
        ({}, None),
    ],
)
def test_what_diffusers_lacks_is_not_compared(config, settings, reason):
    config.model.update(settings)
    config.model.kv_compress_from = 0
    missing = missing_peer(config)
    assert missing is None if reason is None else reason in missing


def test_training_is_compared_with_adamw_alone(config):
    assert missing_training(config) is None
    config.train.accumulation_steps = 2
    assert "accumulation" in missing_training(config)
    config.optimizer.name = "came"
    assert "AdamW" in missing_training(config)


def test_several_devices_are_not_compared(config):
    assert "several devices" in missing_peer(config, 2)


def test_a_missing_framework_is_said(config, monkeypatch):
    monkeypatch.setattr("tools.bench.peer.installed", lambda module: module != "diffusers")
    assert missing_peer(config) == "diffusers"
    monkeypatch.setattr("tools.bench.peer.installed", lambda module: False)
    assert missing_peer(config) == "torch"
    assert installed("numpy") and not installed("no_such_module")


# ------------------------------------------------------------------------------------------------------- Taking turns.


def test_turns_alternate_and_a_failure_is_left_out():
    order = []

    def turn(name, seconds):
        order.append(name)
        return {"seconds": seconds.pop(0)}

    ours = functools.partial(turn, "ours", [1.0, 2.0, 4.0])
    with in_process(Contender) as good, in_process(Contender) as bad, in_process(Contender, True) as unmade:
        actions = iter(["answer", "die"])
        figures = compare(
            ours,
            {
                "good": lambda: order.append("good") or good("turn"),
                "bad": lambda: bad("turn", next(actions)),
                "unmade": lambda: unmade("turn"),
            },
            3,
        )
        results, failures = take_turns({"good": functools.partial(good, "turn", "fail")}, 2)
    assert order == ["ours", "good"] * 3
    assert (figures["seconds"], figures["seconds_min"], figures["seconds_max"], figures["rounds"]) == (2, 1, 4, 3)
    assert figures["peer"]["good"]["process"] != os.getpid()
    # Of the rounds' quotients 1/1, 2/2 and 3/4.
    assert (figures["fastest_peer"], figures["ratio"]) == ("good", 1.0)
    assert figures["peer_failed"] == {
        "bad": "its process ended with exit code 3",
        "unmade": "ValueError: badly made",
    }
    assert not results and failures == {"good": "ValueError: no more"}


# --------------------------------------------------------------------------------------------- The rest of the figures.


def test_attention(capsys):
    options = ["--resolutions=64", "--heads=2", "--head-dim=8", "--rounds=1", "--seconds=0.01", "--peer=eager"]
    rows = bench(capsys, "attention", *options)
    assert [(r["implementation"], r["queries"], r["keys"], r["backward"]) for r in rows] == [
        (implementation, 16, keys, backward)
        for keys in (16, 4)
        for backward in (False, True)
        for implementation in ("plain", "blockwise")
    ]
    for row in rows:
        assert_timed(row, rounds=1)
        assert row["ratio"] == pytest.approx(row["peer"]["eager"]["seconds"] / row["seconds"])


def test_attention_leaves_out_what_memory_cannot_hold(capsys, monkeypatch):
    monkeypatch.setitem(attention.MAX_LOGITS_BYTES, "cpu", 1000)
    options = [
        "--resolutions=64",
        "--kv-compress=1",
        "--heads=2",
        "--head-dim=8",
        "--rounds=1",
        "--seconds=0.01",
        "--peer=none",
    ]
    rows = bench(capsys, "attention", *options, "--seconds=0.01", "--peer=none")
    assert [row["implementation"] for row in rows if "skipped" in row] == ["plain", "plain"]
    assert all(row["peer_missing"] == "--peer=none" for row in rows)


def test_shortcuts(config_file, capsys, monkeypatch):
    names = ("none", "text once", "interval 0-600", "reuse 2", "fewer steps 2", "path_drop")
    some = {name: shortcuts.SHORTCUTS[name] for name in names}
    monkeypatch.setattr(shortcuts, "SHORTCUTS", some)
    options = [f"--config={config_file}", "--shortcuts", "--rounds=1", "--steps=1", "--batch-sizes=2", "--peer=none"]
    options += ["--config.model.route.first=1", "--config.model.route.last=1"]
    rows = bench(capsys, "sample", *options, "--config.sample.num_steps=4")
    assert [row["shortcut"] for row in rows] == [*some]
    assert rows[0]["latents_apart"] == 0 and rows[1]["latents_apart"] < 1e-5 < rows[3]["latents_apart"]
    # Less text, then fewer guided steps, then half the blocks.
    work = [row["work_ratio"] for row in rows]
    assert work[0] == 1 < work[1] < work[2] and work[1] < work[3] < 2.5
    # As reuse leaves out whole blocks, but for what is around them.
    assert work[3] < work[4] < 2.5
    # Of both branches' two blocks each one is left out: of what blocks compute a quarter.
    assert work[1] < work[5] < work[1] * 4 / 3
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in rows)


def test_shortcuts_of_a_checkpoint(tmp_path_factory, capsys, monkeypatch):
    """Distances are from its own pictures, and what it cannot take is left out."""
    made = made_once(tmp_path_factory, "words-run", train_words_run)
    given = [f"--checkpoint={made / 'run'}", f"--source={made / 'data'}", "--pictures=2", "--batch-size=2"]
    some = {name: shortcuts.SHORTCUTS[name] for name in ("none", "text once", "reuse 1.5", "fewer steps 2")}
    monkeypatch.setattr(shortcuts, "SHORTCUTS", some)
    assert main(["--what=sample", *given, "--rounds=1"]) == 0
    out, said = capsys.readouterr()
    rows = {row["shortcut"]: row for row in map(json.loads, out.splitlines())}
    assert [*rows] == ["none", "text once", "fewer steps 2"] and "reuse 1.5 is left out: reuse = '1.5': takes 5" in said
    assert rows["none"]["max_difference"] == 0 and rows["text once"]["max_difference"] <= 1 / 255
    assert all(row["seconds"] > 0 and row["speed_ratio"] > 0 and row["pictures"] == 2 for row in rows.values())
    assert 1 < rows["text once"]["work_ratio"] < rows["fewer steps 2"]["work_ratio"]


def test_checkpoint(config_file, tmp_path, capsys):
    options = [f"--config={config_file}", "--rounds=1", "--steps=1", f"--directory={tmp_path}", "--peer=none"]
    (row,) = bench(capsys, "checkpoint", *options)
    assert row["seconds"] == pytest.approx(row["save_seconds"] + row["slowdown_seconds"])
    assert min(row[name] for name in ("save_seconds", "step_seconds", "background_seconds", "restore_seconds")) > 0
    # Parameters, EMA and two moments in float32.
    assert row["bytes"] > 16 * 1000
    assert not list(tmp_path.iterdir())


def test_torch_save(tmp_path):
    figures = make_contender("torch_parts.Save", "eager", "cpu", [(100, 50), (30,)]).turn(str(tmp_path / "state.pt"))
    assert min(figures["seconds"], figures["restore_seconds"]) > 0
    assert 16 * 5030 < figures["bytes"] < 16 * 5030 + 10_000
    assert not list(tmp_path.iterdir())


def test_scaling(config_file):
    arguments = [f"--config={config_file}", "--rounds=1", "--steps=1", "--devices=1,2"]
    process = subprocess.run(
        [sys.executable, "-m", "tools.bench", "--what=scaling", *arguments],
        cwd=ROOT,
        # Of several devices the benchmark makes its own. Unoptimised programs compile faster.
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    one, two = map(json.loads, process.stdout.splitlines())
    assert (one["devices"], one["batch_size"], one["ratio"], one["efficiency"]) == (1, 8, 1, 1)
    assert (two["devices"], two["batch_size"], two["num_devices"]) == (2, 16, 2)
    assert two["efficiency"] == pytest.approx(two["ratio"] / 2)
    assert two["simulated"]


# ------------------------------------------------------------------------------------------------------- For people.


def test_a_single_figure_is_a_list():
    rows = [
        {
            "what": "train",
            "config": "quickstart",
            "overrides": ["--config.model.depth=1", "--config.seed=3"],
            "seconds": 0.014334,
            "compile_seconds": 75.69,
            "peer": {"eager": {"seconds": 0.19968, "seconds_max": 1.0}},
            "ratio": 13.93,
            "model_flops_per_second": 1.8e10,
            "utilisation": 0.1267,
            "mfu": None,
            "peak_bytes": 23887204,
            "tokens": 4096,
            "versions": {"jax": "0.10"},
        }
    ]
    assert list(table(rows)) == [
        "config                  quickstart",
        "overrides               --config.model.depth=1 --config.seed=3",
        "seconds                 14.3 ms",
        "compile seconds         75.7 s",
        "peer eager seconds      200 ms",
        "ratio                   13.9×",
        "model flops per second  18 GFLOP/s",
        "utilisation             12.7%",
        "peak bytes              23.9 MB",
        "tokens                  4,096",
    ]


def test_several_figures_are_a_table_of_what_differs(monkeypatch):
    rows = [{"devices": n, "dtype": "float32", "seconds": n / 10, "copies": n if n > 1 else None} for n in (1, 2, 4)]
    shared, empty, *lines = table(rows)
    assert (shared, empty) == ("dtype  float32", "")
    assert [line.split() for line in lines] == [
        ["devices", "seconds", "copies"],
        ["1", "100", "ms"],
        ["2", "200", "ms", "2"],
        ["4", "400", "ms", "4"],
    ]
    # Where that would wrap, a list for each.
    monkeypatch.setenv("COLUMNS", "20")
    lines = list(table(rows))
    assert lines[2:5] == ["devices  1", "seconds  100 ms", ""] and max(map(len, lines)) <= 20


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--help", "--steps=3"]])
def test_help_needs_no_benchmark(argv, capsys):
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"--what={name}" in printed for name in BENCHMARKS)


@pytest.mark.parametrize("what", ["forward", "convert"])
def test_help_of_a_benchmark_is_its_own(what, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help", f"--what={what}"])
    assert stopped.value.code == 0
    assert f"--what={what} [-h]" in capsys.readouterr().out


def test_json_stays_alone_on_stdout(capsys, monkeypatch):
    rows = [{"seconds": 1.0, "devices": n} for n in (1, 2)]
    monkeypatch.setattr("tools.bench.scaling.run", lambda argv: iter(rows))
    assert main(["--what=scaling"]) == 0
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [{name: row[name] for name in ("seconds", "devices")} for row in found] == rows
    assert printed.err.splitlines()[-3:] == ["devices", "1", "2"]
