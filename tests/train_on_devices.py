"""What test_sharding.py runs in a process of its own, because the number of simulated devices is fixed at the start.

Prints a line for each mesh on which a training step was as on one device, unless one is not.
"""

import dataclasses
import math
import re

import jax
import numpy as np
from tiny_run import tiny_config

from pixart_jax.checkpoints.state import compile_checksums
from pixart_jax.config import build_objective, check_batch, check_config, mesh_spec
from pixart_jax.devices.sharding import MeshSpec, batch_sharding, make_mesh, put_batch, tree_shardings
from pixart_jax.models.params import abstract_params
from pixart_jax.optimizers.muon import MuonSpec, scale_by_muon_and_adam
from pixart_jax.optimizers.power_averages import averages_of
from pixart_jax.training.program import Program
from pixart_jax.training.step import make_train_step
from tools.bench.train import training_batch

MESHES = (
    ("full", {"data": 8}),
    ("full", {"data": 2, "fsdp": 2, "tensor": 2}),
    ("full", {"fsdp": 2, "context": 4}),
    # Half of the tokens pass the first block by; matrices are Muon's, and the loss's weights learnt.
    ("routed muon weighed", {"data": 2, "fsdp": 2, "context": 2}),
    # Beside a projector, which is trained too.
    ("aligned", {"fsdp": 2, "context": 4}),
    # Whose frozen half is split too; "lora" is DoRA with dropout.
    ("lora", {"data": 2, "fsdp": 4}),
    ("controlnet", {"data": 2, "fsdp": 4}),
    # Whose frozen half is the teacher.
    ("consistency", {"data": 2, "fsdp": 4}),
    # Distribution matching: two networks are trained, on half a batch of pairs.
    ("matching", {"data": 2, "fsdp": 4}),
    # Everything, for rectified flow; with averages whose length is chosen afterwards.
    ("flow averaged", {"data": 2, "fsdp": 4}),
)
ONE = jax.devices()[:1]


def make_config(mesh, adapter):
    """A model with everything that a mesh may split, key/value compression too."""
    config = tiny_config("synthetic")
    if adapter == "consistency":
        config.objective.kind = adapter
    elif adapter == "matching":
        config.objective.update({"kind": "distribution_matching", "guidance": 2.0, "distance": "l2"})
        config.data.pair_source = "data/pairs"
        config.sample.update({"sampler": "dmd", "num_steps": 1})
    elif adapter == "flow averaged":
        # So that a step is no sign of gradients that are all rounding.
        config.optimizer.eps, config.average.every = 1.0, 1
        config.diffusion.update({"prediction": "flow", "timesteps": "logit_normal", "shift": 2.0})
        config.model.learn_sigma = False
        config.train.min_snr_gamma = 5.0
    elif adapter == "routed muon weighed":
        config.optimizer.name, config.train.learned_weights = "muon", True
        config.model.route.update({"ratio": 0.5, "first": 0, "last": 0, "form": "sprint"})
    elif adapter == "aligned":
        config.align.update({"weight": 0.5, "block": 1, "dim": 8, "width": 16})
    elif adapter != "full":
        config.adapter.kind = adapter
    config.adapter.controlnet.num_copies = 1
    config.model.update(
        {"resolution": 128, "kv_compress_ratio": 2, "kv_compress_from": 0, "qk_norm": True, "remat": "attention"}
    )
    config.optimizer.update({"warmup_steps": 0, "grad_clip": 1e9})
    config.mesh.update(mesh)
    config.adapter.lora.update({"rank": 4, "dora": True, "dropout": 0.25})
    check_config(config)
    return config


def random_arrays(shapes):
    """Parameters by path; noise on all, because some start at zero and would hide what comes before them."""
    rng = np.random.default_rng(0)
    leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
    return {"/".join(k.key for k in path): 0.1 * rng.standard_normal(leaf.shape, np.float32) for path, leaf in leaves}


def randomised(state):
    """The state with noise added to what is trained, likewise."""
    arrays = random_arrays(state.params)

    def place(path, leaf):
        return jax.device_put(leaf + arrays["/".join(key.key for key in path)], leaf.sharding)

    return state.replace(params=jax.tree_util.tree_map_with_path(place, state.params))


def one_step(adapter, mesh, devices):
    """(loss, gradient norm, first moments, which are a share of the gradient, averages) after a step."""
    config = make_config(mesh, adapter)
    check_batch(config, len(devices))
    mesh = make_mesh(mesh_spec(config), devices)
    trained = Program(config, mesh)
    host_batch = training_batch(config)
    host_batch["num_tokens"] = np.int32([64, 32, 40, 4, 64, 64, 16, 60])
    abstract, batch = trained.state, put_batch(host_batch, mesh)
    state, frozen = trained.birth.start(random_arrays(abstract_params(trained.model, mesh)))
    if jax.tree.leaves(frozen):
        state = randomised(state)
        held = frozen.get("teacher", frozen)
        assert not held["blocks_0"]["mlp"]["fc1"]["kernel"].sharding.is_fully_replicated or devices == ONE
    for name, array in batch.items():
        assert array.sharding == batch_sharding(mesh, name), name
    assert_lies(state, abstract)

    # Of a seed that draws no timestep 0: there the loss is a difference of two nearly equal probabilities.
    objective, drawn = build_objective(config, trained.adapter), trained.adapter.drawn
    step = make_train_step(objective, trained.birth.tx, seed=1, ema_decay=0.5, drawn=drawn)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    program = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, frozen, batch).compile()
    # No second copy of any of the state: what comes out lies where it lay.
    per_device = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(abstract))
    assert program.memory_analysis().alias_size_in_bytes == 4 * per_device
    # Nor is any of it gathered for the checksums of a checkpoint: numbers are, one for each array.
    collectives = set(re.findall(r"all-\w+|collective-\w+|reduce-scatter", compile_checksums(abstract).as_text()))
    assert collectives <= {"all-reduce"}, collectives
    state, metrics = program(state, frozen, batch)
    assert_lies(state, abstract)
    states = jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
    averages = averages_of(state.opt_state) if config.average.every else {}
    return jax.device_get((metrics["loss"], metrics["grad_norm"], [s.mu for s in states if hasattr(s, "mu")], averages))


def muons_updates(spec, devices):
    """(Muon's updates of sixteen matrices of two kinds, the program)."""
    mesh, rng = make_mesh(spec, devices), np.random.default_rng(0)
    shapes = {"fc1": (8, 64, 96), "fc2": (8, 96, 64)}
    gradients = {"blocks_0": {kind: {"kernel": np.float32(rng.normal(size=shapes[kind]))} for kind in shapes}}
    gradients = jax.device_put(gradients, tree_shardings(gradients, mesh))
    tx = scale_by_muon_and_adam(MuonSpec(0.95), b1=0.9, b2=0.999, eps=1e-8, mesh=mesh)
    program = jax.jit(lambda updates: tx.update(updates, tx.init(updates))[0]).lower(gradients).compile()
    return jax.device_get(program(gradients)), program


def assert_muon_is_shared():
    """Each device makes the updates of two matrices, and nothing is exchanged while it does."""
    wanted, alone = muons_updates(MeshSpec(), ONE)
    for sizes in ({"data": 4, "fsdp": 2}, {"fsdp": 8}, {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        got, program = muons_updates(MeshSpec(**sizes), None)
        assert_near(got, wanted)
        share = program.cost_analysis()["flops"] / alone.cost_analysis()["flops"]
        assert share < 1.2 / (8 // sizes.get("tensor", 1)), (sizes, share)
        exchanged = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", program.as_text())
        assert len(exchanged) <= 5, (sizes, exchanged)


def assert_lies(state, abstract):
    def same(path, leaf, wanted):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim), (jax.tree_util.keystr(path), leaf.sharding)

    jax.tree_util.tree_map_with_path(same, dataclasses.asdict(state), dataclasses.asdict(abstract))


def assert_near(got, wanted):
    """To 1e-5 of each array, and to rounding of the whole where a gradient is zero, as that of a key's bias is."""
    whole = sum(np.square(leaf).sum() for leaf in jax.tree.leaves(wanted)) ** 0.5

    def near(path, got, wanted):
        error, size = np.linalg.norm(got - wanted), np.linalg.norm(wanted)
        assert error <= 1e-5 * size + 1e-7 * whole, f"{jax.tree_util.keystr(path)}: {error} of {size}"

    jax.tree_util.tree_map_with_path(near, got, wanted)


if __name__ == "__main__":
    expected = {adapter: one_step(adapter, {}, ONE) for adapter in dict(MESHES)}
    for adapter, sizes in MESHES:
        for got, wanted in zip(one_step(adapter, sizes, jax.devices()), expected[adapter], strict=True):
            assert_near(got, wanted)
        print(adapter, *(f"{name}={size}" for name, size in sizes.items()))
    assert_muon_is_shared()
