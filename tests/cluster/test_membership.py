"""How a process finds out whose member it is, and what the members tell one another, without any others."""

import pytest

from pixart_jax.cluster.agreement import differences
from pixart_jax.cluster.processes import Membership, find_membership, missing_tasks, slurm_devices
from pixart_jax.errors import InputError
from pixart_jax.training.facts import code_digest, run_facts

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
