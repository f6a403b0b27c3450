"""How processes become one run: each finds the others through `jax.distributed`, and ends together with them.

A process sees the devices of its host (or those it is given), and one run spans the devices of all processes.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import jax
from absl import logging
from jax._src import distributed  # Its client is what Orbax uses too; jax.distributed has no public one.

from pixart_jax.errors import InputError

# What a launcher sets for each process where there are several, beside the number that says so.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Membership:
    """How this process is to join others.

    Attributes:
      launcher: who started the processes, for messages.
      coordinator: "host:port" of process 0, or None where JAX asks the launcher.
      num_processes, process_id: likewise.
      local_device_ids: the GPUs of its host that are this process's; None leaves it to JAX.
    """

    launcher: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None


def find_membership(
    env: Mapping[str, str],
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    on_tpu: bool = False,
) -> Membership | None:
    """What flags, or else the environment, say of other processes; None for a process that is alone.

    Args:
      env: os.environ. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID stand in for flags; Slurm, Open
        MPI, Kubernetes jobs and Cloud TPU are recognised as JAX does it.
      on_tpu: whether the host has TPUs, whose pods JAX finds by itself.

    Raises:
      InputError: only some of the three are given, or no numbers.
    """
    address = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    given = {
        "--coordinator (JAX_COORDINATOR_ADDRESS)": address,
        "--num_processes (JAX_NUM_PROCESSES)": env.get("JAX_NUM_PROCESSES") if num_processes is None else num_processes,
        "--process_id (JAX_PROCESS_ID)": env.get("JAX_PROCESS_ID") if process_id is None else process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    launcher = _find_launcher(env, on_tpu)
    if len(missing) < 3 and not (launcher and missing == list(given)[1:]):
        return _explicit(given, missing)
    if launcher is None:
        return None
    ids = slurm_devices(env) if launcher == "Slurm" else None
    return Membership(launcher, address, local_device_ids=ids)


def _explicit(given: Mapping[str, object], missing: list[str]) -> Membership | None:
    if missing:
        raise InputError(
            f"{' and '.join(missing)} missing: a run of several processes needs all three of {', '.join(given)}, the "
            "first two the same for all"
        )
    (_, coordinator), *numbers = given.items()
    for name, value in numbers:
        if not re.fullmatch(r"\d+", str(value)):
            raise InputError(f"{name} = {value!r}: must be a number")
    count, index = (int(str(value)) for _, value in numbers)
    if not index < count:
        raise InputError(f"--process_id = {index}: must lie in [0, {count}), the number of processes")
    if not re.fullmatch(r".+:\d+", str(coordinator)):
        raise InputError(f"--coordinator = {coordinator!r}: must be HOST:PORT, of process 0 and a free port there")
    return Membership("the command line", str(coordinator), count, index) if count > 1 else None


def _find_launcher(env: Mapping[str, str], on_tpu: bool) -> str | None:
    """Who says in the environment that there are several processes, or can tell JAX."""
    if all(name in env for name in _SLURM) and int(env["SLURM_NTASKS"]) > 1:
        return "Slurm"
    if "OMPI_MCA_orte_hnp_uri" in env and int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    several = "," in hosts or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1
    # On Google Compute Engine only the metadata server knows the other hosts, and JAX asks it.
    if on_tpu and (several or not (hosts or "TPU_SKIP_MDS_QUERY" in env)):
        return "Cloud TPU"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env and importlib.util.find_spec("kubernetes"):
        return "Kubernetes"
    return None


def slurm_devices(env: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPUs of a Slurm task: all of its host's where it is the only task there; None leaves it to JAX, which gives
    each task the one that has its number within the host."""
    visible = [gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(visible) == 1:  # --gpus-per-task: Slurm has chosen, and JAX counts what is left.
        return (0,)
    per_host = env.get("SLURM_STEP_TASKS_PER_NODE", "")  # "1(x4)", "2,1"
    alone = bool(per_host) and all(re.fullmatch(r"1(\(x\d+\))?", part) for part in per_host.split(","))
    count = len(visible) or int(env.get("SLURM_GPUS_ON_NODE") or 0)
    return tuple(range(count)) if alone and count else None


def join(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    join_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> int:
    """Joins the other processes of the run, if there are any; to be called before anything touches a device.

    Args:
      coordinator, num_processes, process_id: see `find_membership`, which looks into the environment for what is None.
      join_timeout: seconds to wait for the others.
      heartbeat_timeout: seconds of silence after which a process counts as dead, and the others end.

    Returns:
      The number of this process.

    Raises:
      InputError: see `find_membership`; or the coordinator refuses this process. Where others do not come in time, the
        process ends with a message and status 2: nothing else interrupts the wait.
    """
    membership = find_membership(
        os.environ,
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        on_tpu=_has_tpu(os.environ),
    )
    if membership is None:
        return 0
    # What JAX does when time is up is to abort, with a stack trace.
    alarm = threading.Timer(join_timeout, _give_up, [membership, join_timeout])
    alarm.daemon = True
    alarm.start()
    on_sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    try:
        jax.distributed.initialize(
            membership.coordinator,
            membership.num_processes,
            membership.process_id,
            local_device_ids=membership.local_device_ids,
            cluster_detection_method="deactivate" if membership.num_processes else None,
            initialization_timeout=join_timeout + 60,
            # `ending` notices before, says who it was, and ends; what JAX does is to abort, with a stack trace.
            heartbeat_timeout_seconds=2 * heartbeat_timeout + 30,
        )
    except ValueError as error:
        if membership.launcher == "Cloud TPU":  # A host that is no part of a pod.
            logging.info("no other hosts: %s", error)
            return 0
        raise InputError(f"{membership.launcher} started several processes; JAX cannot find them: {error}") from error
    except RuntimeError as error:
        cure = (
            "let its port be free on process 0's host, give each process its own --process_id and all the same "
            "--num_processes"
        )
        raise InputError(f"{_cannot_join(membership)}: {cure}\n  {str(error)[:500]}") from error
    finally:
        alarm.cancel()
    # JAX has taken it over, for a way to stop together that is not ours; see preemption.py.
    signal.signal(signal.SIGTERM, on_sigterm)
    logging.info("%s, coordinated by %s", this_process(), distributed.global_state.coordinator_address)
    return process_number()


def _has_tpu(env: Mapping[str, str]) -> bool:
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _cannot_join(membership: Membership) -> str:
    state = distributed.global_state
    address = state.coordinator_address or membership.coordinator or "that the launcher names"
    return f"cannot join the other processes at the coordinator {address}, as {membership.launcher} has it"


def _give_up(membership: Membership, timeout: int) -> None:
    print(
        f"error: {_cannot_join(membership)}: not all came within {timeout} s (--join_timeout); start all of them with "
        "the same --num_processes, and let the address be process 0's as the others reach it, its port open to them",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def client():
    """The run's key-value store and barriers; None for a process that is alone."""
    return distributed.global_state.client


def process_number() -> int:
    """The number of this process; unlike `jax.process_index` it waits for no device."""
    return distributed.global_state.process_id


def this_process() -> str:
    """In words, for messages."""
    return f"process {process_number()} of {distributed.global_state.num_processes} ({this_host()}, {os.getpid()})"


def this_host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def announce(topic: str, text: str) -> None:
    """Lets `wait_for_announcement` return on every process. Of several on one topic the first counts."""
    try:
        client().key_value_set(f"pixart_jax/announced/{topic}", text)
    except RuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise


def wait_for_announcement(topic: str, timeout: float = 3600) -> str | None:
    """What a process announces, as soon as it does; None if the run ends before. For a thread that may be left behind
    in it.

    Args:
      timeout: seconds after which the wait, which has no end, is begun again.
    """
    while True:
        try:
            return client().blocking_key_value_get(f"pixart_jax/announced/{topic}", int(timeout * 1000))
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return None


def show_life(sign: str) -> None:
    """Gives the others a sign of life, other than the last one."""
    client().key_value_set(f"pixart_jax/alive/{process_number()}", sign, allow_overwrite=True)


def signs_of_life() -> dict[int, str]:
    """The last of each process, by its number."""
    return {int(name.rpartition("/")[2]): sign for name, sign in client().key_value_dir_get("pixart_jax/alive")}


def meet(topic: str, patience: float = 3600) -> None:
    """Waits for all processes, each of which calls this once, for so many seconds."""
    client().wait_at_barrier(f"pixart_jax/{topic}", int(patience * 1000))


def part() -> None:
    """Leaves the run, as all processes do now. Whatever waits for an announcement waits no longer."""
    with suppress(RuntimeError):  # One that has died since: everything is done.
        jax.distributed.shutdown()


def leave(code: int, linger: float) -> None:
    """Ends this process: nothing is waited for.

    Args:
      linger: seconds that the first process stays, as JAX aborts those that lose their coordinator.
    """
    if client() is not None and process_number() == 0:
        time.sleep(linger)
    os._exit(code)


def all_fail(seconds: float) -> bool:
    """Whether all processes call this within some seconds of the first: none of them is left behind."""
    return client() is None or not absent(seconds)


def absent(seconds: float, topic: str = "failed") -> list[int]:
    """Waits for all processes to call this on a topic; returns those that did not, [-1] if nobody knows which."""
    try:
        client().wait_at_barrier(f"pixart_jax/{topic}", int(seconds * 1000))
    except RuntimeError as error:
        return missing_tasks(str(error)) or [-1]
    return []


def missing_tasks(message: str) -> list[int]:
    """The processes that a barrier's error names as not having come."""
    _, _, names = message.partition("timed out task names:")
    # "1", in jax 0.10; "/job:jax_worker/replica:0/task:1" before. A blank line follows.
    return sorted({int(number) for number in re.findall(r"(\d+)$", names.split("\n\n")[0], re.MULTILINE)})
