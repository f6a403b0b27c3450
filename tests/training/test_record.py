"""What a run writes down about its code."""

import json
import re
import subprocess

import jax
import jax.numpy as jnp

from pixart_jax.training.record import RUN_FILE, code_commit, read_run, record_run


def git(folder, *arguments):
    user = ["-c", "user.name=somebody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", "-C", str(folder), *user, *arguments], check=True, capture_output=True)


def test_the_commit_of_the_code(tmp_path):
    code = tmp_path / "code.py"
    code.write_text("1")
    assert code_commit(code) is None
    git(tmp_path, "init")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-m", "another's")
    assert code_commit(code) is None
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "ours")
    assert re.fullmatch("[0-9a-f]{40}", code_commit(code))
    commit = code_commit(code)
    code.write_text("2")
    assert code_commit(code) == f"{commit}-dirty"


def test_other_versions_than_the_run_started_with_are_named(tmp_path, caplog):
    params = {"kernel": jnp.zeros((2, 3))}
    compiled = jax.jit(lambda x: x + 1).lower(params["kernel"]).compile()
    record_run(tmp_path, params, {"bias": jnp.zeros(4)}, compiled)
    record_run(tmp_path, params, {"bias": jnp.zeros(4)}, compiled)
    assert not caplog.records
    recorded = read_run(tmp_path)
    assert recorded["num_parameters"] == 10 and recorded["num_trained"] == 6
    assert recorded["commit"] == code_commit()
    recorded["versions"]["jax"] = "0.1"
    recorded["commit"] = "abc"
    (tmp_path / RUN_FILE).write_text(json.dumps(recorded))
    record_run(tmp_path, params, {"bias": jnp.zeros(4)}, compiled)
    assert f"jax was 0.1 when this run last started, now it is {jax.__version__}" in caplog.text
    assert "pixart_jax was abc when this run last started" in caplog.text
