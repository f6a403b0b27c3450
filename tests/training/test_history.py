"""Rows of metrics outlive damage to others, and a damaged run.json does not keep a run from going on."""

import json

import jax
import jax.numpy as jnp
import pytest

from pixart_jax.training.history import History
from pixart_jax.training.record import RUN_FILE, read_run, record_run

ROWS = [{"step": step, "loss": 1.0 / step} for step in (10, 20, 30, 40)]


@pytest.mark.parametrize("damage", [b"", b"   ", b'{"step": 20, "lo', b"\xff\xfe\x00", b"null", b'{"loss": 1}', b"[1]"])
def test_a_damaged_line_takes_no_other_with_it(damage, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row).encode() for row in ROWS]
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]) + b"\n")
    history = History(path, 30)
    history.append(40, {"loss": 2.0})
    history.close()
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert found == [ROWS[0], ROWS[2], {"step": 40, "loss": 2.0}]
    assert "line 2 is damaged" in caplog.text


def test_the_line_that_a_kill_has_cut_is_dropped_in_silence(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"step": 50, "lo', encoding="utf-8")
    assert History(path, 100).rows == ROWS
    assert not caplog.records


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"versions": 3}', b"\xff"])
def test_a_damaged_run_json_is_set_aside(content, tmp_path, caplog):
    params = {"kernel": jnp.zeros((2, 3))}
    compiled = jax.jit(lambda x: x + 1).lower(params["kernel"]).compile()
    (tmp_path / RUN_FILE).write_bytes(content)
    record_run(tmp_path, params, {}, compiled)
    assert read_run(tmp_path)["num_parameters"] == 6
    assert (tmp_path / f"{RUN_FILE}.damaged").read_bytes() == content and "IS DAMAGED" in caplog.text
