"""The iterator's state, its workers, and how it ends."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from batch_cases import assert_batches_equal, batches, ids
from shard_cases import SPEC, make_sample, spec_with, write_set

from pixart_jax.data.pipeline import make_iterator
from pixart_jax.data.shards.manifest import read_manifest
from pixart_jax.errors import InputError


def test_resume_in_this_process(thirteen):
    sources = [(thirteen, 1.0)]
    whole = batches(thirteen, 12)
    with contextlib.closing(make_iterator(sources, SPEC, seed=0)) as iterator:
        states = [iterator.get_state()]
        for _ in whole:
            next(iterator)
            states.append(iterator.get_state())
    for stop in (0, 1, 3, 4, 10):
        state = json.loads(json.dumps(states[stop]))
        assert_batches_equal(batches(thirteen, 12 - stop, state=state), whole[stop:])


def test_workers_give_the_same_batches_and_resume(thirteen):
    whole = batches(thirteen, 9)
    with contextlib.closing(make_iterator([(thirteen, 1.0)], SPEC, seed=0, num_workers=2)) as iterator:
        assert_batches_equal([next(iterator) for _ in range(3)], whole[:3])
        state = json.loads(json.dumps(iterator.get_state()))
        assert_batches_equal([next(iterator) for _ in range(2)], whole[3:5])
        iterator.set_state(state)  # back, in the same iterator
        assert iterator.get_state() == state
        assert_batches_equal([next(iterator) for _ in range(4)], whole[3:7])
        later = iterator.get_state()
    assert_batches_equal(batches(thirteen, 2, state=later, num_workers=2), whole[7:])  # in a new one
    assert_batches_equal(batches(thirteen, 2, state=later), whole[7:])  # in one without workers


def test_resume_with_other_processes_and_batch_size(thirteen):
    samples = [i for batch in batches(thirteen, 10) for i in ids(batch)]
    with contextlib.closing(make_iterator([(thirteen, 1.0)], SPEC, seed=0)) as iterator:
        for _ in range(3):
            next(iterator)
        state = iterator.get_state()
    spec = spec_with(batch_size=2)
    shares = [batches(thirteen, 4, spec, state=state, process_index=i, process_count=2) for i in range(2)]
    drawn = [i for step in range(4) for share in shares for i in ids(share[step])]
    assert drawn == samples[12 : 12 + 16]
    for i in range(2):  # and back: two processes save one state, which a single one can take up
        with contextlib.closing(
            make_iterator([(thirteen, 1.0)], spec, seed=0, process_index=i, process_count=2)
        ) as iterator:
            for _ in range(3):
                next(iterator)
            assert iterator.get_state() == state
    larger = batches(thirteen, 2, spec_with(batch_size=14), state=state)
    assert ids(larger[0]) + ids(larger[1]) == samples[12:40]


def test_state_of_another_run_is_refused(thirteen, tmp_path):
    other = write_set(tmp_path / "other", 5)
    sources = [(thirteen, 1.0), (other, 2.0)]
    with contextlib.closing(make_iterator(sources, SPEC, seed=0)) as iterator:
        state = iterator.get_state()
    for field, options in {
        "seed": {"seed": 1},
        "shuffle": {"shuffle": False},
        "sources": {"sources": [(thirteen, 1.0), (other, 1.0)]},
        "sources ": {"sources": [(thirteen, 1.0)]},
        "group_buckets": {"spec": spec_with(group_buckets=True)},
    }.items():
        with pytest.raises(InputError, match=f"saved state has {field.strip()} .*start a new run"):
            batches(**({"sources": sources, "count": 1, "state": state} | options))
    scaled = [(thirteen, 10.0), (other, 20.0)]  # the same shares
    assert_batches_equal(batches(scaled, 1, state=state), batches(sources, 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_goes_through_orbax(thirteen, tmp_path, num_workers):
    import grain
    import orbax.checkpoint as ocp

    whole = batches(thirteen, 5)
    sources = [(thirteen, 1.0)]
    with (
        ocp.CheckpointManager(tmp_path / "checkpoints") as manager,
        contextlib.closing(make_iterator(sources, SPEC, seed=0, num_workers=num_workers)) as iterator,
    ):
        for _ in range(3):
            next(iterator)
        params = {"w": np.arange(3.0)}
        manager.save(
            3,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(params), data=grain.checkpoint.CheckpointSave(iterator)
            ),
        )
        next(iterator)
        manager.wait_until_finished()
    with (
        ocp.CheckpointManager(tmp_path / "checkpoints") as manager,
        contextlib.closing(make_iterator(sources, SPEC, seed=0, num_workers=num_workers)) as iterator,
    ):
        restored = manager.restore(
            3,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(params), data=grain.checkpoint.CheckpointRestore(iterator)
            ),
        )
        assert restored["data"] is iterator
        np.testing.assert_array_equal(restored["state"]["w"], params["w"])
        assert_batches_equal([next(iterator) for _ in range(2)], whole[3:])


def test_workers_end_with_whoever_reads_from_them(thirteen):
    """However that ends: here at once, as after a kill."""
    code = (
        "import multiprocessing, os, sys\n"
        "from shard_cases import SPEC\n"
        "from pixart_jax.data.pipeline import make_iterator\n"
        "if __name__ == '__main__':\n"
        "    iterator = make_iterator([(sys.argv[1], 1.0)], SPEC, seed=0, num_workers=1)\n"
        "    next(iterator)\n"
        "    print(len(multiprocessing.active_children()), flush=True)\n"
        "    os._exit(0)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(thirteen)]
    # The worker has the same standard output: this waits for the end of both.
    assert subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=60).stdout == b"1\n"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_record_stops_the_iterator_and_is_named(thirteen, num_workers):
    path = thirteen / read_manifest(thirteen).shards[1].file
    data = bytearray(path.read_bytes())
    data[data.index(make_sample(6).latent_mean.tobytes())] ^= 1
    path.write_bytes(data)
    # Of files so small the checksum of their ends would tell before: as of a set that was made before there was one.
    manifest = json.loads((thirteen / "manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["ends_crc32"]
    (thirteen / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"shard-00001\.array_record: record 2 \(sample 6"):
        batches(thirteen, 5, num_workers=num_workers)


def test_closed_iterator(thirteen):
    iterator = make_iterator([(thirteen, 1.0)], SPEC, seed=0)
    next(iterator)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_large_batches_of_workers_survive_the_iterator(tmp_path):
    """Grain hands large arrays over in shared memory, which must live as long as the arrays do."""
    directory = write_set(tmp_path / "set", [make_sample(i, bucket=(256, 256)) for i in range(4)])
    spec = spec_with(num_tokens=256, batch_size=16)
    with contextlib.closing(make_iterator([(directory, 1.0)], spec, seed=0, num_workers=1)) as iterator:
        kept = [next(iterator) for _ in range(2)]
    assert_batches_equal(kept, batches(directory, 2, spec))


def test_pipeline_imports_no_framework_of_its_own():
    """Grain itself imports jax; nothing else may slow worker processes down."""
    code = (
        "import sys, pixart_jax.data.pipeline; print([m for m in ('flax', 'tensorflow', 'torch') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
