"""A run that is killed, again and again, ends bit-identical to one that never was."""

import random
import re
import signal
import time

from resume_runs import SETTINGS, assert_identical, finish, half_saved, last_saved, start, wait_for


def test_sigkill_at_five_random_moments(run, tmp_path):
    """In training and inside a save: nothing is lost but the steps since the last save that was completed."""
    config, clean = run
    workdir, rng = tmp_path / "run", random.Random(7)
    resumed, inside = [], 0
    for kill in range(5):
        process, before = start(config, workdir, *SETTINGS), last_saved(workdir)
        # Each run gets to a save of its own, or there would be no end.
        assert wait_for(lambda before=before: last_saved(workdir) > before, process)
        if kill % 2:
            assert wait_for(lambda: half_saved(workdir), process)
            time.sleep(rng.random() * 0.01)
        else:
            time.sleep(rng.random() * 0.1)
        process.kill()
        finish(process, workdir, -signal.SIGKILL)
        inside += half_saved(workdir)
        resumed.append(last_saved(workdir))
    output = finish(start(config, workdir, *SETTINGS), workdir)
    assert inside
    assert [int(step) for step in re.findall(r"going on from step (\d+)", output)] == [step for step in resumed if step]
    assert_identical(workdir, clean)
