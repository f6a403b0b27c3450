"""What a tool compiles, the next process loads."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Compiles one program, and says how many it found compiled. JAX is imported first, as most tools do, or in `main`.
CODE = """
{first}
from pixart_jax.commands import GOES_ON, tool
@tool(GOES_ON)
def main():
    import jax
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    jax.jit(lambda x: x + 1)(jax.numpy.zeros(3)).block_until_ready()
    print(hits.count("/jax/compilation_cache/cache_hits"))
    return 0
main()
"""


def run(cache, first="import jax", **settings):
    """(how many programs were found compiled, stderr)"""
    free = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    settings = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XDG_CACHE_HOME": str(cache), **settings}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(first=first)], cwd=ROOT, env=free | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout), done.stderr


@pytest.mark.parametrize("first", ["import jax", ""])
def test_the_next_process_finds_them(tmp_path, first):
    found, said = run(tmp_path, first)
    assert found == 0 and said.startswith(f"compiled programs are kept in {tmp_path}/pixart_jax/compiled/")
    found, said = run(tmp_path, first)
    assert found > 0 and not said


def test_the_user_settles_it(tmp_path):
    assert run(tmp_path / "no", JAX_ENABLE_COMPILATION_CACHE="false") == (0, "")
    assert run(tmp_path / "no", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == (0, "")
    assert list((tmp_path / "own").iterdir()) and not (tmp_path / "no").exists()


def test_without_a_place_for_them_it_compiles(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert run(tmp_path / "file") == (0, "")
