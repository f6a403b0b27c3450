"""One tiny run and one studio for all tests of the studio."""

import pytest
from made_once import made_once
from tiny_words import train_words_run

from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.studio.studio import Studio


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    return made_once(tmp_path_factory, "words-run", train_words_run) / "run"


@pytest.fixture(scope="module")
def studio(workdir, tmp_path_factory):
    studio = Studio(TextToImage.from_checkpoint(workdir, keep_loaded=True), tmp_path_factory.mktemp("studio"))
    yield studio
    studio.close()
