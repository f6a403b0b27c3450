"""tools.tune: what it tries, reads off a compiler's schedule, and writes."""

import json
import types

import pytest

from pixart_jax.models.splash_attention import Blocks, blocks_by_rule
from tools import tune
from tools.tune import candidates, main, parse_shape, scheduled_cycles, write_table

SCHEDULE = """= control target key start
= control target key end

     0   :  { %s1 = smov [#allocation3] }
   0x1   :  { %s2 = smov 0 }
   0x2 LB: > { %s3 = sadd.s32 1, %s2  ;;  %p50_p0 = scmp.ge.s32.totalorder %s3, 2 }
   0x3   : > { %p1 = scmp.ge.s32.totalorder %s3, 34 /* loop exit test */ }
   0x4   :  { %4 = vsyncpa [#allocation6], 1 }
"""


def test_cycles_are_bundles_times_steps(tmp_path):
    name = "17-splash_mha_{}_segmented_residuals.1-{}.txt"
    for kind in ("fwd", "dkv"):
        (tmp_path / name.format(kind, "72-final_bundles")).write_text(SCHEDULE)
    (tmp_path / name.format("fwd", "71-schedule-analysis_final_bundles")).write_text("total scheduled bundles: 9")
    (tmp_path / "18-fusion.1-72-final_bundles.txt").write_text(SCHEDULE)
    assert scheduled_cycles(tmp_path) == {"fwd": 5 * 32, "dkv": 5 * 32}


@pytest.mark.parametrize(("queries", "keys"), [(256, 256), (4096, 4096), (4096, 384), (16384, 4096)])
def test_candidates_divide_the_shape_and_begin_with_the_rule(queries, keys):
    tried = list(candidates(queries, keys))
    assert tried[0] == blocks_by_rule(queries, keys, 2)
    assert all(not (queries % b.queries or keys % b.keys or b.keys % b.at_once) for b in tried)


def test_the_fastest_goes_into_the_table(tmp_path, monkeypatch, capsys):
    """With what it has of other shapes; what the rule would take needs no entry; and nothing is tried twice."""
    table = tmp_path / "blocks.json"
    table.write_text('{"v5e": {"256x256": [128, 128, 128], "1024x1024": [128, 128, 128]}}')
    monkeypatch.setattr(tune, "TABLE_FILE", table)
    calls = []

    def run(arguments, **_):
        case = json.loads(arguments[3].removeprefix("--child="))
        calls.append(case["blocks"])
        if case["blocks"][1] == 1024 and case["blocks"][0] == 1024:
            return types.SimpleNamespace(returncode=1, stdout="", stderr="Ran out of memory in memory space vmem")
        result = {"total": 1000 - case["blocks"][0] / 10, "unit": "cycles", "kernels": {}}
        return types.SimpleNamespace(returncode=0, stdout=json.dumps(result), stderr="")

    monkeypatch.setattr(tune.subprocess, "run", run)
    argv = ["--chip=v5e", "--shapes=1024x1024,128x128", f"--out={tmp_path / 'tune.jsonl'}", "--write"]
    assert main(argv) == 0
    assert json.loads(table.read_text()) == {"v5e": {"256x256": [128, 128, 128], "1024x1024": [1024, 512, 512]}}
    assert "too much for the vector memory" in capsys.readouterr().out
    before = len(calls)
    assert main(argv) == 0 and len(calls) == before


def test_a_table_is_made_where_there_is_none(tmp_path):
    write_table(tmp_path / "new.json", {"v6e": {(1024, 512): Blocks(256, 512, 128)}})
    assert json.loads((tmp_path / "new.json").read_text()) == {"v6e": {"1024x512": [256, 512, 128]}}


@pytest.mark.parametrize("shapes", ["-1x128", "1024", "0x128"])
def test_shapes_that_cannot_be(shapes, tmp_path, capsys):
    assert main([f"--shapes={shapes}", f"--out={tmp_path / 'out'}"]) == 2
    assert "must be QUERIESxKEYS" in capsys.readouterr().err


def test_a_length_is_tried_as_attention_fills_it_up():
    assert parse_shape("3968x120") == (4096, 128)
    assert parse_shape("16384x4096") == (16384, 4096)
