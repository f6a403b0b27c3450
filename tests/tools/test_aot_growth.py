"""tools.aot --growth: which programs it compiles, and how it carries their figures on to the whole model's."""

import json

import pytest
from PIL import Image

from tools.aot import append_result, main
from tools.aot_compile import case_config
from tools.aot_growth import growth_cases

CONFIG = """
from pixart_jax.config import default_config

def get_config():
    config = default_config()
    config.model.update({"hidden_size": 144, "depth": 28, "num_heads": 2, "resolution": 256, "text_dim": 64})
    config.model.update({"kv_compress_ratio": 2, "kv_compress_from": 14})
    config.data.batch_size = 40
    return config
"""
TOPOLOGIES = ("v5e:1x1", "v5e:2x2", "v5e:4x4")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def figures(case, seconds, scratch, sent, exposed):
    """Of a program whose blocks have a part of each, beside what is there without blocks."""
    chips = 16 if case.topology == "v5e:4x4" else int(case.topology[-1]) ** 2
    return {
        "fits": True,
        "chips": chips,
        "batch_size": 2 * chips,
        "accumulation_steps": 1,
        "fsdp": 1,
        "context": 1,
        "remat": "dots",
        "capacity_bytes": 16e9,
        "flops": 1e12,
        "total_bytes": 1e9,
        "estimated_seconds": 0.01 + case.blocks * seconds,
        "scratch_bytes": 1e8 + case.blocks * scratch,
        "collective_bytes": {"all-reduce": 1e6 + case.blocks * sent} if sent else {},
        "collective_seconds": case.blocks * 2 * exposed,
        "exposed_seconds": case.blocks * exposed,
    }


def test_each_chip_has_as_many_pictures(config):
    cases = growth_cases(config, (), TOPOLOGIES)
    assert [(case.topology, case.blocks) for case in cases] == [(name, n) for name in TOPOLOGIES for n in (2, 4)]
    configs = [case_config(case) for case in cases]
    assert [each.data.batch_size for each in configs] == [2, 2, 8, 8, 32, 32]
    # Half of the blocks compress, as in the whole model; what the config leaves open is the same everywhere.
    assert [(each.model.depth, each.model.kv_compress_from) for each in configs] == [(2, 1), (4, 2)] * 3
    assert {each.model.remat for each in configs} == {"dots"}


def test_what_leaves_no_room_is_computed_again(config):
    """Of 16 GB: 28 blocks of 65,536 tokens and 144 channels in float32 keep 14.8 GB with "dots", of a quarter 3.7."""
    for resolution, policy in ((2048, "dots"), (4096, "attention")):
        settings = (f"--config.model.resolution={resolution}", "--config.data.batch_size=1")
        case = growth_cases(config, settings, ("v5e:1x1",))[0]
        assert case.settings[-1] == f"--config.model.remat={policy}"


def recorded(config, tmp_path, parts):
    out = tmp_path / "aot.jsonl"
    for case in growth_cases(config, (), TOPOLOGIES):
        append_result(out, case, figures(case, *parts[case.topology]))
    return ["--config", config, *(f"--topology={name}" for name in TOPOLOGIES), f"--out={out}"]


PARTS = {"v5e:1x1": (1e-3, 1e7, 0, 0), "v5e:2x2": (1.01e-3, 1e7, 3e6, 1e-5), "v5e:4x4": (1.02e-3, 1e7, 4e6, 1e-5)}


def test_figures_of_the_whole_model(config, tmp_path, capsys):
    """What is there is not compiled again; lines go on to 28 blocks."""
    picture = tmp_path / "growth.png"
    argv = recorded(config, tmp_path, PARTS)
    assert main([*argv, f"--growth={picture}", "--json"]) == 0
    printed = capsys.readouterr()
    assert "compiling" not in printed.err
    one, four, many = map(json.loads, printed.out.splitlines())
    assert (one["chips"], four["chips"], many["chips"], many["pictures"]) == (1, 4, 16, 2)
    assert one["seconds"] == pytest.approx(0.01 + 28 * 1e-3)
    assert many["seconds"] == pytest.approx(0.01 + 28 * (1.02e-3 + 1e-5))
    assert many["scratch_bytes"] == pytest.approx(1e8 + 28 * 1e7)
    assert (one["sent_bytes"], many["sent_bytes"]) == (0, pytest.approx(1e6 + 28 * 4e6))
    assert many["exposed_seconds"] == pytest.approx(many["collective_seconds"] / 2)
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 4 * drawn.size[1]


def test_the_table_marks_what_is_not_constant(config, tmp_path, capsys):
    assert main([*recorded(config, tmp_path, PARTS), f"--growth={tmp_path / 'growth.png'}"]) == 0
    one, four, many = ([cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()[2:])
    assert one[1:7] == ["tiny", "v5e:1x1", "1", "2", "dots", "1"]
    assert one[7:] == ["0.038 (-2.2%)", "0", "", "0.38", "1 / 16", "**0 (-100.0%)**", ""]
    assert four[9] == many[9] == "50%" and four[12] == "**0.085 (-24.8%)**" and many[12] == "0.113"


def test_what_does_not_fit_is_told(config, tmp_path, capsys):
    argv = recorded(config, tmp_path, PARTS)
    text = (tmp_path / "aot.jsonl").read_text()
    (tmp_path / "aot.jsonl").write_text(
        text.replace('"total_bytes": 1000000000.0', '"compiler": "Used 20G of 15G hbm"')
    )
    assert main([*argv, f"--growth={tmp_path / 'growth.png'}"]) == 2
    assert "tiny on v5e:1x1: even a few blocks do not fit: Used 20G of 15G hbm" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_refused_first(tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = ["--config=configs/stage3_512.py", "--topology=v5e:2x2", f"--out={tmp_path / 'out'}"]
    assert main([*argv, f"--growth={tmp_path / 'file/growth.png'}"]) == 2
    assert "growth.png: the folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv", [["--growth=a.png", "--fit"], ["--growth=a.svg"], ["--growth=a.png", "--program=train"]]
)
def test_usage_errors_of_growth(capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        main(["--config=a.py", "--topology=v5e:4x4", *argv])
    assert stopped.value.code == 2
    assert "without --fit and --program" in capsys.readouterr().err
