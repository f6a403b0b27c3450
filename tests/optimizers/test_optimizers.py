"""AdamW, CAME and Muon step by step beside PyTorch's and optax's, on the reference's tensors; schedules; sharding."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from came_pytorch import CAME
from tiny_run import read_metrics, run_python, tiny_config, write_data

from pixart_jax.config import build_model, check_config, default_config, optimizer_spec
from pixart_jax.conversion.names.pixart import revert_pixart
from pixart_jax.conversion.runs import require_evaluated
from pixart_jax.errors import InputError
from pixart_jax.models.controlnet import copy_blocks
from pixart_jax.models.params import init_params
from pixart_jax.optimizers import build_optimizer, learning_rate_schedule
from pixart_jax.optimizers.came import CameSpec, scale_by_came
from pixart_jax.optimizers.schedule_free import settled
from pixart_jax.training.loop import train_and_evaluate

STEPS, WARMUP, LEARNING_RATE, BATCH = 50, 10, 0.02, 1024
CAME_SCALE = scale_by_came(
    CameSpec(b3=0.9999, eps1=1e-30, eps2=1e-16, clip_threshold=1.0), b1=0.9, b2=0.999, patch_size=2
)


def small_config(**optimizer):
    """A stack of two blocks with every kind of parameter that Σ has, each of another size than its neighbours."""
    config = tiny_config("unused")
    config.model.update(
        {"hidden_size": 12, "micro_condition": False, "resolution": 64, "kv_compress_ratio": 2, "kv_compress_from": 0}
    )
    config.optimizer.update({"learning_rate": LEARNING_RATE, "warmup_steps": WARMUP, "eps": 1e-10} | optimizer)
    return config


def flat(tree):
    return {
        "/".join(key.key for key in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def reference_tensors(model, tree):
    """A tree like the parameters', cut and laid out as PyTorch's parameters are; the null caption is a buffer there."""
    arrays = flat(tree)
    tensors = dict(revert_pixart(arrays, arrays.__getitem__, model.segments(), model.patch_size))
    del tensors["y_embedder.y_embedding"]
    return tensors


def random_gradients(params):
    """One tree per step. Each tensor has a scale of its own, one row of zeros, and steps at which all of it is zero."""
    rng = np.random.default_rng(0)
    leaves, treedef = jax.tree.flatten(params)
    scales = 10.0 ** rng.uniform(-3, 1, len(leaves))

    def gradient(leaf, scale):
        array = rng.normal(size=leaf.shape) * scale * rng.lognormal(size=leaf.shape) * (rng.random() < 0.9)
        array[..., 0] = 0
        return array.astype(np.float32)

    for _ in range(STEPS):
        grads = treedef.unflatten(map(gradient, leaves, scales))
        grads["y_embedder"]["y_embedding"][:] = 0
        yield grads


@functools.cache
def small_params():
    model, rng = build_model(small_config()), np.random.default_rng(1)
    shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    # Nothing that starts at zero, which would hide a wrong weight decay.
    return jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) * 0.1).astype(np.float32), shapes)


def train_reference(model, params, make_optimizer, grad_clip):
    """Tensors and optimizer of PyTorch after all steps."""
    tensors = {
        name: torch.nn.Parameter(torch.tensor(array)) for name, array in reference_tensors(model, params).items()
    }
    optimizer = make_optimizer(tensors.values())
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / WARMUP))
    for grads in random_gradients(params):
        for name, grad in reference_tensors(model, grads).items():
            tensors[name].grad = torch.tensor(grad)
        if grad_clip:
            torch.nn.utils.clip_grad_norm_(tensors.values(), grad_clip)
        optimizer.step()
        warmup.step()
    return tensors, optimizer


def assert_close(ours, theirs, before=None):
    """To 1e-5 of the largest change of each tensor."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        value = value.detach().numpy()
        change = np.abs(value - (0 if before is None else before[name])).max()
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-5 * change, err_msg=name)


def train(tx, params, gradients):
    """(parameters, state) after all of the gradients."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = tx.init(params)
    for grads in gradients:
        params, state = step(params, state, grads)
    return params, state


@pytest.mark.parametrize("name,weight_decay,grad_clip", [("adamw", 0.03, 1.0), ("came", 0.0, None), ("came", 0.5, 1.0)])
def test_fifty_steps_as_in_pytorch(name, weight_decay, grad_clip):
    config = small_config(
        name=name, weight_decay=weight_decay, grad_clip=grad_clip or 1e9, lr_scaling="sqrt", warmup_steps=WARMUP
    )
    config.data.batch_size = BATCH
    check_config(config)
    model, params = build_model(config), small_params()
    ours, state = train(build_optimizer(optimizer_spec(config)), params, random_gradients(params))

    fields = {"lr": LEARNING_RATE * 2, "weight_decay": weight_decay}
    theirs, optimizer = train_reference(
        model,
        params,
        lambda tensors: CAME(tensors, **fields) if name == "came" else torch.optim.AdamW(tensors, eps=1e-10, **fields),
        grad_clip,
    )
    assert_close(reference_tensors(model, ours), theirs, reference_tensors(model, params))
    momentum = {key: optimizer.state[tensor]["exp_avg"] for key, tensor in theirs.items()}
    assert_close(reference_tensors(model, state[1][0].mu), momentum)
    # Data, and not a parameter: neither its zero gradient nor weight decay may move it.
    null_caption = "y_embedder/y_embedding"
    np.testing.assert_array_equal(flat(ours)[null_caption], flat(params)[null_caption])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_fifty_steps_of_muon():
    """The matrices of blocks, each by itself, as `optax.contrib.muon` has them; all else as in PyTorch's AdamW.

    PyTorch's own Muon is another: it computes in bfloat16 and corrects no bias."""
    config = small_config(name="muon", weight_decay=0.1, grad_clip=1e9)
    check_config(config)
    model, params = build_model(config), small_params()
    ours, state = train(build_optimizer(optimizer_spec(config)), params, random_gradients(params))
    ours, before = reference_tensors(model, ours), reference_tensors(model, params)
    matrices = {name: x for name, x in before.items() if name.startswith("blocks.") and x.ndim == 2}
    matrices = {name: x for name, x in matrices.items() if not name.endswith("scale_shift_table")}
    assert len(matrices) == 7 * 2

    rate = optax.join_schedules([optax.linear_schedule(0, LEARNING_RATE, WARMUP), lambda _: LEARNING_RATE], [WARMUP])
    muon = optax.contrib.muon(rate, weight_decay=0.1, consistent_rms=0.2)
    gradients = (reference_tensors(model, grads) for grads in random_gradients(params))
    theirs, _ = train(muon, matrices, ({name: grads[name] for name in matrices} for grads in gradients))
    for name, value in theirs.items():
        change = np.abs(value - before[name]).max()
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-4 * change, err_msg=name)

    fields = {"lr": LEARNING_RATE, "weight_decay": 0.1}
    theirs, _ = train_reference(
        model, params, lambda tensors: torch.optim.AdamW(tensors, eps=1e-10, **fields), grad_clip=None
    )
    others = {name: value for name, value in theirs.items() if name not in matrices}
    assert_close({name: ours[name] for name in others}, others, before)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_fifty_steps_without_a_schedule():
    """As `optax.contrib.schedule_free_adamw`, where gradients are taken and where is evaluated; data do not move."""
    config = small_config(name="schedule_free", weight_decay=0.03, grad_clip=1e9)
    check_config(config)
    params, null_caption = small_params(), "y_embedder/y_embedding"
    ours, state = train(build_optimizer(optimizer_spec(config)), params, random_gradients(params))
    rate = optax.join_schedules([optax.linear_schedule(0, LEARNING_RATE, WARMUP), lambda _: LEARNING_RATE], [WARMUP])
    tx = optax.contrib.schedule_free_adamw(rate, b1=0.9, b2=0.999, eps=1e-10, weight_decay=0.03)
    theirs, their_state = train(tx, params, random_gradients(params))
    evaluated = flat(optax.contrib.schedule_free_eval_params(their_state, theirs))
    before, found = flat(params), flat(settled(state, ours))
    for name in before.keys() - {null_caption}:
        for got, wanted in ((found[name], evaluated[name]), (flat(ours)[name], flat(theirs)[name])):
            change = np.abs(wanted - before[name]).max()
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * change, err_msg=name)
    for tree in (ours, settled(state, ours)):
        np.testing.assert_array_equal(flat(tree)[null_caption], before[null_caption])


@pytest.mark.parametrize(("name", "per_parameter"), [("muon", 4.11), ("adamw", 8.0), ("schedule_free", 8.0)])
def test_bytes_of_state(name, per_parameter):
    """Of a parameter of an XL/2; 4.11 is in Muon's docstring."""
    config = default_config()
    config.optimizer.name = name
    params = jax.eval_shape(functools.partial(init_params, build_model(config)), jax.random.key(0))
    state = jax.eval_shape(build_optimizer(optimizer_spec(config)).init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size / sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(per_parameter, abs=0.006)


def test_came_without_any_gradient_moves_nothing():
    params = {"t_block": small_params()["t_block"]}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = CAME_SCALE.update(zero, CAME_SCALE.init(params))
    jax.tree.map(np.testing.assert_array_equal, updates, zero)


@pytest.mark.parametrize("model", [{}, {"num_classes": 1000, "adaln": "full"}], ids=str)
def test_came_takes_half_of_adamws_memory(model):
    """4.01 bytes per parameter of an XL/2 are in the docstring."""
    config = default_config()
    config.model.update(model)
    params = jax.eval_shape(functools.partial(init_params, build_model(config)), jax.random.key(0))
    state = jax.tree.leaves(jax.eval_shape(CAME_SCALE.init, params))
    assert all(leaf.dtype == jnp.float32 for leaf in state)
    per_parameter = 4 * sum(leaf.size for leaf in state) / sum(leaf.size for leaf in jax.tree.leaves(params))
    assert per_parameter == pytest.approx(4.01, abs=0.006)


def test_came_knows_a_controlnets_stack():
    copies = jax.eval_shape(lambda params: copy_blocks(params, 2), small_params())
    state = jax.eval_shape(CAME_SCALE.init, copies)
    assert state.statistics["copies"]["after_proj"]["bias"]["sq"].shape == (2, 12)
    assert state.statistics["copies"]["after_proj"]["kernel"]["sq_row"].shape == (2, 12)
    assert state.statistics["before_proj"]["kernel"]["sq_row"].shape == (12,)


@pytest.mark.parametrize(
    "tree,message",
    [
        ({"blocks_0": {"mystery": np.zeros((2, 3))}}, r"no layout covers blocks_0/mystery \(2, 3\); add one"),
        ({"stack": {"fc1": {"kernel": np.zeros((2, 3, 3))}}}, r"stack/fc1/kernel \(2, 3, 3\) has not the axes"),
    ],
)
def test_came_refuses_what_its_table_does_not_cover(tree, message):
    with pytest.raises(ValueError, match=message):
        CAME_SCALE.init(tree)


def schedule_of(batch_size=BATCH, num_steps=110, **optimizer):
    config = small_config(**{"learning_rate": 2.0, "warmup_steps": 10} | optimizer)
    config.data.batch_size, config.train.num_steps = batch_size, num_steps
    check_config(config)
    schedule = learning_rate_schedule(optimizer_spec(config))
    return lambda *steps: [float(schedule(step)) for step in steps]


def test_schedules():
    assert schedule_of(schedule="cosine")(0, 5, 10, 60, 110) == pytest.approx([0, 1, 2, 1, 0], abs=1e-6)
    assert schedule_of(warmup_steps=0)(0, 10**6) == [2, 2]
    # The last fifth, by 1 - √; a warm-up that leaves less than that.
    stable = schedule_of(schedule="warmup_stable_decay", num_steps=500)
    assert stable(0, 5, 10, 400, 425, 500) == pytest.approx([0, 1, 2, 2, 1, 0], abs=1e-6)
    late = schedule_of(schedule="warmup_stable_decay", num_steps=500, warmup_steps=460)
    assert late(460, 470, 500) == pytest.approx([2, 1, 0], abs=1e-6)
    # From 4 (√(1024/256) times 2) to 2, at 66.7 % of 300 steps, warm-up included.
    falling = schedule_of(schedule="cosine_decay_to_constant", lr_scaling="sqrt", num_steps=300)
    assert falling(0, 5, 10, 105, 200, 300) == pytest.approx([0, 2, 4, 3, 2, 2], abs=1e-6)


@pytest.mark.parametrize(
    "rule,batch_size,rate", [("none", 1024, 2), ("sqrt", 1024, 4), ("linear", 1024, 8), ("sqrt", 64, 1)]
)
def test_scaled_learning_rate(rule, batch_size, rate):
    assert schedule_of(lr_scaling=rule, batch_size=batch_size)(10) == [rate]


def test_reference_example_of_a_scaled_rate():
    """176 samples on each of 64 GPUs: 2e-5 becomes 1.33e-4."""
    rate = schedule_of(learning_rate=2e-5, lr_scaling="sqrt", batch_size=176 * 64)(10)
    assert rate == pytest.approx([1.33e-4], rel=5e-3)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"name": "lion"}, r"config.optimizer.name = 'lion': must be one of adamw, came, muon, schedule_free"),
        ({"lr_scaling": "cube"}, r"config.optimizer.lr_scaling = 'cube': must be one of none, sqrt, linear"),
        ({"name": "came", "eps": 1e-8}, r"config.optimizer.eps = 1e-08: .*'came' does not heed it; leave it at 1e-10"),
        ({"came": {"b3": 0.99}}, r"config.optimizer.came.b3 = 0.99: .*'adamw' does not heed it; leave it at 0.9999"),
        ({"muon": {"beta": 0.9}}, r"config.optimizer.muon.beta = 0.9: .*'adamw' does not heed it; leave it at 0.95"),
        ({"name": "muon", "came": {"b3": 0.9}}, r"config.optimizer.came.b3 = 0.9: .*'muon' does not heed it"),
        ({"decay_share": 0.1}, r"decay_share = 0.1: only config.optimizer.schedule='warmup_stable_decay' heeds it"),
        ({"name": "came", "came": {"eps1": 0.0}}, r"config.optimizer.came.eps1 = 0.0: must be positive"),
        ({"b2": 1.0}, r"config.optimizer.b2 = 1.0: must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, r"config.optimizer.weight_decay = -0.1: must not be negative"),
        (
            {"name": "schedule_free", "schedule": "cosine"},
            r"optimizer.schedule = 'cosine': .*in place of a decay",
        ),
        ({"name": "schedule_free", "b1": 0.0}, r"config.optimizer.b1 = 0.0: must be above 0"),
        ({"schedule": "cosine_decay_to_constant"}, r"config.optimizer.schedule = .*needs config.optimizer.lr_scaling"),
    ],
)
def test_bad_settings(settings, message):
    config = small_config(**settings)
    with pytest.raises(InputError, match=message):
        check_config(config)


def test_a_lora_has_no_matrices_for_muon():
    config = small_config(name="muon")
    config.data.source, config.adapter.kind = "synthetic", "lora"
    with pytest.raises(InputError, match=r"config.optimizer.name = 'muon': .*of which a LoRA trains none"):
        check_config(config)


def run_config(data, name, num_steps):
    config = tiny_config(data)
    config.optimizer.update(
        {"name": name, "eps": 1e-10, "learning_rate": 1e-2, "lr_scaling": "sqrt", "weight_decay": 0.0}
    )
    config.train.update({"num_steps": num_steps, "log_every": 25, "checkpoint_every": 100, "ema_decay": 0.0})
    config.sample.every = 0
    return config


@pytest.mark.parametrize("name", ["came", "muon", "schedule_free"])
def test_learns_and_resumes(name, tmp_path):
    config = run_config(write_data(tmp_path / "data"), name, 200)
    whole = train_and_evaluate(config, str(tmp_path / "run"))
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["mse"] < 0.8 * rows[0]["mse"], rows
    # An average that forgets at once is what is evaluated.
    jax.tree.map(np.testing.assert_allclose, whole.ema_params, settled(whole.opt_state, whole.params))
    assert rows[-1]["learning_rate"] == pytest.approx(1e-2 * (8 / 256) ** 0.5)
    # As if it had been killed after step 100.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "200")
    resumed = train_and_evaluate(config, str(tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert read_metrics(tmp_path / "run") == rows


FOUR_DEVICES = """
import sys
sys.path.insert(0, "tests")
import jax, json, numpy as np
from tiny_run import tiny_config
from pixart_jax.devices.sharding import MeshSpec, make_mesh, put_batch, tree_shardings
from pixart_jax.training.program import Program
from tools.bench.train import synthetic_batch

config = tiny_config("unused")
config.optimizer.update({"name": sys.argv[2], "weight_decay": 0.1, "warmup_steps": 0})
mesh = make_mesh(MeshSpec(fsdp=4))
program = Program(config, mesh)
abstract = program.state
state, frozen = program.birth.fresh()
batch = put_batch(synthetic_batch(config), mesh)
state, _ = program.lower(batch).compile()(state, frozen, batch)
same = jax.tree.map(lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim), state, abstract)
kernel = state.ema_params["blocks_0"]["mlp"]["fc1"]["kernel"]
figures = {
    "moved": [jax.tree_util.keystr(path) for path, stays in jax.tree_util.tree_leaves_with_path(same) if not stays],
    "shard": kernel.addressable_shards[0].data.size / kernel.size,
}

rng = np.random.default_rng(0)
params = jax.tree.map(np.asarray, state.params)
grads = [jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params) for _ in range(3)]

def three_updates(mesh):
    def put(tree):
        return jax.device_put(tree, tree_shardings(tree, mesh))

    opt_state = put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract.opt_state))
    shardings = (tree_shardings(params, mesh), tree_shardings(opt_state, mesh))
    update = jax.jit(Program(config, mesh).birth.tx.update, out_shardings=shardings)
    for grad in grads:
        updates, opt_state = update(put(grad), opt_state, put(params))
    return [np.asarray(leaf) for leaf in jax.tree.leaves((updates, opt_state))]

pairs = zip(three_updates(make_mesh(devices=jax.devices()[:1])), three_updates(mesh), strict=True)
figures["difference"] = max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)
print(json.dumps(figures))
"""


def test_raw_weights_without_a_schedule_are_not_drawn_with(tmp_path):
    config = run_config(write_data(tmp_path / "data"), "schedule_free", 1)
    with pytest.raises(
        InputError, match=r"run: config.optimizer.name='schedule_free' takes gradients at its raw weights"
    ):
        require_evaluated(tmp_path / "run", config, ema=False)
    require_evaluated(tmp_path / "run", config, ema=True)


@pytest.mark.parametrize("name", ["came", "muon", "schedule_free"])
def test_four_devices_update_as_one_does(name, tmp_path):
    """Sharded four ways: the state stays where it was born, EMA included, and updates are those of one device."""
    figures = json.loads(run_python("-c", FOUR_DEVICES, tmp_path, name, devices=4).splitlines()[-1])
    assert figures["moved"] == [] and figures["shard"] == 1 / 4
    assert figures["difference"] < 1e-5
