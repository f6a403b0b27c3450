"""Each seam of training bears weight: other parts than the config's go through the real loop, killed and resumed."""

import json
import signal

import jax
import numpy as np
import pytest
from seam_parts import ALIGN_DIM, PARTS, RATES, flat, seam_config, train_in_a_process, with_colour
from tiny_run import read_metrics, write_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.cluster.ending import Ending
from pixart_jax.devices.sharding import make_mesh, put_batch
from pixart_jax.errors import InputError
from pixart_jax.evaluators.drawings import Drawings
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.plan import open_plan
from pixart_jax.training.program import Program
from tools.bench.train import synthetic_batch, synthetic_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("seams") / "data", align="tiny", align_dim=ALIGN_DIM)


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A run to start from."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    config = seam_config(data)
    config.sample.every = 0
    train_and_evaluate(config, workdir)
    return workdir


def checksums_of(workdir, step):
    """Of every array that a checkpoint holds, whatever devices have written it."""
    checkpoints = Checkpoints(workdir, read_only=True)
    return {name: checkpoints.recorded_checksums(step, name) for name in ("params", "ema_params", "opt_state")}


@pytest.mark.parametrize(
    ("kind", "devices"),
    [("biases", 1), ("teacher", 2), ("average", 1), ("two", 1), ("routed", 1), ("aligned", 1)],
    ids=lambda value: str(value),
)
def test_a_killed_run_goes_on_bit_identical(kind, devices, data, base, tmp_path):
    """Adapter with a frozen half, frozen teacher, the average, two networks; and runs of two programs."""
    settings = {"init_from": base, "devices": devices}
    assert train_in_a_process(kind, data, tmp_path / "whole", **settings) == 0
    assert train_in_a_process(kind, data, tmp_path / "run", kill_at=8, **settings) == -signal.SIGKILL
    assert not (tmp_path / "run" / "results.json").exists()
    assert train_in_a_process(kind, data, tmp_path / "run", kill_at=8, **settings) == 0
    assert "going on from step" in (tmp_path / "run.log").read_text()
    assert checksums_of(tmp_path / "run", 9) == checksums_of(tmp_path / "whole", 9)
    rows = read_metrics(tmp_path / "run")
    assert rows == read_metrics(tmp_path / "whole") and [row["step"] for row in rows] == [*range(1, 10)]
    for picture in ("samples.png", "samples/step_0000008.png", "strip/step_0000004.png"):
        assert (tmp_path / "run" / picture).read_bytes() == (tmp_path / "whole" / picture).read_bytes()


def test_biases_alone_are_trained_and_saved(data, base, tmp_path):
    config = seam_config(data, base)
    state = train_and_evaluate(config, tmp_path / "run", parts=PARTS["biases"])
    assert all(path.endswith("/delta") for path in flat(state.params))
    assert sum(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state.params)) > len(state.params) / 2
    # Nothing of what is frozen.
    assert checksums_of(tmp_path / "run", 9)["params"].keys() == state.params.keys()
    rows = read_metrics(tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded["num_trained"] < recorded["num_parameters"] / 5
    # It begins where the base ended: with the same batch, seed and step, the base's own weights have that loss.
    config.train.num_steps = 1
    train_and_evaluate(config, tmp_path / "full")
    assert rows[0]["loss"] == pytest.approx(read_metrics(tmp_path / "full")[0]["loss"], rel=1e-5)


def test_a_run_goes_on_with_the_frozen_weights_it_began_with(data, base, tmp_path):
    config = seam_config(data, base)
    config.train.num_steps = 4
    train_and_evaluate(config, tmp_path / "run", parts=PARTS["biases"])
    other = seam_config(data, tmp_path / "other")
    other.seed = 1
    other.init_from = ""
    other.train.num_steps = 1
    train_and_evaluate(other, tmp_path / "other")
    config.train.num_steps = 9
    config.init_from = str(tmp_path / "other")
    with pytest.raises(InputError, match=r"config.init_from = .*other'.*frozen weights have checksum .* began with"):
        train_and_evaluate(config, tmp_path / "run", parts=PARTS["biases"])
    config.init_from = str(base)
    assert int(train_and_evaluate(config, tmp_path / "run", parts=PARTS["biases"]).step) == 9


def test_frozen_weights_are_an_argument_neither_donated_nor_a_constant(data, base):
    config = seam_config(data, base)
    mesh = make_mesh()
    program = Program(config, mesh, PARTS["teacher"])
    compiled = program.lower(synthetic_shapes(config, mesh)).compile()
    sizes = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in program.birth.shapes]
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == sizes[0]
    assert memory.argument_size_in_bytes > sum(sizes)
    state, frozen = program.birth.fresh()
    before, batch = jax.tree.map(np.array, frozen), put_batch(synthetic_batch(config), mesh)
    state, metrics = compiled(state, frozen, batch)
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    # Another teacher, the same program.
    _, others = compiled(state, jax.tree.map(lambda leaf: leaf + 1, frozen), batch)
    assert others["loss"] > 2 * metrics["loss"]


def test_a_student_learns_from_its_frozen_teacher(data, base, tmp_path):
    config = seam_config(data, base)
    config.train.num_steps = 60
    config.sample.every = 0
    train_and_evaluate(config, tmp_path / "run", parts=PARTS["teacher"])
    losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
    assert losses[0] > 1e-3 and np.mean(losses[-5:]) < losses[0] / 2
    teacher = Checkpoints(base, read_only=True)
    with open_plan(config, tmp_path / "again", Ending(), PARTS["teacher"]) as plan:
        frozen = plan.program.birth.frozen(plan.weights)
    expected = teacher.restore_params(Program(config, make_mesh()).state.params)
    jax.tree.map(np.testing.assert_array_equal, frozen["teacher"], expected)


def test_the_average_is_seen_by_the_objective(data, tmp_path):
    train_and_evaluate(seam_config(data), tmp_path / "run", parts=PARTS["average"])
    gaps = [row["gap"] for row in read_metrics(tmp_path / "run")]
    assert gaps[0] == 0 and gaps[-1] > 0


def test_two_networks_have_two_learning_rates(data, tmp_path):
    config = seam_config(data)
    config.train.num_steps = 1
    born, _ = Program(config, make_mesh(), PARTS["two"]).birth.fresh()
    before = jax.tree.map(np.array, born.params)
    state = train_and_evaluate(config, tmp_path / "run", parts=PARTS["two"])
    row = read_metrics(tmp_path / "run")[0]
    for name, rate in RATES.items():
        moved = jax.tree.map(lambda new, old: np.asarray(new) - old, state.params[name], before[name])
        norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(moved)))
        assert norm == pytest.approx(rate * row[f"{name}_grad"], rel=1e-3)


def test_an_evaluator_draws_reports_and_shares_what_is_drawn(data, tmp_path, monkeypatch):
    drawn, draw = [], Drawings._draw

    def draw_and_count(self, weights, indices, beat):
        drawn.append(len(indices))
        return draw(self, weights, indices, beat)

    monkeypatch.setattr(Drawings, "_draw", draw_and_count)
    config = seam_config(data)
    train_and_evaluate(config, tmp_path / "run", evaluators=with_colour)
    # At steps 0, 4, 8 and 9: the grid and the evaluator want the same four pictures.
    assert drawn == [4, 4, 4, 4]
    rows = read_metrics(tmp_path / "run", "colour.jsonl")
    assert [row["step"] for row in rows] == [0, 4, 8, 9]
    assert (tmp_path / "run" / "colour.png").read_text() == "0 4 8 9"
    assert (tmp_path / "run" / "strip.png").exists() and (tmp_path / "run" / "strip" / "step_0000008.png").exists()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["mean_colour"] == rows[-1]["mean_colour"] and results["step"] == 9
    assert results["images_per_second"] > 0 and results["loss"] == read_metrics(tmp_path / "run")[-1]["loss"]
