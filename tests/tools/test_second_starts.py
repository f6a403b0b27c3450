"""How a command starts: what it does not wait for."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# `main` says whether garbage is collected, and how much of it is looked through no more.
CODE = """
import gc, sys
sys.argv[0] = {program!r}
import tools
before = gc.isenabled()
from pixart_jax.commands import GOES_ON, tool
@tool(GOES_ON)
def main():
    print(before, gc.isenabled(), gc.get_freeze_count() > 1000)
    return 0
main()
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_commands_alone_load_without_collecting_garbage():
    for program in ("-m", "/usr/bin/pixart-sample"):
        assert run(CODE.format(program=program)).split() == ["False", "True", "True"]
    assert run(CODE.format(program="-c")).split() == ["True", "True", "False"]


def test_drawing_loads_nothing_that_only_others_need():
    found = run("import sys, tools.sample; print(*sys.modules)").split()
    slow = {"transformers", "torch", "tensorflow", "diffusers", "grain", "orbax", "jax.experimental.pallas"}
    assert "jax" in found and not slow & set(found)
