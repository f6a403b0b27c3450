"""Encoders for the tests of extraction."""

import pytest
from tiny_pipeline import make_pipeline, save

from tools import convert


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A converted tiny Σ, of which extraction takes the encoders."""
    folder = tmp_path_factory.mktemp("weights")
    reference = make_pipeline("sigma", sample_size=32, interpolation_scale=0.5)
    assert convert.main([str(save(reference, folder / "pipeline")), str(folder / "weights")]) == 0
    return folder / "weights"
