"""One run owns a workdir: a second one is refused, and changes nothing; one that was killed stands in nobody's way."""

import pytest
from resume_runs import SETTINGS, finish, last_logged, start, wait_for
from tiny_run import read_metrics, tiny_config

from pixart_jax.errors import InputError
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.plan import LOCK_FILE


def content(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def owned(run, tmp_path_factory):
    """(config file, workdir of a run that waits for ever at its thirtieth step, its process)."""
    config, workdir = run[0], tmp_path_factory.mktemp("owner") / "run"
    process = start(config, workdir, *SETTINGS, "--config.train.hang_timeout=0", block_at=30)
    assert wait_for(lambda: last_logged(workdir) == 28 and (workdir / "checkpoints" / "22").is_dir(), process)
    yield config, workdir, process
    process.kill()


@pytest.mark.parametrize("kind", ["the same command", "other settings", "by another name"])
def test_a_second_run_is_refused_and_changes_nothing(owned, kind, tmp_path):
    config, workdir, _ = owned
    before = content(workdir)
    if kind == "the same command":
        log = finish(start(config, workdir, *SETTINGS), workdir, 2)
        assert "is being written by another process (pid" in log and "Traceback" not in log
    else:
        settings = tiny_config(config.parent / "data")
        if kind == "by another name":
            (tmp_path / "link").symlink_to(workdir)
            workdir = tmp_path / "link"
        settings.optimizer.learning_rate = 1.0
        with pytest.raises(InputError, match=r"is being written by another process \(pid \d+ on .*stop it"):
            train_and_evaluate(settings, workdir)
    assert content(owned[1]) == before


def test_a_killed_owner_is_followed_at_once(owned):
    config, workdir, process = owned
    process.kill()
    process.join()
    assert (workdir / LOCK_FILE).exists()
    finish(start(config, workdir, *SETTINGS, "--config.train.num_steps=33"), workdir)
    assert read_metrics(workdir)[-1]["step"] == 33
    assert not (workdir / LOCK_FILE).exists()
