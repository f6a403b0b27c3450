import pytest
from shard_cases import write_set


@pytest.fixture
def thirteen(tmp_path):
    """Directory of a set of thirteen samples in four shards."""
    return write_set(tmp_path / "thirteen", 13)
