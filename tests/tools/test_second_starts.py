"""How a command starts: what it does not wait for."""

import os
import pathlib
import subprocess
import sys

import pytest

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
    print(before, gc.isenabled(), gc.get_freeze_count() > 1000, gc.get_threshold()[0] > 10_000)
    return 0
main()
"""


# Says whether malloc asks Linux for huge pages for an array of XLA's, and as which process.
MAPPED = """
import os, sys
sys.argv[0] = {program!r}
print(os.getpid(), flush=True)  # What is not written yet, starting once more loses.
import tools
import jax.numpy as jnp
array = jnp.ones(2**24).block_until_ready()
lines = open("/proc/self/smaps", encoding="utf-8").read().splitlines()
starts = [i for i, line in enumerate(lines) if line.split()[0].count("-") == 1]
for start, end in zip(starts, starts[1:] + [len(lines)]):
    low, high = (int(text, 16) for text in lines[start].split()[0].split("-"))
    if low <= array.unsafe_buffer_pointer() < high:
        print("hg" in next(line for line in lines[start:end] if line.startswith("VmFlags")).split())
print(os.environ.get("GLIBC_TUNABLES"))
"""
SETTLED = {"GLIBC_TUNABLES", "PIXART_JAX_HUGE_PAGES"}


def run(code, **environment):
    environment = {name: value for name, value in os.environ.items() if name not in SETTLED} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_commands_alone_load_without_collecting_garbage():
    for program in ("-m", "/usr/bin/pixart-sample"):
        assert run(CODE.format(program=program)).split() == ["False", "True", "True", "True"]
    assert run(CODE.format(program="-c")).split() == ["True", "True", "False", "False"]


@pytest.mark.parametrize(
    ("program", "tunables", "asks"),
    [
        ("-m", None, True),
        ("/usr/bin/pixart-sample", None, True),
        ("/usr/bin/pixart-train", None, True),
        ("/home/me/pixart_jax/main.py", "glibc.malloc.arena_max=8", True),
        ("-m", "glibc.malloc.hugetlb=0", False),
        ("/home/me/mine.py", None, False),
    ],
)
def test_a_command_asks_for_huge_pages_where_linux_has_them_on_request(program, tunables, asks):
    asks = asks and on_request()
    settled = {"GLIBC_TUNABLES": tunables} if tunables else {}
    first, *rest = run(MAPPED.format(program=program), **settled).splitlines()
    if asks:
        assert rest.pop(0) == first  # It started once more, as the same process.
    asked = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1" if asks else None]))
    assert rest == [str(asks), asked or "None"]


def test_a_command_starts_once_more_at_most():
    """Even where nothing comes of it: a linker that grants more than the user has clears GLIBC_TUNABLES."""
    code = MAPPED.format(program="-m").replace("import os, sys", "import os, sys\nos.environ.pop('GLIBC_TUNABLES', 0)")
    assert len(run(code).splitlines()) == 3 + on_request()


def on_request():
    path = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.exists() and "[madvise]" in path.read_text(encoding="ascii")


def test_drawing_loads_nothing_that_only_others_need():
    found = run("import sys, tools.sample; print(*sys.modules)").split()
    slow = {"transformers", "torch", "tensorflow", "diffusers", "grain", "orbax", "jax.experimental.pallas"}
    assert "jax" in found and not slow & set(found)
