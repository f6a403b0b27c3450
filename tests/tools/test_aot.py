"""tools.aot: a small model through the real TPU compiler, and what it does with batches, memory and earlier results."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from owners import held_elsewhere
from tiny_run import ROOT

from pixart_jax.config import read_config_file
from pixart_jax.devices.hardware import HARDWARE
from pixart_jax.devices.sharding import make_mesh
from tools.aot import append_result, attempts, known_result, main, per_chip, table
from tools.aot_compile import (
    Case,
    case_config,
    default_fsdp,
    kept_bytes,
    lower_bounds,
    lower_decoding,
    lower_sampling,
    out_of_memory,
    parse_topology,
)
from tools.aot_flops import recomputed_flops, sampling_flops, train_flops

CONFIG = """
from pixart_jax.config import default_config

def get_config():
    config = default_config()
    config.dtype = "bfloat16"
    config.model.update({"hidden_size": 144, "depth": 3, "num_heads": 2, "resolution": 256, "text_dim": 64})
    config.model.remat = "full"
    config.data.batch_size = 27
    config.sample.num_steps = 4
    return config
"""


def test_the_slowest_of_what_a_step_needs():
    """FLOPs, bytes of memory, within the slice and between slices, each of one second on v5e and some more."""
    sent = {"all-gather": 3 * 100e9, "all-reduce": 3 * 100e9, "between-slices": 4 * 3.125e9}
    bounds = lower_bounds(197e12, 2 * 819e9, sent, HARDWARE["v5e"])
    assert bounds == pytest.approx({"arithmetic": 1, "memory": 2, "collectives": 3, "network": 4})
    assert "network" not in lower_bounds(1, 1, {"all-reduce": 1}, HARDWARE["v5e"])
    assert "network" not in lower_bounds(1, 1, {"between-slices": 1}, HARDWARE["v5p"])


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def test_a_controlnet_draws_with_its_base(config):
    """Two of three blocks are copied, and the first of them runs again: twice the work of the base, or so."""
    plain, controlled = (read_config_file(config) for _ in range(2))
    controlled.adapter.kind = "controlnet"
    controlled.adapter.controlnet.num_copies = 2
    for each in (plain, controlled):
        each.data.batch_size = 1
    ratio = sampling_flops(controlled) / sampling_flops(plain)
    assert 1.6 < ratio < 2.1
    lowered = lower_sampling(controlled, make_mesh(devices=jax.devices()[:1]))
    params, conditions = lowered.args_info[0][0], lowered.args_info[0][3]
    assert set(params.trained) == {"before_proj", "copies"} and conditions["control"].shape == (1, 256, 16)


def test_the_real_compiler(config, tmp_path, capsys):
    """Training with accumulation and sharded state, and sampling, on four chips of v5e."""
    out = tmp_path / "runs" / "aot.jsonl"
    argv = ["--config", config, "--topology=v5e:2x2", f"--out={out}"]
    argv += ["--config.mesh.fsdp=2", "--config.train.accumulation_steps=2"]
    assert main([*argv, "--json"]) == 0
    train, sample = map(json.loads, capsys.readouterr().out.splitlines())
    assert (train["program"], train["chips"], train["batch_size"]) == ("train", 4, 24)
    assert (train["accumulation_steps"], train["fsdp"], train["fits"]) == (2, 2, True)
    # Parameters, EMA and two moments in float32, halved; the rest is the batch.
    parameters = 3 * 18 * 144**2 + 8 * 144**2
    assert 1 < train["argument_bytes"] / (4 * 4 * parameters / 2) < 1.6
    assert train["argument_bytes"] + train["scratch_bytes"] <= train["total_bytes"] < train["capacity_bytes"] == 16e9
    # At least 6 FLOPs per weight and token, of 256 tokens of 6 pictures on each chip.
    assert 1 < train["flops"] / (6 * 256 * 6 * 3 * 14 * 144**2) < 2
    assert train["executed_flops"] == pytest.approx(train["flops"] * 4 / 3)
    # Splash attention, to tokens and to text, forward and backward.
    assert train["kernels"] >= 6
    assert train["unknown_loops"] == 0
    # Two accumulation steps gather four kernels and more of three blocks, on the way there and on the way back.
    assert train["collective_counts"]["all-gather"] >= 2 * 3 * 2 * 4
    assert 0 <= train["exposed_seconds"] <= train["collective_seconds"]
    assert train["collective_seconds"] == pytest.approx(train["bounds_seconds"]["collectives"])
    assert train["memory_bytes"] > train["argument_bytes"]
    assert train["bound_seconds"] == max(train["bounds_seconds"].values())
    # Heads of 72 fill 72 rows of 128, and kernels of their own for dq, and dk and dv, would do seven products.
    assert train["occupied_flops"] > train["executed_flops"]
    assert 0 < train["estimated_utilisation"] < train["utilisation"] < 0.7501
    assert not train["kernels_not_estimated"] and train["estimated_cycles"] > 0

    assert (sample["program"], sample["batch_size"], sample["fsdp"]) == ("sample", 4, 1)
    # Two branches of four steps, forward alone, of one picture for six.
    assert sample["flops"] / train["flops"] == pytest.approx(2 * 4 / (3 * 6), rel=0.05)
    assert sample["kernels"] >= 2
    # Each chip draws its own picture, both branches.
    assert not sample["collective_counts"]

    # What is there is not compiled again, and the table has a line for each.
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "compiling" not in printed.err
    assert [line.split("|")[1].split() for line in printed.out.splitlines()[2:]] == [
        ["tiny", "train"],
        ["tiny", "sample"],
    ]
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("config,side,tflops", [("stage3_512", 64, 2.1), ("sigma_2k", 128, 8.92)])
def test_decoding_is_of_a_picture_or_of_a_tile(config, side, tflops):
    config = read_config_file(str(ROOT / "configs" / f"{config}.py"))
    config.data.batch_size = 2
    lowered, flops = lower_decoding(config, np.array(jax.devices()[:1]))
    assert lowered.args_info[0][1].shape == (2, side, side, 4)
    assert [out.shape for out in jax.tree.leaves(lowered.out_info)] == [(2, 8 * side, 8 * side, 3), ()]
    assert flops == pytest.approx(2 * tflops * 1e12, rel=0.02)


def test_one_picture_on_four_chips(config, tmp_path, capsys):
    """A branch of guidance on each half of the chips, and half of its tokens on each chip."""
    argv = ["--config", config, "--topology=v5e:2x2", "--program=sample", f"--out={tmp_path / 'aot.jsonl'}", "--json"]
    argv += ["--config.model.depth=1", "--config.sample.num_steps=2", "--mesh=data=2,context=2"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["batch_size"], found["context"], per_chip(found)) == (1, 2, "1/4")
    assert found["flops"] == sampling_flops(drawn_alone(config)) / 4
    # Keys and values in each step, and nothing of the weights.
    assert found["collective_counts"]["all-gather"] == 2 * 2
    assert found["collective_bytes"]["all-gather"] == 2 * 2 * 128 * 144 * 2


def drawn_alone(config):
    config = read_config_file(config, ["--config.model.depth=1", "--config.sample.num_steps=2"])
    config.data.batch_size = 1
    return config


def record(path, case, **result):
    figures = {
        "chips": 16,
        "batch_size": 16,
        "fsdp": 1,
        "context": 1,
        "capacity_bytes": 16e9,
        "flops": 1e12,
        "compiler": "no",
    }
    line = json.dumps({"case": dataclasses.asdict(case), "result": figures | result})
    path.write_text((path.read_text() if path.exists() else "") + line + "\n")


FIGURES = {
    "chips": 16,
    "batch_size": 16,
    "fsdp": 1,
    "context": 1,
    "accumulation_steps": 1,
    "capacity_bytes": 16e9,
    "flops": 1e12,
    "compiler": "Used 20.52G of 15.75G hbm",
}


@pytest.mark.parametrize("width", [60, 80, 100, 132])
def test_a_table_wider_than_the_terminal_is_turned(width):
    rows = [(Case(f"configs/stage{n}.py", (), "v5e:4x4"), FIGURES) for n in range(7)]
    lines = list(table(rows, width))
    assert max(map(len, lines)) <= width
    programs = [word for line in lines if line.startswith("program") for word in line.split()[1:] if word != "train"]
    assert programs == [f"stage{n}" for n in range(7)]
    assert sum(line.startswith("total / capacity GB") for line in lines) == lines.count("") + 1


@pytest.mark.parametrize("width", [None, 1000])
def test_a_table_that_fits_is_markdown(width):
    lines = list(table([(Case("a.py", (), "v5e:4x4"), FIGURES)] * 2, width))
    assert len(lines) == 4 and all(line.startswith("| ") and line.count("|") == 19 for line in lines)


def test_fit_takes_the_fewest_accumulation_steps(config, tmp_path, capsys):
    out = tmp_path / "aot.jsonl"
    settings = ("--config.data.batch_size=96",)
    case = Case(config, settings, "v5e:4x4")
    for steps, fits in ((1, False), (2, False), (3, True)):
        record(out, dataclasses.replace(case, accumulation_steps=steps), fits=fits, accumulation_steps=steps)
    out.write_text(out.read_text() + '{"case": {"config"')  # Killed while it was written.
    argv = ["--config", config, *settings, "--topology=v5e:4x4", "--program=train", f"--out={out}", "--json"]
    assert main([*argv, "--fit"]) == 0
    assert json.loads(capsys.readouterr().out)["accumulation_steps"] == 3


@pytest.mark.parametrize(
    "left", ["{", '{"case": {"config"', '{"case": 1, "result": {}}', '"\\u00', "\udcff\udcfe", "[" * 9999]
)
def test_half_a_line_costs_no_other(left, tmp_path):
    """What a kill left behind neither takes the next line with it nor stands in the way of those before."""
    out = tmp_path / "aot.jsonl"
    cases = [Case(f"{n}.py", (), "v5e:4x4") for n in range(3)]
    for case in cases:
        append_result(out, case, FIGURES | {"fits": False})
        with out.open("ab") as file:
            file.write(left.encode("utf-8", "surrogateescape"))
    assert [known_result(out, case) for case in cases] == [FIGURES | {"fits": False}] * 3


@pytest.mark.parametrize(
    "changed", [{"fits": 1}, {"flops": "1"}, {"capacity_bytes": None}, {"chips": 2.0}, {"compiler": 3}, {"context": 0}]
)
def test_damaged_figures_count_as_not_there(changed, tmp_path):
    case, out = Case("a.py", (), "v5e:4x4"), tmp_path / "aot.jsonl"
    append_result(out, case, FIGURES | {"fits": False} | changed)
    assert known_result(out, case) is None
    append_result(out, case, FIGURES | {"fits": True})
    assert known_result(out, case)["fits"] is True


def test_files_of_before_are_read(tmp_path):
    """Where a case did not say of how many blocks, nor how chips draw."""
    case, out = Case("a.py", (), "v5e:4x4"), tmp_path / "aot.jsonl"
    append_result(out, case, FIGURES | {"fits": True})
    out.write_text(out.read_text().replace(', "blocks": 0, "mesh": ""', ""))
    assert known_result(out, case)["fits"] is True
    assert known_result(out, dataclasses.replace(case, blocks=2)) is None


def test_results_have_one_owner(config, tmp_path, capsys):
    out = tmp_path / "aot.jsonl"
    with held_elsewhere(tmp_path / ".aot.jsonl.lock"):
        assert main(["--config", config, "--topology=v5e:4x4", f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert f"--out {out} is being written by another process" in said and "compiling" not in said


def test_what_is_left_open_is_tried_lightest_first(config):
    case = Case(config, ("--config.data.batch_size=32", "--config.model.remat=auto"), "v5e:4x4")
    tried = [(a.settings[2], a.accumulation_steps) for a in attempts(case, fit=True) if len(a.settings) == 3]
    assert tried == [(f"--config.model.remat={name}", n) for name in ("dots", "attention", "full") for n in (1, 2)]


def with_context(case, context):
    return dataclasses.replace(case, settings=(*case.settings, f"--config.mesh.context={context}"))


def test_what_cannot_fit_is_not_tried(config):
    case = Case(config, ("--config.data.batch_size=96", "--config.model.resolution=1024"), "v5e:4x4")
    tried = [(attempt.accumulation_steps, attempt.settings[2:]) for attempt in attempts(case, fit=True)]
    # Where one picture at a time is too much, it is split over chips, which then have more pictures together.
    split = [(6 * n, (f"--config.mesh.context={n}",)) for n in (2, 4, 8)]
    assert tried == [(1, ()), (2, ()), (3, ()), (6, ()), *split]
    assert all(attempt.settings[-1].endswith("=4") for attempt in attempts(with_context(case, 4), fit=True))
    large = dataclasses.replace(case, settings=("--config.data.batch_size=96000", *case.settings[1:]))
    first = next(attempts(large, fit=True)).accumulation_steps
    # The inputs of 3 blocks over 4,096 tokens of 144 channels in bfloat16.
    kept = kept_bytes(case_config(case))
    assert kept == 3 * 4096 * 144 * 2
    assert 6000 / first * kept < 16e9 and first > 1
    # With "dots" those of eleven products beside both attentions' results.
    keeping = dataclasses.replace(case, settings=(*case.settings, "--config.model.remat=dots"))
    assert kept_bytes(case_config(keeping)) == 14 * kept
    # And both attentions' results.
    remembering = dataclasses.replace(case, settings=(*case.settings, "--config.model.remat=attention"))
    assert kept_bytes(case_config(remembering)) == 3 * kept
    assert [attempt.accumulation_steps for attempt in attempts(case, fit=False)] == [0]


@pytest.mark.parametrize(
    ("batch", "topology", "expected"),
    [(27, "v5e:4x4", 16), (27, "2xv5e:4x4", 32), (27, "v5e:16x16", 256), (27, "v5e:3x3", 27)],
)
def test_batches_are_multiples_of_the_chips(config, batch, topology, expected):
    assert case_config(Case(config, (f"--config.data.batch_size={batch}",), topology)).data.batch_size == expected


def test_topologies():
    two = parse_topology("2xv5p:4x4x8")
    assert (two.slices, two.name, two.chips, two.hardware.memory_bytes) == (2, "v5p:4x4x8", 256, 95e9)
    assert parse_topology("v6e:16x16").slices == 1


def test_state_is_split_until_its_share_is_small(config):
    small = types.SimpleNamespace(memory_bytes=4e6)
    settings = case_config(Case(config, (), "v5e:4x4"))
    topology = dataclasses.replace(parse_topology("2xv5e:4x4"), hardware=small)
    # About 1.2 million parameters, four times, in float32.
    assert default_fsdp(settings, topology) == 16
    assert default_fsdp(settings, dataclasses.replace(topology, slices=8)) == 4
    assert default_fsdp(settings, parse_topology("v5e:4x4")) == 1


def test_what_is_computed_again(config):
    """All of the forward pass, or all of it but attention."""

    def recomputed(*settings):
        whole = case_config(Case(config, ("--config.data.batch_size=16", *settings), "v5e:4x4"))
        flops = train_flops(whole)
        return recomputed_flops(whole, flops), flops

    assert recomputed("--config.model.remat=dots")[0] == recomputed("--config.model.remat=none")[0] == 0
    again, flops = recomputed("--config.model.remat=full")
    assert again == flops / 3
    compressed = ("--config.model.kv_compress_ratio=2", "--config.model.kv_compress_from=0")
    for settings, keys in (((), 256 + 120), (compressed, 64 + 120)):
        again, flops = recomputed("--config.model.remat=attention", *settings)
        attention = 16 * 3 * 4 * 256 * keys * 144
        assert again == pytest.approx(flops / 3 - attention)
        # What is left are products with weights: 14 hidden_size² multiply-adds of each block for each token, and more.
        assert again > 2 * 16 * 256 * 3 * 14 * 144**2


def test_what_the_compiler_says_of_memory():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.52G of 15.75G hbm. Exceeded by 4.77G.\n"
    )
    assert out_of_memory(message) == "Used 20.52G of 15.75G hbm"
    message = "the total memory required for HLO temporaries (54.11G) exceeds available HBM (15.75G)."
    assert out_of_memory(message) == "54.11G of scratch, 15.75G hbm"
    assert out_of_memory("RESOURCE_EXHAUSTED: otherwise\nmore") == "RESOURCE_EXHAUSTED: otherwise"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topology=v5e"], "such as v5e:16x16"),
        (["--topology=h200:4x4"], "with a CHIP of v5e, v5p, v6e"),
        (["--topology=v5e:0x2"], "--topology=v5e:0x2: must be"),
        (["--topology=v5e:2x0"], "of numbers from 1 up"),
        (["--topology=0xv5e:2x2"], "of numbers from 1 up"),
        (["--topology=v5e:4x4", "--config.model.dpeth=3"], "did you mean config.model.depth"),
        (["--topology=v5e:4x4", "--config.mesh.fsdp=5"], "must divide the number of devices, 16"),
        (["--topology=v5e:4x4", "--config.train.accumulation_steps=7"], "7 accumulation step"),
        (["--topology=v5e:4x4", "--mesh=context=3"], "takes 3 devices, and here are 16"),
        (["--topology=v5e:4x4", "--mesh=tensor=2"], 'must be such as "context=4"'),
        (["--topology=v5e:16x16", "--mesh=context=256", "--config.model.resolution=128"], "the 64 tokens of 128 px"),
    ],
)
def test_input_errors_come_before_any_compilation(config, tmp_path, capsys, argv, message):
    assert main(["--config", config, *argv, f"--out={tmp_path / 'aot.jsonl'}"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "compiling" not in printed.err


@pytest.mark.parametrize("argv", [[], ["--config=a.py"], ["--all", "--config=a.py"], ["--topology=v5e:4x4"]])
def test_usage_errors(capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "give --config and --topology, or --all" in capsys.readouterr().err


@pytest.mark.parametrize("times", [1, 2])
def test_training_has_its_mesh_from_the_config(times, capsys):
    with pytest.raises(SystemExit):
        main(["--config=a.py", "--topology=v5e:4x4", *["--program=train"] * times, "--mesh=context=4"])
    assert "training's is --config.mesh" in capsys.readouterr().err
