"""Real commands, with an interpreter that ends by itself: what is saved ends with the status that says so."""

import signal
import time

from cluster_runs import free_port
from resume_runs import last_logged
from tiny_run import finish, start_main


def start_two(root, workdir, *settings, own=()):
    """Two processes of one run; the second with settings of its own."""
    joining = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--config.sample.every=0", *settings]
    return [
        start_main(root / "config.py", workdir, *joining, f"--process_id={i}", *(own if i == 1 else ()))
        for i in range(2)
    ]


def test_five_times_in_order(root, tmp_path):
    """All that listens to other processes is awaited: Python cannot end a thread that is inside JAX."""
    workdir = tmp_path / "run"
    for _ in range(3):  # The first one trains, the others find that it is finished.
        for process in start_two(root, workdir, "--config.train.num_steps=1"):
            finish(process, 0)
    for process in start_two(root, workdir, "--config.train.num_steps=1", own=["--config.seed=1"]):
        assert "do not agree" in finish(process, 2)
    pair = start_two(root, workdir, "--config.train.num_steps=1000000", "--config.train.log_every=1")
    while last_logged(workdir) < 3:
        assert pair[1].poll() is None
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        assert "SIGTERM: stopped at step" in finish(process, 128 + signal.SIGTERM)
