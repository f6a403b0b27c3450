"""What the processes of a cluster train on."""

import pytest
from tiny_run import write_config, write_data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with data, data that are held out, data with control pictures, pairs for distribution matching, and a
    config file."""
    root = tmp_path_factory.mktemp("cluster")
    write_data(root / "held_out", num_samples=6)
    write_data(root / "controlled", control="given")
    write_data(root / "pairs", num_samples=6, latent_kind="drawn")
    write_config(root / "config.py", write_data(root / "data"))
    return root
