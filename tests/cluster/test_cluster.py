"""Several real processes as one run: the losses of a single one, whatever their number; and how they end together."""

import os
import re
import resource
import shutil
import signal
import time

import numpy as np
import pytest
from cluster_runs import Cluster
from PIL import Image
from resume_runs import last_saved
from tiny_run import read_metrics, write_config, write_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.cluster.agreement import differences
from pixart_jax.cluster.processes import Membership, find_membership, missing_tasks, slurm_devices
from pixart_jax.cluster.watchdog import HANG_EXIT_CODE
from pixart_jax.errors import InputError
from pixart_jax.training.facts import code_digest, run_facts

# Parameters that no process has whole; steps that are not multiples of one another.
RUN = (
    "--config.mesh.fsdp=2",
    "--config.train.num_steps=100000",
    "--config.train.log_every=3",
    "--config.train.checkpoint_every=5",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with data, data that are held out, and a config file."""
    root = tmp_path_factory.mktemp("cluster")
    write_data(root / "held_out", num_samples=6)
    write_config(root / "config.py", write_data(root / "data"))
    return root


def start(root, workdir, num_processes, *settings, **options):
    arguments = [f"--config={root / 'config.py'}", f"--workdir={workdir}"]
    defaults = ["--config.train.log_every=1", "--config.sample.every=0", "--join_timeout=60", "--heartbeat_timeout=15"]
    logs = root / "logs" / f"{workdir.name}-{num_processes}-{time.monotonic_ns()}"
    return Cluster(logs, num_processes, *arguments, *defaults, *settings, **options)


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def checksums(workdir, step):
    checkpoints = Checkpoints(workdir, read_only=True)
    return {name: checkpoints.recorded_checksums(step, name) for name in ("params", "ema_params", "opt_state")}


def halve_largest(folder):
    """Cuts off half of the largest file below a folder."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def test_four_then_two_then_one_have_the_losses_of_one(root, tmp_path):
    whole = [f"--config.eval.source={root / 'held_out'}", "--config.eval.every=4", "--config.sample.every=4"]
    start(root, tmp_path / "one", 1, *whole).finish(0)
    expected = read_metrics(tmp_path / "one")
    shared = tmp_path / "shared"
    for num_processes, last, settings in (
        # No process has all parameters, nor all tokens of an image: what is drawn, evaluated and saved passes between
        # them.
        (4, 4, [*whole, "--config.mesh.fsdp=2", "--config.mesh.context=2"]),
        (2, 8, []),
        (1, 12, []),
    ):
        outputs = start(root, shared, num_processes, f"--config.train.num_steps={last}", *settings).finish(0)
        assert ("going on from step" in outputs[0]) == (num_processes < 4)
    found = read_metrics(shared)
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [*range(1, 13)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    ours, theirs = (read_metrics(tmp_path / name, "eval.jsonl")[:2] for name in ("shared", "one"))
    assert [row["step"] for row in ours] == [0, 4]
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    pictures = [
        np.asarray(Image.open(tmp_path / name)) for name in ("shared/samples.png", "one/samples/step_0000004.png")
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


@pytest.fixture(scope="module")
def endless(root):
    """The workdir of a run of two processes that was begun, and each time a test was done with it goes on."""
    return root / "endless"


def test_a_request_to_stop_stops_all_after_the_same_step(root, endless):
    for process, number in ((1, signal.SIGTERM), (0, signal.SIGUSR1)):
        run = start(root, endless, 2, *RUN)
        run.wait_for_step(endless, last_saved(endless) + 7)
        os.kill(run.processes[process].pid, number)
        for output in run.finish(128 + number):
            assert f"{number.name}: stopped at step {last_saved(endless)}, which is saved" in output


def test_one_that_dies_ends_all(root, endless):
    run = start(root, endless, 2, *RUN)
    run.wait_for_step(endless, last_saved(endless) + 7)
    run.processes[1].kill()
    begin = time.monotonic()
    output, _ = run.finish(1, -signal.SIGKILL)
    assert time.monotonic() - begin < 30
    assert "process 1 gave no answer and may have died; start all processes again" in output
    assert "disk" not in output


def test_the_first_one_that_dies_ends_all(root, endless):
    """It is through it that the others hear of each other: JAX may abort before they have told why."""
    run = start(root, endless, 2, *RUN)
    run.wait_for_step(endless, last_saved(endless) + 7)
    run.processes[0].kill()
    run.processes[1].join(60)
    _, output = run.outputs()
    assert run.processes[1].exitcode in (1, -signal.SIGABRT), output[-3000:]
    assert re.search("error: process 1 of 2 .* stops: |Either the leader task was preempted/died", output)


def test_one_that_dies_where_the_others_wait_for_it(root, endless):
    """JAX, which would notice some time later, aborts."""
    run = start(root, endless, 2, *RUN, "--heartbeat_timeout=8", dying=(1,))
    output, _ = run.finish(1, -signal.SIGKILL)
    assert re.search(r"error: process 1 of 2 \(.*\) gave no sign of life for 8 s", output)


def test_one_that_hangs_ends_all_and_says_where(root, endless):
    start(root, endless, 2, *RUN, "--config.train.hang_timeout=4", block_at={1: 8}).finish(HANG_EXIT_CODE)
    reports = {path.stem[-1]: path.read_text() for path in endless.glob("hang_*.txt")}
    assert sorted(reports) == ["0", "1"]
    for index, report in reports.items():
        assert f"error: process {index} of 2 (" in report and "nothing has happened for 4 s, after step" in report
    hung = r'resume_runs.py", line \d+ in __next__'
    assert re.search(hung, reports["1"]) and not re.search(hung, reports["0"])


def test_a_checkpoint_that_cannot_be_completed_ends_all(root, tmp_path):
    """Which the first process does when all have written their parts, and would tell when the others have waited."""
    begin = time.monotonic()
    for output in start(root, tmp_path / "run", 2, *RUN, incomplete=(0,)).finish(1, timeout=100):
        assert re.search(r"error: process 0 of 2 .* stops: a checkpoint cannot be written .*: no folder today", output)
    assert time.monotonic() - begin < 60


def test_one_that_cannot_save_ends_all(root, endless):
    run = start(root, endless, 2, *RUN)
    run.wait_for_step(endless, last_saved(endless) + 2)
    # The largest file is some 130,000 bytes, what it prints far less.
    _, hard = resource.prlimit(run.processes[1].pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.processes[1].pid, resource.RLIMIT_FSIZE, (60_000, hard))
    saved = last_saved(endless)
    for output in run.finish(1):
        assert re.search(
            r"error: process 1 of 2 \(.*\) stops: a checkpoint cannot be written to .*: File too large", output
        )
        assert "may have died" not in output
    assert last_saved(endless) == saved


def test_a_run_that_was_ended_in_all_these_ways_ends_as_one_that_was_not(root, endless, tmp_path):
    """The last of those that go on with the run, whose newest checkpoint is damaged where only process 1 reads it."""
    before, saved = saved_steps(endless)
    halve_largest(endless / "checkpoints" / str(saved) / "params" / "ocdbt.process_1")
    for output in start(root, endless, 2, *RUN).finish(2):
        assert re.search(rf"error: process 1 of 2 .* stops: the checkpoint .*/{saved} is damaged", output)
    damaged = endless / "checkpoints" / str(saved)
    damaged.rename(f"{damaged}.damaged")  # As the message says.
    last = f"--config.train.num_steps={saved + 10}"
    assert f"going on from step {before} " in start(root, endless, 2, *RUN, last).finish(0)[0]
    start(root, tmp_path / "clean", 2, *RUN, last).finish(0)
    assert read_metrics(endless) == read_metrics(tmp_path / "clean")
    assert checksums(endless, saved + 10) == checksums(tmp_path / "clean", saved + 10)


def test_weights_to_start_from(root, endless, tmp_path):
    """Each process reads them by itself, here those that two have saved; the damage that one of them meets ends all."""
    few = ["--config.train.num_steps=3", "--config.init_from=first"]
    folders = {i: tmp_path / str(i) for i in range(2)}
    for folder in folders.values():
        shutil.copytree(endless, folder / "first")
    for number in (1, 2):
        run = start(root, tmp_path / f"by-{number}", number, *few, f"--config.mesh.fsdp={number}", folders=folders)
        run.finish(0)
    for ours, theirs in zip(read_metrics(tmp_path / "by-2"), read_metrics(tmp_path / "by-1"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    halve_largest(folders[1] / "first" / "checkpoints" / str(last_saved(endless)) / "ema_params")
    for output in start(root, tmp_path / "none", 2, *few, folders=folders).finish(2, timeout=60):
        assert re.search("error: .*config.init_from = 'first': .* is damaged", output)


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
        assert "not all came within 3 s" in outputs[1 - absent], outputs


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


def test_prompts_are_compared_by_their_text():
    """The name of their file may be the same where the file is not."""
    facts = [run_facts({"sample.prompts": "a.txt"}, [], {}, {}, prompts) for prompts in (["a cat"], ["a cat", "a dog"])]
    (line,) = differences(facts, ["a", "b"])
    assert line.startswith("text of config.sample.prompts: ")


def test_code_is_known_by_its_digest():
    assert code_digest() == code_digest() and len(code_digest()) == 12


@pytest.mark.parametrize("names", ["2\n3", "/job:jax_worker/replica:0/task:2\n/job:jax_worker/replica:0/task:3"])
def test_the_missing_are_read_from_a_barrier(names):
    message = (
        "DEADLINE_EXCEEDED: Barrier timed out. Id: x::0.\n# of tasks that reached the barrier: 2/4.\n"
        f"The first task at the barrier: 0. Some timed out task names:\n{names}\n\n\n"
        "RPC: /xla.coordination.CoordinationService/Barrier [type.googleapis.com/tensorflow.Error='7']"
    )
    assert missing_tasks(message) == [2, 3]
    assert missing_tasks("UNAVAILABLE: task 1") == []
