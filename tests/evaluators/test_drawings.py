"""A run whose pictures hold NaN goes on: it says which step had it, and draws and measures nothing of them."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config
from tiny_words import write_words_data

from pixart_jax.cluster.ending import Ending
from pixart_jax.training.looks import open_evaluators
from pixart_jax.training.plan import open_plan
from pixart_jax.training.program import FROM_CONFIG


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluators")
    config = tiny_config(write_words_data(folder / "data"))
    config.sample.retrieval_captions = 2
    with open_plan(config, folder / "run", Ending(), FROM_CONFIG) as plan:
        yield plan


@pytest.fixture(scope="module")
def evaluators(plan):
    return open_evaluators(plan)


@pytest.fixture(scope="module")
def weights(plan):
    from pixart_jax.adapters.adapter import Parameters

    state, frozen = plan.program.birth.fresh()
    return Parameters(state.params, frozen)


def damaged(weights, name):
    def change(path, leaf):
        return leaf.at[(0,) * leaf.ndim].set(jnp.nan) if jax.tree_util.keystr(path).endswith(name) else leaf

    return jax.tree_util.tree_map_with_path(change, weights)


@pytest.mark.parametrize("name", ["['x_embedder']['kernel']", "['final_layer']['linear']['bias']", "['y_embedding']"])
def test_weights(evaluators, weights, name, caplog):
    broken = damaged(weights, name)
    for evaluator in evaluators:
        with caplog.at_level(logging.ERROR):
            report = evaluator(broken, lambda: None)
        assert not report.pictures and not report.scalars and report.about.startswith("no ")
    assert caplog.text.count("step 1 of 3: the model's prediction") == 2
    assert "the weights hold it: " in caplog.text and name.split("'")[-2] in caplog.text


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_pictures(evaluators, weights, number, caplog, monkeypatch):
    for evaluator in evaluators:
        monkeypatch.setitem(evaluator.drawings.__dict__, "decode", lambda latents: np.full((1, 32, 32, 3), number))
        with caplog.at_level(logging.ERROR):
            report = evaluator(damaged(weights, "nothing"), lambda: None)
        assert not report.pictures and not report.scalars
    assert "NO PICTURES ARE DRAWN" in caplog.text and "NO RETRIEVAL IS MEASURED" in caplog.text


def test_sound_weights_are_drawn(evaluators, weights):
    samples, retrieval = (evaluator(weights, lambda: None) for evaluator in evaluators)
    assert samples.pictures["samples"].std() > 0 and 0 <= retrieval.scalars["retrieval_at_1"] <= 1
