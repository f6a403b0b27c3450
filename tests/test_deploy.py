"""The container, and the script for TPU VMs: linted; and run by a gcloud of this test's own. No daemon runs here."""

import pathlib
import subprocess
import sys

from tiny_run import ROOT

DEPLOY = ROOT / "deploy"
BIN = pathlib.Path(sys.executable).parent
# As a worker: what is sent to it is run here, in a home of its own.
GCLOUD = """#!/bin/bash
printf '%s\\n' "$*" >>"$HOME/asked"
for word in "$@"; do
  case $word in
    scp) cp "$5" "$HOME/pixart_jax.tar.gz" ;;
    --command=*) cd "$HOME" && exec bash -c "${word#--command=}" ;;
  esac
done
"""
TRAIN = """#!/bin/bash
printf '%s\\n' "$@" >"$HOME/arguments"
trap 'echo saved; exit 143' TERM
echo begun
while :; do sleep 0.05; done
"""
INSTALLED = {
    "bin/python3.11": 'case "$*" in *venv*) mkdir -p pixart_jax.venv/bin && cp "$HOME/bin/pip" "$HOME/bin/python" '
    "pixart_jax.venv/bin ;; esac",
    "bin/pip": 'printf "%s\\n" "$@" >"$HOME/pip"',
    "bin/python": "echo 1 2",
}


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_linters():
    for command in (["hadolint", DEPLOY / "Dockerfile"], ["shellcheck", *DEPLOY.glob("*.sh")]):
        process = subprocess.run([str(BIN / command[0]), *map(str, command[1:])], capture_output=True, text=True)
        assert process.returncode == 0, process.stdout


def test_the_image_is_built_of_what_is_there_and_runs_as_nobody_great():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"pixart_jax", "configs", "tools", "requirements.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(sent) == set(copied)
    # The requirements are a layer below the code's, and no root runs anything.
    assert lines.index("COPY requirements.txt /tmp/requirements.txt") < lines.index("COPY pixart_jax /src/pixart_jax")
    assert [line for line in lines if line.startswith("USER ")] == ["USER ${USER_ID}"]


def test_a_run_on_a_tpu_vm(tmp_path):
    home = tmp_path / "home"
    write_script(home / "bin/gcloud", GCLOUD)
    for name, text in INSTALLED.items():
        write_script(home / name, text)
    env = {"PATH": f"{home / 'bin'}:/usr/bin:/bin", "HOME": str(home)}

    def call(*arguments, code=0):
        command = ["bash", str(DEPLOY / "tpu_vm.sh"), *arguments]
        process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert process.returncode == code, process.stdout + process.stderr
        return process.stdout + process.stderr

    call("install", "vm", "zone-a")
    assert (home / "pip").read_text().split() == ["install", "--quiet", "./pixart_jax.source[tpu]"]
    assert (home / "pixart_jax.source/pyproject.toml").exists()
    assert "ssh vm --zone=zone-a --worker=all --command=" in (home / "asked").read_text()
    write_script(home / "pixart_jax.venv/bin/pixart-train", TRAIN)
    arguments = ["--config=quickstart", "--workdir=/shared/a b", "--config.sample.prompts=a 'red' $HOME; cat"]
    assert "started as process " in call("start", "vm", "zone-a", *arguments)
    log = home / "pixart_jax.log"
    try:
        while not log.exists() or "begun" not in log.read_text():
            pass
        assert (home / "arguments").read_text().splitlines() == arguments
        assert "a run is under way here" in call("start", "vm", "zone-a", *arguments, code=1)
        assert "begun" in call("log", "vm", "zone-a")
    finally:
        assert "saved" in call("stop", "vm", "zone-a")
    assert "start NAME ZONE" in call("start", "vm", code=2)
    assert "start NAME ZONE" in call("start", "vm", "zone-a", code=2)
