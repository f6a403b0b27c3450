"""A run to compare with."""

import pytest
import tiny_run
from made_once import made_once
from resume_runs import SETTINGS
from tiny_run import write_config, write_data


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """(config file, workdir of a run that was never interrupted)."""

    def make(root):
        config = write_config(root / "config.py", write_data(root / "data"))
        # In an interpreter of its own, as people start it.
        tiny_run.finish(tiny_run.start_main(config, root / "clean", *SETTINGS))

    root = made_once(tmp_path_factory, "never_interrupted", make)
    return root / "config.py", root / "clean"
