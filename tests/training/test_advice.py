"""Warnings about settings that a run is too short for, and about schedules that have run down."""

import json
import logging

import pytest
from tiny_run import read_metrics, tiny_config, write_data

from pixart_jax.config import default_config
from pixart_jax.training.advice import changed_schedule, short_run
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.record import record_config


def config_of(**settings):
    """Of a run that nothing is to be said about, but for "section__key" settings."""
    config = default_config()
    config.train.update({"num_steps": 8000, "ema_decay": 0.995})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 200, "schedule": "cosine"})
    for key, value in settings.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


@pytest.mark.parametrize(
    ("settings", "key", "says"),
    [
        ({"optimizer__warmup_steps": 9000}, "optimizer.warmup_steps = 9000", "rises for all of it, to 89% of what"),
        ({"optimizer__warmup_steps": 5000}, "optimizer.warmup_steps = 5000", "rises for most of it, to 100% of what"),
        ({"sample__every": 8001}, "sample.every = 8001", "only the one at its end; set it to 1600 or so"),
        ({"eval__every": 9000, "eval__source": "held"}, "eval.every = 9000", "only the one at its end"),
        ({"train__log_every": 10_000}, "train.log_every = 10000", "only its end is logged"),
    ],
)
def test_a_run_too_short_for_a_setting(settings, key, says):
    (line,) = short_run(config_of(**settings))
    assert line.startswith(f"config.{key}") and says in line and "(config.train.num_steps)" in line


@pytest.mark.parametrize(
    "settings",
    [{}, {"sample__every": 0}, {"eval__every": 9000}, {"optimizer__warmup_steps": 0}, {"sample__every": 8000}],
)  # fmt: skip
def test_nothing_is_said_of_what_fits(settings):
    assert short_run(config_of(**settings)) == []


def test_what_is_advised_is_no_reason_for_another_warning():
    for steps in (10, 30, 100, 1000, 10_000):
        config = config_of(train__num_steps=steps, optimizer__warmup_steps=10 * steps)
        config.sample.every = config.train.log_every = 2 * steps
        for line in short_run(config):
            key, value = line.removeprefix("config.").split()[0], line.rpartition("set it to ")[2].split()[0]
            section, name = key.split(".")
            config[section][name] = type(config[section][name])(float(value))
        assert short_run(config) == []


@pytest.mark.parametrize(
    ("changes", "says", "cure"),
    [
        ({"train__num_steps": 8060}, "it goes on at 1.4e-7 and comes to ", True),
        ({"train__num_steps": 8060, "optimizer__learning_rate": 1e-2}, "it goes on at 1.4e-6", True),
        ({"train__num_steps": 16_000}, "it goes on at 0.00051 and comes to ", False),
        ({"train__num_steps": 8060, "optimizer__schedule": "constant"}, "goes on at 0.001 and stays there", False),
        ({"optimizer__learning_rate": 1e-2}, "all 8000 steps are done", False),
    ],
)
def test_a_finished_cosine_that_goes_on(changes, says, cure):
    said = changed_schedule(config_of(), config_of(**changes), 8000)
    assert says in said, said
    assert ("has run down" in said and "config.init_from" in said) == cure


@pytest.mark.parametrize(
    ("changes", "step", "says"),
    [
        ({"optimizer__learning_rate": 1e-4}, 100, "was 0.0005; with these settings it goes on at 5e-5"),
        ({"data__batch_size": 1024, "optimizer__lr_scaling": "sqrt"}, 4000, "goes on at 0.001 and comes to "),
        ({"optimizer__warmup_steps": 6000}, 4000, "goes on at 0.00067"),
    ],
)
def test_a_run_changed_on_its_way(changes, step, says):
    said = changed_schedule(config_of(), config_of(**changes), step)
    assert says in said and "run down" not in said


def test_nothing_is_said_where_the_rate_is_as_it_was():
    assert changed_schedule(config_of(), config_of(sample__every=7, train__ema_decay=0.9), 4000) is None


def test_a_resumed_run_says_it(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps(config_of().to_dict()))
    with caplog.at_level(logging.WARNING, logger="absl"):
        record_config(tmp_path, config_of(train__num_steps=8060), 8000)
    assert "config.train.num_steps was 8000" in caplog.text and "has run down" in caplog.text
    caplog.clear()
    record_config(tmp_path, config_of(train__num_steps=8060), 8000)
    assert not caplog.records


def test_both_ways_to_train_longer(tmp_path, caplog):
    """As docs/training.md has them: another schedule from where the run ended, and its weights in another workdir."""
    config = tiny_config(write_data(tmp_path / "data"))
    config.optimizer.schedule = "cosine"
    config.sample.every = 0
    config.train.update({"num_steps": 6, "log_every": 3, "checkpoint_every": 6})
    train_and_evaluate(config, tmp_path / "run")
    config.train.num_steps = 9
    config.optimizer.schedule = "constant"
    with caplog.at_level(logging.WARNING, logger="absl"):
        train_and_evaluate(config, tmp_path / "run")
    assert "it goes on at 0.003 and stays there" in caplog.text and "run down" not in caplog.text
    assert [row["learning_rate"] for row in read_metrics(tmp_path / "run")][-1] == pytest.approx(3e-3)

    config.init_from = str(tmp_path / "run")
    config.optimizer.update({"schedule": "cosine", "warmup_steps": 0})
    train_and_evaluate(config, tmp_path / "longer")
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "longer")]
    assert [row["step"] for row in read_metrics(tmp_path / "longer")] == [3, 6, 9]
    assert rates[0] > rates[1] > rates[2] and rates[0] > 2e-3
