"""How commands end: Ctrl-C, a full disk, and a terminal or arguments that are not in UTF-8, in real processes."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from interrupted import interrupt

from pixart_jax.commands import BEGINS_AGAIN, GOES_ON, NOBODY_READS, NOTHING_BEGAN, text_argument, tool
from pixart_jax.errors import InputError
from pixart_jax.files import errors_naming, local_path
from pixart_jax.interrupts import INTERRUPTED

ROOT = pathlib.Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
# Says where it is, and waits to be interrupted.
WAIT = "print('waiting', flush=True); import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (
            "import sys; from tools import make_quickstart_data as t; t.make = lambda *_: exec(" + repr(WAIT) + ");"
            "sys.exit(t.main(['--out', sys.argv[1]]))",
            INTERRUPTED,
            f"interrupted; the same command {BEGINS_AGAIN}\n",
        ),
        (
            "import sys; from tools.evaluate import command as t; t.evaluate = lambda _: exec(" + repr(WAIT) + ");"
            "sys.exit(t.main(['a', '--inception', 'b', '--statistics', 'c.npz', '--out', sys.argv[1]]))",
            INTERRUPTED,
            f"interrupted; the same command {GOES_ON}\n",
        ),
        # While the modules of a tool are read: Python ends with the signal then.
        ("import tools;" + WAIT, -signal.SIGINT, f"interrupted; the same command {NOTHING_BEGAN}\n"),
        (
            "import pixart_jax.main as m; m.parse_flags = lambda _: exec(" + repr(WAIT) + "); m.run()",
            INTERRUPTED,
            "interrupted; the same command goes on from the last checkpoint, or begins again where there is none\n",
        ),
    ],
    ids=["make_quickstart_data", "evaluate", "imports", "training"],
)
def test_ctrl_c_is_one_line(tmp_path, code, status, words):
    found = interrupt(code, str(tmp_path / "out"))
    assert (found.status, found.err) == (status, words)


def test_every_tool_ends_the_same_way():
    for path in (ROOT / "tools").rglob("*.py"):
        if "def main(argv: Sequence[str] | None" in (text := path.read_text(encoding="utf-8")):
            assert re.search(r"^@tool\(\w+\)\ndef main", text, re.MULTILINE), path


def test_bad_input_is_one_line(capsys):
    @tool(GOES_ON)
    def main(name, *, cure):
        raise InputError(f"{name} is none; {cure}")

    assert main("--out x", cure="name another") == 2
    assert capsys.readouterr() == ("", "error: --out x is none; name another\n")


def test_no_tool_prints_what_the_decorator_does():
    for path in (ROOT / "tools").rglob("*.py"):
        assert 'print(f"error: ' not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("done", ["written", "made"])
def test_an_output_that_cannot_be_written_is_one_line(done, capsys):
    @tool(GOES_ON)
    def main():
        with errors_naming("out/x", done):
            raise PermissionError(errno.EACCES, "no rights", "out/x/y.png")

    assert main() == 2
    assert (
        capsys.readouterr().err == f"error: out/x cannot be {done}: [Errno {errno.EACCES}] no rights: 'out/x/y.png'\n"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line(code, capsys):
    @tool(GOES_ON)
    def main():
        raise OSError(code, os.strerror(code), "out/x.png")

    assert main() == 2
    assert capsys.readouterr().err == f"error: out/x.png: {os.strerror(code)}; make room: the same command {GOES_ON}\n"


def test_other_errors_of_files_are_not_taken_for_a_full_disk():
    @tool(GOES_ON)
    def main():
        raise PermissionError(errno.EACCES, "no rights", "x")

    with pytest.raises(PermissionError):
        main()


MANY_LINES = """
import sys
from pixart_jax.commands import GOES_ON, tool

@tool(GOES_ON)
def main():
    for number in range({count}):
        print(number)
    return 0

sys.exit(main())
"""


# Many lines break off in the middle, few only when they are written at the end.
@pytest.mark.parametrize("count", [100_000, 10])
def test_head_has_enough(count):
    process = subprocess.Popen(
        [sys.executable, "-c", MANY_LINES.format(count=count)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == NOBODY_READS


def test_other_broken_pipes_are_raised():
    @tool(GOES_ON)
    def main():
        raise BrokenPipeError(errno.EPIPE, "of a worker")

    with pytest.raises(BrokenPipeError):
        main()


def run(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", *args], cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"} | env, capture_output=True
    )


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("tools.convert", "--help"), 0, rb"Hugging Face"),
        (("tools.convert", b"\xff/model", "out"), 2, rb"\\udcff/model"),
        (("tools.sample", "--checkpoint", "none", "--prompt", b"caf\xe9"), 2, rb"caf\\udce9.* bytes that are no UTF-8"),
        (("tools.inspect_data", "näher".encode()), 2, rb"set PYTHONUTF8=1"),
        (("pixart_jax.main", "--config=quickstart", b"--workdir=/tmp/\xff"), 2, rb"--workdir .*not in UTF-8"),
        (
            ("pixart_jax.main", "--config=quickstart", b"--config.init_from=\xff", "--workdir=x"),
            2,
            rb"config.init_from",
        ),
    ],
    ids=["help", "weights", "prompt", "path", "workdir", "setting"],
)
def test_a_terminal_that_knows_ascii_alone(args, status, words):
    result = run(*args, **ASCII)
    assert result.returncode == status, result.stderr
    assert re.search(words, result.stdout + result.stderr)
    assert b"Traceback" not in result.stderr and b"UnicodeEncodeError" not in result.stderr


@pytest.mark.parametrize("raw", [b"\xff", b"caf\xe9", b"\xed\xa0\x80"])
def test_arguments_that_are_no_utf8(raw):
    text = os.fsdecode(raw)
    with pytest.raises(InputError, match=r"--out .*is not in UTF-8"):
        local_path(text, "--out")
    with pytest.raises(Exception, match="no UTF-8"):
        text_argument(text)


@pytest.mark.parametrize("text", ["a red cat", "café", "猫", "🐈"])
def test_utf8_is_understood_in_a_locale_of_ascii(text):
    assert text_argument(text.encode().decode("ascii", "surrogateescape")) == text_argument(text) == text
