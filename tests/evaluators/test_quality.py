"""Metrics of the pictures that a run draws, by a real network with drawn weights: what they are, cost, and refuse."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from classifier_weights import GOLDEN, write_efficientnet
from tiny_run import read_metrics, tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.adapters.adapter import Parameters
from pixart_jax.cluster.ending import Ending
from pixart_jax.errors import InputError, NotFinite
from pixart_jax.evaluators.clip_network import ClipNetwork
from pixart_jax.evaluators.distances import Statistics, kernel_distance
from pixart_jax.evaluators.drawings import Drawings, Share
from pixart_jax.evaluators.efficientnet_network import open_efficientnet
from pixart_jax.evaluators.quality import look
from pixart_jax.evaluators.references import write_statistics
from pixart_jax.figures.images import to_uint8
from pixart_jax.training.looks import open_evaluators
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.plan import open_plan
from pixart_jax.training.program import FROM_CONFIG

CLIP = GOLDEN / "clip"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/ of four pictures with captions, and lite0.pth."""
    folder = tmp_path_factory.mktemp("quality")
    write_words_data(folder / "data")
    write_efficientnet(folder / "lite0.pth")
    return folder


def config_of(place, **evaluation):
    config = tiny_config(place / "data")
    config.train.update({"num_steps": 4, "log_every": 1})
    config.sample.update({"every": 2, "retrieval_captions": 4})
    config.eval.update(
        {
            "metrics": "frechet_distance, kid",
            "metrics_every": 2,
            "network": "efficientnet-lite0",
            "network_weights": str(place / "lite0.pth"),
        }
        | evaluation
    )
    return config


@pytest.fixture(scope="module")
def plan(place, tmp_path_factory):
    with open_plan(config_of(place), tmp_path_factory.mktemp("plan") / "run", Ending(), FROM_CONFIG) as plan:
        yield plan


@pytest.fixture(scope="module")
def evaluator(plan):
    return open_evaluators(plan)[-1]


@pytest.fixture(scope="module")
def weights(plan):
    state, frozen = plan.program.birth.fresh()
    return Parameters(state.params, frozen)


@pytest.fixture(scope="module")
def features(place):
    """pictures uint8[H, W, 3] to f32[N, 1280]."""
    network = open_efficientnet(place / "lite0.pth")
    apply = jax.jit(lambda pictures: network.apply(network.params, pictures)["features"])
    return lambda pictures: np.asarray(apply(np.stack([network.prepare(picture) for picture in pictures])))


def statistics(rows):
    return Statistics(rows.mean(0, dtype=np.float64), np.cov(rows.astype(np.float64).T), len(rows))


def frechet(first, second):
    """Of few features, whose covariances are products of small matrices."""
    one, two = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (first.astype(float), second.astype(float)))
    between = first.mean(0, dtype=float) - second.mean(0, dtype=float)
    roots = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    return between @ between + (one**2).sum() + (two**2).sum() - 2 * roots


def test_the_metrics_are_those_of_what_is_drawn(evaluator, weights, features):
    drawings = evaluator.drawings
    rows = [
        features([to_uint8(picture) for picture in pictures])
        for pictures in (drawings.draw(weights, range(4)), drawings.real(range(4)))
    ]
    report = evaluator(weights, lambda: None)
    assert report.scalars == pytest.approx(
        {
            "frechet_distance": frechet(*rows),
            "kernel_distance": kernel_distance(*rows, subset_size=4)[0],
        },
        rel=1e-5,
    )
    assert all(value > 0 for value in report.scalars.values()) and "of 4 pictures" in report.about


def test_training_does_not_notice_and_pictures_are_drawn_once(place, tmp_path, monkeypatch):
    drawn, latents = [], Drawings._latents

    def draw_and_count(self, weights, indices, beat):
        drawn.append(len(indices))
        return latents(self, weights, indices, beat)

    monkeypatch.setattr(Drawings, "_latents", draw_and_count)
    train_and_evaluate(config_of(place, metrics="kid"), tmp_path / "with")
    # At steps 0, 2 and 4: metrics, grid and retrieval want the same four pictures.
    assert drawn == [4, 4, 4]
    rows = read_metrics(tmp_path / "with", "quality.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert (tmp_path / "with" / "quality.png").stat().st_size > 5000
    results = json.loads((tmp_path / "with" / "results.json").read_text(encoding="utf-8"))
    assert results["kernel_distance"] == rows[-1]["kernel_distance"] != rows[0]["kernel_distance"]
    config = config_of(place, metrics="")
    config.sample.update({"every": 0, "retrieval_captions": 0})
    train_and_evaluate(config, tmp_path / "without")
    assert read_metrics(tmp_path / "with") == read_metrics(tmp_path / "without")
    assert not (tmp_path / "without" / "quality.jsonl").exists()


@pytest.mark.parametrize("known", [(), (1,), (0, 1, 2, 3)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_what_is_drawn(evaluator, weights, known, processes):
    """Each looks at every so manieth picture, whoever has drawn some of them before."""
    drawn = evaluator.drawings.draw(weights, range(4))
    shares = []
    for index in range(processes):
        own = Parameters(*weights)  # What is drawn is kept for one object.
        evaluator.drawings.draw(own, known)
        parts = [*evaluator.drawings.stream(own, range(4), Share(index, processes))]
        shares.append([pair for part in parts for pair in zip(*part, strict=True)])
        for number, picture in shares[-1]:
            np.testing.assert_array_equal(picture, drawn[number])
    order = [number for turn in range(4) for share in shares for number, _ in share[turn : turn + 1]]
    assert sorted(order) == [0, 1, 2, 3] and order[: len(known)] == [*known]
    assert max(map(len, shares)) == -(-4 // processes)


def test_what_is_not_finite_is_not_measured(evaluator, weights, caplog):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, weights)
    with caplog.at_level(logging.ERROR):
        report = evaluator(broken, lambda: None)
    assert not report.scalars and report.about.startswith("no metrics") and "NO METRIC OF PICTURES" in caplog.text


def test_a_picture_that_is_not_finite_is_named(evaluator):
    real = evaluator.drawings.real(range(4))
    real[2] = real[2] * np.nan
    with pytest.raises(NotFinite, match=rf"{CAPTIONS[2]!r} \(sample 2\).*1 of 4"):
        look(evaluator.measures, evaluator.drawings, np.arange(4), [([0, 1, 2, 3], real)])


def test_statistics_of_other_pictures_are_a_reference(place, tmp_path):
    network = open_efficientnet(place / "lite0.pth")
    rows = np.random.default_rng(0).normal(size=(5, 1280))
    write_statistics(tmp_path / "photos.npz", statistics(rows), "photos", network)
    config = config_of(place, metrics="frechet_distance", reference=str(tmp_path / "photos.npz"))
    with open_plan(config, tmp_path / "run", Ending(), FROM_CONFIG) as plan:
        (distances,) = open_evaluators(plan)[-1].measures
    np.testing.assert_array_equal(distances.reference.mu, statistics(rows).mu)
    assert distances.reference.count == 5 and distances.references is None and distances.frechet


def test_clip_score_is_of_each_picture_s_own_caption(place, tmp_path, weights):
    config = config_of(place, metrics="clip_score", network_weights="", clip=str(CLIP))
    with open_plan(config, tmp_path / "run", Ending(), FROM_CONFIG) as plan:
        quality = open_evaluators(plan)[-1]
        report = quality(weights, lambda: None)
    clip, drawings = ClipNetwork(CLIP), quality.drawings
    pictures = clip.image_features([to_uint8(picture) for picture in drawings.draw(weights, range(4))])
    cosines = (pictures * clip.text_features(CAPTIONS)).sum(1)
    assert report.scalars == {"clip_score": pytest.approx(max(0, 100 * cosines.mean()), rel=1e-5)}
    (rows,) = look(quality.measures, drawings, np.arange(4), drawings.stream(weights, range(4), Share(0, 1)))
    np.testing.assert_allclose(rows[:, 0], cosines, atol=1e-6)


def test_what_cannot_be_measured_is_refused_before_the_run(place, tmp_path):
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    for evaluation, said in (
        (
            {"metrics": "fid"},
            r"config\.eval\.metrics = 'fid': must be some of frechet_distance, kid, clip_score",
        ),
        ({"network_weights": ""}, r"config\.eval\.network_weights = '': .*needs the weights of efficientnet-lite0"),
        ({"network_weights": str(tmp_path / "none.pth")}, r"config\.eval\.network_weights: .*none\.pth cannot be read"),
        ({"network_weights": str(tmp_path / "text.pth")}, r"config\.eval\.network_weights: .*text\.pth"),
        ({"network": "fid-inception"}, r"config\.eval\.network_weights: .*lite0\.pth: "),
        ({"reference": str(tmp_path / "narrow.npz")}, r"config\.eval\.metrics = .*kid needs the reference's pictures"),
        (
            {"metrics": "frechet_distance", "reference": str(tmp_path / "narrow.npz")},
            r"config\.eval\.reference: .*narrow\.npz: mu has 2048 values",
        ),
        ({"metrics": "clip_score"}, r"config\.eval\.clip = '': .*needs a CLIP: name its folder"),
        ({"metrics": "clip_score", "clip": str(tmp_path)}, r"config\.eval\.clip: .* has no config\.json"),
        ({"num_pictures": 1}, r"config\.eval\.num_pictures = 1: must lie in \[2, "),
    ):
        with pytest.raises(InputError, match=said):
            train_and_evaluate(config_of(place, **evaluation), tmp_path / "run")
        assert not (tmp_path / "run").exists()
