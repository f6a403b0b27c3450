"""Processes that train together on this machine, each by the command line's own entry point.

They are forked from one that has imported everything and started nothing, so that each costs no start.
"""

import os
import pathlib
import signal
import socket
import sys
import time

import jax
import orbax.checkpoint as ocp
from forked import print_to, processes, use_devices
from jax._src import cache_key
from resume_runs import block_batch, hurry_watchdog, last_logged

from pixart_jax.cluster.ending import Ending, Waits
from pixart_jax.main import run
from pixart_jax.training import run as training_run


class Cluster:
    """`pixart_jax.main` in that many processes of one device each; what process i prints goes to `log-i`.

    Args:
      arguments: of all processes.
      own: more of some, by process.
      folders: where some start, by process.
      num_processes: 1 joins nothing.
      absent: processes that are not started.
      block_at: the batch that never comes, by process.
      hang_after: seconds that are a hang from there on, by batch.
      dying: those that die as soon as the others wait for them, to save.
      incomplete: those that cannot complete a checkpoint which all have written.
    """

    def __init__(
        self,
        logs: pathlib.Path,
        num_processes: int,
        *arguments,
        own=None,
        folders=None,
        absent=(),
        block_at=None,
        hang_after=None,
        dying=(),
        incomplete=(),
    ):
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = [logs / f"log-{i}" for i in range(num_processes)]
        address = f"localhost:{free_port()}"
        self.processes = []
        for i, log in enumerate(self._logs):
            joining = [f"--coordinator={address}", f"--num_processes={num_processes}", f"--process_id={i}"]
            command = [*arguments, *(joining if num_processes > 1 else ()), *(own or {}).get(i, ())]
            folder = (folders or {}).get(i, os.getcwd())
            faults = {"block_at": (block_at or {}).get(i, 0), "dying": i in dying, "incomplete": i in incomplete}
            faults["hang_after"] = hang_after or {}
            process = processes.Process(target=_main, args=(command, log, folder), kwargs=faults, daemon=True)
            self.processes.append(process)
            if i not in absent:
                process.start()

    def finish(self, *expected_codes: int, timeout: float = 600) -> list[str]:
        """Waits for all and returns what they printed; the exit status of process i, or of all, must be as expected,
        None for one that was not started."""
        deadline = time.monotonic() + timeout
        codes = expected_codes * len(self.processes) if len(expected_codes) == 1 else expected_codes
        for process in self.processes:
            if process.pid:
                process.join(max(0, deadline - time.monotonic()))
        outputs = self.outputs()
        found = [process.exitcode for process in self.processes]
        assert found == [*codes], "\n====\n".join([str(found), *(f"{o[:2000]}\n...\n{o[-3000:]}" for o in outputs)])
        return outputs

    def outputs(self) -> list[str]:
        """What each process has printed."""
        return [log.read_text() if log.exists() else "" for log in self._logs]

    def wait_for_step(self, workdir: pathlib.Path, step: int, timeout: float = 300) -> None:
        """Waits until a step at or after `step` was logged."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert all(process.is_alive() for process in self.processes), self.outputs()
            if last_logged(workdir) >= step:
                return
            time.sleep(0.05)
        raise AssertionError(f"no step {step} within {timeout} s")


def start(root: pathlib.Path, workdir: pathlib.Path, num_processes: int, *settings: str, **options) -> Cluster:
    """Training with ROOT/config.py."""
    arguments = [f"--config={root / 'config.py'}", f"--workdir={workdir}"]
    defaults = ["--config.train.log_every=1", "--config.sample.every=0", "--join_timeout=60", "--heartbeat_timeout=15"]
    logs = root / "logs" / f"{workdir.name}-{num_processes}-{time.monotonic_ns()}"
    return Cluster(logs, num_processes, *arguments, *defaults, *settings, **options)


def _fail() -> None:
    raise OSError("no folder today")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def _main(
    arguments: list[str],
    log: pathlib.Path,
    folder: str,
    *,
    block_at: int,
    hang_after: dict[int, float],
    dying: bool,
    incomplete: bool,
) -> None:
    print_to(log)
    os.chdir(folder)
    use_devices(1)
    # Compiling is most of the work: one process of a run does it, and none for a run that goes on.
    jax.config.update("jax_compilation_cache_dir", str(log.parent.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_share_binary_between_hosts", True)
    # On CPU it tells the processes apart, and with them what they compile.
    cache_key._hash_accelerator_config = lambda *_: None
    if block_at:
        block_batch(block_at)
    for batch, seconds in hang_after.items():
        hurry_watchdog(batch, seconds)
    if dying:
        training_run.gather = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if incomplete:
        ocp.AsyncCheckpointer._make_on_commit_callback = lambda *_, **__: _fail
    sys.argv = ["main", *arguments]
    # On one machine a new file is seen at once.
    run(Ending(Waits(file=0.5)))
