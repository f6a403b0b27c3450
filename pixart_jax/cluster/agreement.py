"""What the processes of one run tell one another before they start: that they are of one mind.

Texts travel through the coordinator's key-value store, not through the devices: nothing is compiled for them, they may
be of any length, and a barrier says who is missing.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import secrets
import time
from collections.abc import Mapping
from contextlib import contextmanager

import jax

from pixart_jax.cluster.processes import client, this_host
from pixart_jax.errors import InputError


def gather(topic: str, text: str, *, patience: float = 3600) -> list[str]:
    """Every process's text, in the order of processes, each of which must call this as often with the topic.

    Args:
      patience: seconds that processes may be apart, e.g. because one reads weights from a slower disk. One that died is
        noticed by its heartbeat, far sooner.
    """
    if jax.process_count() == 1:
        return [text]
    store, index = client(), jax.process_index()
    # Counted in the store, so that no two rounds share a name; by topic, as threads ask about different ones.
    number = store.key_value_increment(f"pixart_jax/rounds/{index}/{topic}", 1)
    folder = f"pixart_jax/gathered/{topic}/{number}"
    store.key_value_set(f"{folder}/{index:06d}", json.dumps(text))
    store.wait_at_barrier(folder, int(patience * 1000))
    return [json.loads(value) for _, value in sorted(store.key_value_dir_get(folder))]


@contextmanager
def together(topic: str):
    """An error inside is raised on every process: elsewhere as an InputError that says whose it is.

    Nothing inside may wait for other processes.
    """
    error = None
    try:
        yield
    except Exception as found:
        error = found
    reports = gather(topic, "" if error is None else f"{this_host()}: {error or type(error).__name__}")
    if error is not None:
        raise error
    for index, report in enumerate(reports):
        if report:
            raise InputError(f"process {index} on {report}")


def agree(topic: str, facts: Mapping[str, str]) -> None:
    """Raises InputError on every process unless all state the same facts; names those that differ."""
    text = json.dumps({"host": this_host(), "facts": dict(facts)})
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
    if len(set(gather(topic, digest))) > 1:
        everyone = [json.loads(stated) for stated in gather(f"{topic} in full", text)]
        lines = differences([one["facts"] for one in everyone], [one["host"] for one in everyone])
        raise InputError(
            "the processes of this run do not agree; start all of them with the same command, code, packages and "
            "data:\n  " + "\n  ".join(lines)
        )


def differences(facts: list[dict[str, str]], hosts: list[str]) -> list[str]:
    """A line for each fact that is not the same everywhere: who states what, the most frequent first."""
    lines = []
    for name in dict.fromkeys(name for one in facts for name in one):
        groups: dict[str, list[int]] = {}
        for index, one in enumerate(facts):
            groups.setdefault(one.get(name, "nothing"), []).append(index)
        if len(groups) > 1:
            said = sorted(groups.items(), key=lambda group: -len(group[1]))
            lines.append(f"{name}: " + "; ".join(f"{value} on {_names(who, hosts)}" for value, who in said))
    return lines


def _names(processes: list[int], hosts: list[str]) -> str:
    shown = ", ".join(f"{index} ({hosts[index]})" for index in processes[:4])
    more = f" and {len(processes) - 4} more" if len(processes) > 4 else ""
    return f"process{'es' if len(processes) > 1 else ''} {shown}{more}"


def check_shared(workdir: pathlib.Path, patience: float) -> None:
    """Raises InputError on every process unless all of them see the same folder.

    Args:
      patience: seconds that a network file system may take to show a new file.
    """
    if jax.process_count() == 1:
        return
    mark = workdir / f".seen-{gather('mark', secrets.token_hex(8))[0]}"
    with together("marking the workdir"):
        if jax.process_index() == 0:
            mark.touch()
    try:
        with together("looking into the workdir"):
            deadline = time.monotonic() + patience
            while not mark.exists():
                if time.monotonic() > deadline:
                    raise InputError(
                        f"--workdir={workdir}: what process 0 writes there is not seen here; name a folder on a file "
                        "system that all hosts share"
                    )
                time.sleep(0.1)
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)
