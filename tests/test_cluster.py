"""Several real processes as one run: the losses of a single one, whatever their number; and how they end together."""

import json
import os
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cluster_runs import Cluster
from PIL import Image
from tiny_run import read_metrics, write_config, write_data

from pixart_jax.agreement import code_digest, differences
from pixart_jax.cluster import Membership, find_membership, missing_tasks, slurm_devices
from pixart_jax.errors import InputError
from pixart_jax.train import SIGTERM_EXIT_CODE


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with data, data that are held out, and a config file."""
    root = tmp_path_factory.mktemp("cluster")
    write_data(root / "held_out", num_samples=6)
    write_config(root / "config.py", write_data(root / "data"))
    return root


def start(root, workdir, num_processes, *settings, **options):
    arguments = [f"--config={root / 'config.py'}", f"--workdir={workdir}"]
    defaults = ["--config.train.log_every=1", "--config.sample.every=0", "--join_timeout=60", "--heartbeat_timeout=10"]
    logs = root / "logs" / f"{workdir.name}-{num_processes}-{time.monotonic_ns()}"
    return Cluster(logs, num_processes, *arguments, *defaults, *settings, **options)


def rows_of(workdir, file="metrics.jsonl"):
    rows = [json.loads(line) for line in (workdir / file).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("images_per_second", "mfu")} for row in rows]


def load_arrays(workdir, step):
    checkpointer = ocp.StandardCheckpointer()
    names = ("params", "ema_params", "opt_state")
    return {name: checkpointer.restore(workdir / "checkpoints" / str(step) / name) for name in names}


def test_four_then_two_then_one_have_the_losses_of_one(root, tmp_path):
    whole = [f"--config.eval.source={root / 'held_out'}", "--config.eval.every=4", "--config.sample.every=4"]
    start(root, tmp_path / "one", 1, *whole).finish(0)
    expected = read_metrics(tmp_path / "one")
    shared = tmp_path / "shared"
    for num_processes, last, settings in (
        # Parameters that no process has whole: what is drawn, evaluated and saved passes between them.
        (4, 4, [*whole, "--config.mesh.fsdp=4"]),
        (2, 8, []),
        (1, 12, []),
    ):
        outputs = start(root, shared, num_processes, f"--config.train.num_steps={last}", *settings).finish(0)
        assert ("going on from step" in outputs[0]) == (num_processes < 4)
    found = read_metrics(shared)
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [*range(1, 13)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    ours, theirs = (rows_of(tmp_path / name, "eval.jsonl")[:2] for name in ("shared", "one"))
    assert [row["step"] for row in ours] == [0, 4]
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    pictures = [
        np.asarray(Image.open(tmp_path / name)) for name in ("shared/samples.png", "one/samples/step_0000004.png")
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_one_that_is_told_to_stop_or_killed_stops_all_and_a_restart_goes_on(root, tmp_path):
    settings = ["--config.train.log_every=3", "--config.train.checkpoint_every=5"]
    endless = "--config.train.num_steps=100000"
    run = start(root, tmp_path / "run", 2, *settings, endless)
    run.wait_for_step(tmp_path / "run", 6)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    outputs = run.finish(SIGTERM_EXIT_CODE)
    stopped = [output.split("stopped after a checkpoint of step ")[1].split(";")[0] for output in outputs]
    assert stopped[0] == stopped[1]

    step = int(stopped[0])
    run = start(root, tmp_path / "run", 2, *settings, endless)
    run.wait_for_step(tmp_path / "run", step + 9)
    run.processes[1].kill()
    begin = time.monotonic()
    output, _ = run.finish(1, -signal.SIGKILL)
    assert time.monotonic() - begin < 30
    assert "process 1 gave no answer and may have died; start all processes again" in output

    last = f"--config.train.num_steps={step + 20}"
    outputs = start(root, tmp_path / "run", 2, *settings, last).finish(0)
    assert "going on from step" in outputs[0]
    start(root, tmp_path / "clean", 2, *settings, last).finish(0)
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "clean")
    arrays = [load_arrays(tmp_path / name, step + 20) for name in ("run", "clean")]
    jax.tree.map(np.testing.assert_array_equal, *arrays)


def test_processes_that_differ_are_refused_with_what_differs(root, tmp_path):
    own = {1: ["--config.seed=1", "--config.optimizer.learning_rate=0.5"]}
    for output in start(root, tmp_path / "run", 2, own=own).finish(2):
        assert "config.seed: 0 on process 0 (" in output and "; 1 on process 1 (" in output
        assert "config.optimizer.learning_rate: 0.003 on process 0" in output
        assert "config.model.depth" not in output and "Traceback" not in output


def test_what_one_process_lacks_stops_all(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folders = {0: root, 1: tmp_path / "elsewhere"}
    outputs = start(root, tmp_path / "run", 2, "--config.data.source=data", folders=folders).finish(2)
    assert "error: process 1 on " in outputs[0] and "error: data" in outputs[1]
    assert all("make_quickstart_data" in output for output in outputs), outputs


def test_a_workdir_that_is_not_shared(root, tmp_path):
    own = {1: [f"--workdir={tmp_path / 'other'}"]}
    outputs = start(root, tmp_path / "run", 2, own=own).finish(2)
    assert all("name a folder on a file system that all hosts share" in output for output in outputs)
    assert not list((tmp_path / "run").iterdir())


def test_others_that_do_not_come_are_not_awaited_for_ever(root, tmp_path):
    for absent in (0, 1):
        options = {"absent": (absent,), "own": {1 - absent: ["--join_timeout=3"]}}
        run = start(root, tmp_path / "run", 2, **options)
        begin = time.monotonic()
        outputs = run.finish(*((None, 2) if absent == 0 else (2, None)), timeout=60)
        assert time.monotonic() - begin < 30
        assert "not all processes came within 3 s" in outputs[1 - absent], outputs


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    "env,flags,expected",
    [
        ({}, {}, None),
        ({}, {"coordinator": "a:1", "num_processes": 1, "process_id": 0}, None),
        ({}, {"coordinator": "a:1", "num_processes": 4, "process_id": 3}, Membership("the command line", "a:1", 4, 3)),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"},
            {"process_id": 2},
            Membership("the command line", "a:1", 4, 2),
        ),
        (SLURM, {}, Membership("Slurm")),
        (SLURM, {"coordinator": "a:1"}, Membership("Slurm", "a:1")),
        (SLURM | {"SLURM_NTASKS": "1"}, {}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, {}, None),  # A batch script that does not use srun.
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:2", "OMPI_COMM_WORLD_SIZE": "2"}, {}, Membership("Open MPI")),
        ({}, {"on_tpu": True}, Membership("Cloud TPU")),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {"on_tpu": True}, Membership("Cloud TPU")),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, {"on_tpu": True}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, None),
    ],
)
def test_membership_is_found(env, flags, expected):
    assert find_membership(env, **flags) == expected


@pytest.mark.parametrize(
    "flags,message",
    [
        ({"process_id": 0}, r"--coordinator \(JAX_COORDINATOR_ADDRESS\) and --num_processes .* missing"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, r"--process_id = 2: must lie in \[0, 2\)"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 1}, "must be HOST:PORT"),
    ],
)
def test_half_of_the_flags_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        find_membership({}, **flags)


@pytest.mark.parametrize(
    "env,expected",
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"}, (0, 1, 2, 3)),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, (0, 1)),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "3"}, (0,)),
        ({}, None),
    ],
)
def test_gpus_of_a_slurm_task(env, expected):
    assert slurm_devices(env) == expected


def test_differences_are_told_by_the_most_frequent_value():
    facts = [{"jax": "0.10", "seed": "1"}, {"jax": "0.11", "seed": "1"}, {"jax": "0.11"}]
    assert differences(facts, ["a", "b", "c"]) == [
        "jax: 0.11 on processes 1 (b), 2 (c); 0.10 on process 0 (a)",
        "seed: 1 on processes 0 (a), 1 (b); nothing on process 2 (c)",
    ]
    assert differences([facts[0]] * 3, ["a"] * 3) == []


def test_code_is_known_by_its_digest():
    assert code_digest() == code_digest() and len(code_digest()) == 12


def test_the_missing_are_read_from_a_barrier():
    message = (
        "Barrier timed out. # of tasks that reached the barrier: 2/4.\nThe first task at the barrier: "
        "/job:jax_worker/replica:0/task:0. Some timed out task names:\n/job:jax_worker/replica:0/task:2\n"
        "/job:jax_worker/replica:0/task:3\n"
    )
    assert missing_tasks(message) == [2, 3]
