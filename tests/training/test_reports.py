"""What a run says while it goes on: a line a report, waits announced before they begin, nothing of libraries."""

import logging
import re
import time

import jax
import pytest
from tiny_run import tiny_config, write_data

from pixart_jax.checkpoints import checkpoints as checkpoints_module
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.checkpoints.state import TrainState
from pixart_jax.commands import _is_no_chatter
from pixart_jax.main import Lines
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.metrics import format_rate, progress_line


@pytest.mark.parametrize(
    ("scalars", "line"),
    [
        (
            {"images_per_second": 227.3, "loss": 0.03621, "learning_rate": 5.2e-8, "grad_norm": 3.0},
            "step 8010/8060  loss 0.03621  lr 5.2e-8  227 img/s  7s left",
        ),
        ({"images_per_second": 0.123, "loss": 12345.6, "mfu": 0.414}, "loss 1.235e+04  0.12 img/s  mfu 41%  7s left"),
        ({"learning_rate": 0.001, "images_per_second": 9.96}, "step 8010/8060  lr 0.001  10 img/s  7s left"),
        ({"learning_rate": 0.0, "images_per_second": 2e5, "mse": 1.0}, "lr 0  200000 img/s  7s left"),
    ],
)
def test_a_log_step_is_one_line_in_one_order(scalars, line):
    assert progress_line(8010, 8060, scalars, 7.2).endswith(line)
    assert "left" not in progress_line(8060, 8060, scalars, 0)


@pytest.mark.parametrize(("rate", "text"), [(1e-10, "1e-10"), (2.5e-5, "2.5e-5"), (0.02, "0.02"), (1.0, "1")])
def test_rates(rate, text):
    assert format_rate(rate) == text


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("reports") / "data")


def test_a_run_says_what_it_does_before_it_does_it(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    config = tiny_config(data)
    config.eval.update({"source": str(data), "every": 6, "num_samples": 8})
    config.train.num_steps = 9
    config.sample.update({"every": 6, "num_images": 2})
    train_and_evaluate(config, tmp_path)
    said = [record.getMessage() for record in caplog.records if "pixart_jax" in record.pathname]
    assert not [line for line in said if "\n" in line]
    for step in (3, 6, 9):
        (report,) = (line for line in said if re.match(rf"step {step}/9  loss", line))
        assert re.fullmatch(rf"step {step}/9  loss \S+  lr \S+  \S+ img/s(  \S+ left)?", report)
    # What waits, then how long it took, with nothing between.
    for before, after in (
        ("making the first state ...", "making the first state: done in "),
        ("compiling the training step", "compiling the training step"),
        ("step 0/9  eval: training waits, and the first time may compile ...", "step 0/9  evaluation loss "),
        ("step 6/9  eval: training waits ...", "step 6/9  evaluation loss "),
        ("step 6/9  samples: training waits, and the first time may compile ...", "step 6/9  "),
        ("step 9/9  samples: training waits ...", "step 9/9  "),
    ):
        place = next(i for i, line in enumerate(said) if line.startswith(before))
        following = [line for line in said[place + 1 :] if not line.startswith("checkpoint")]
        assert following[0].startswith(after) and re.search(r"in \S+s$", following[0]), (before, following[0])
    # The table of parameters is there for whoever asks.
    (total,) = (line for line in said if "parameters are trained" in line)
    table = (tmp_path / "parameters.txt").read_text(encoding="utf-8").splitlines()
    assert total.startswith(table[-1]) and any(
        line.split()[:3] == ["x_embedder/kernel", "(16,", "24)"] for line in table
    )

    caplog.clear()
    train_and_evaluate(config, tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("going on from step 9 in") and "finished already" in line for line in said)
    assert not any("compiling the training step" in line or " img/s  " in line for line in said)


@pytest.mark.parametrize("later", [10, 1000, 100_000])
def test_a_checkpoint_takes_no_longer_for_what_the_loop_does_meanwhile(later, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="absl")
    params = {"kernel": jax.numpy.ones((4, 4))}
    state = TrainState(step=jax.numpy.int32(1), params=params, ema_params=params, opt_state=params)
    checkpoints, begin = Checkpoints(tmp_path), time.monotonic()
    checkpoints.save(state, {})
    while checkpoints._manager.is_saving_in_progress():
        time.sleep(0.01)
    wrote, now = time.monotonic() - begin, time.monotonic
    monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: now() + later)  # Drawing, say.
    checkpoints.check()
    monkeypatch.undo()
    checkpoints.close()
    (line,) = (record.getMessage() for record in caplog.records if "complete after" in record.getMessage())
    assert float(re.search(r"complete after (\S+) s", line)[1]) <= wrote + 0.1


@pytest.mark.parametrize(
    ("pathname", "level", "shown"),
    [
        ("/site-packages/orbax/checkpoint/checkpoint_manager.py", logging.WARNING, False),
        ("/site-packages/orbax/checkpoint/_src/metadata/checkpoint.py", logging.WARNING, False),
        ("/site-packages/orbax/checkpoint/checkpoint_manager.py", logging.INFO, False),
        ("/site-packages/orbax/checkpoint/checkpoint_manager.py", logging.ERROR, True),
        ("/src/pixart_jax/training/history.py", logging.WARNING, True),
        ("/site-packages/jax/_src/compiler.py", logging.WARNING, True),
    ],
)
def test_whose_words_are_shown(pathname, level, shown):
    record = logging.LogRecord("absl", level, pathname, 1, "text", (), None)
    assert bool(_is_no_chatter(record)) == shown


@pytest.mark.parametrize(
    ("level", "line"),
    [(logging.INFO, "half"), (logging.WARNING, "WARNING: half"), (logging.ERROR, "ERROR: half")],
)
def test_only_what_is_no_ordinary_report_says_so(level, line):
    record = logging.LogRecord("absl", level, "file.py", 1, "%s", ("half",), None)
    assert re.fullmatch(rf"\d\d-\d\d \d\d:\d\d:\d\d {line}", Lines().format(record))
