"""Small second implementations behind each of training's seams, and runs of them that are killed."""

import dataclasses
import os
import pathlib
import signal

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from forked import print_to, processes, use_devices
from tiny_run import tiny_config

from pixart_jax.adapters.adapter import Parameters
from pixart_jax.config import build_objective
from pixart_jax.devices.sharding import WHOLE
from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.evaluators.drawings import Drawings
from pixart_jax.evaluators.evaluator import Report
from pixart_jax.main import log_the_run
from pixart_jax.models.params import apply_of
from pixart_jax.objectives.objective import descend
from pixart_jax.samplers.steps import Apply
from pixart_jax.training.looks import open_evaluators
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.program import FROM_CONFIG, Parts

# Of the features that the seams' data have.
ALIGN_DIM = 6
RATES = {"student": 1e-2, "critic": 1e-3}


# --- Adapters ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Whole:
    """What all of these have in common: everything that is trained is drawn with."""

    def drawn(self, trained):
        return trained


@dataclasses.dataclass(frozen=True)
class Biases(Whole):
    """Trains what is added to the biases, from zero on, over weights that are all frozen."""

    model: Apply

    def split(self, base, key):
        biases = {path: leaf for path, leaf in flat(base).items() if path.endswith("/bias")}
        return {f"{path}/delta": jnp.zeros_like(leaf) for path, leaf in biases.items()}, base

    def apply(self, trained, frozen, tokens, t, **conditions):
        added = {path: leaf + trained.get(f"{path}/delta", 0.0) for path, leaf in flat(frozen).items()}
        return self.model(flax.traverse_util.unflatten_dict(added, sep="/"), tokens, t, **conditions)

    def rules(self):
        return [(r"/delta$", (WHOLE,))]


@dataclasses.dataclass(frozen=True)
class WithTeacher(Whole):
    """A student that begins away from its teacher, which is frozen."""

    model: Apply

    def split(self, base, key):
        keys = jax.random.split(key, len(jax.tree.leaves(base)))
        keys = jax.tree.unflatten(jax.tree.structure(base), list(keys))
        student = jax.tree.map(lambda leaf, key: leaf + 0.05 * jax.random.normal(key, leaf.shape), base, keys)
        return student, {"teacher": base}

    def apply(self, trained, frozen, tokens, t, **conditions):
        return self.model(trained, tokens, t, **conditions)

    def rules(self):
        return ()


@dataclasses.dataclass(frozen=True)
class TwoNetworks(Whole):
    """Two copies, of which the student draws."""

    model: Apply

    def split(self, base, key):
        return {name: jax.tree.map(jnp.copy, base) for name in RATES}, {}

    def apply(self, trained, frozen, tokens, t, **conditions):
        return self.model(trained["student"], tokens, t, **conditions)

    def rules(self):
        return ()


# --- Objectives -------------------------------------------------------------------------------------------------------


def noised(batch, keys):
    """(x_t, t, noise, conditions) of a batch."""
    x0, schedule = batch["tokens"], linear_schedule()
    t_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, schedule.num_steps))(t_keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(noise_keys)
    conditions = {name: value for name, value in batch.items() if name != "tokens"}
    return gaussian.q_sample(schedule, x0, t, noise), t, noise, conditions


def imitate(config, adapter):
    """The student's eps becomes the teacher's."""

    def loss(trained, held, batch, keys):
        x_t, t, _, conditions = noised(batch, keys)
        ours = adapter.apply(trained, held.frozen, x_t, t, **conditions).eps
        theirs = adapter.model(held.frozen["teacher"], x_t, t, **conditions).eps
        error = jnp.mean(jnp.square(ours - theirs))
        return error, {"loss": error}

    return descend(loss)


def stay_near_the_average(config, adapter):
    """The noise is predicted, and not too far from what the moving average predicts."""

    def loss(trained, held, batch, keys):
        x_t, t, noise, conditions = noised(batch, keys)
        ours = adapter.apply(trained, held.frozen, x_t, t, **conditions).eps
        theirs = adapter.apply(held.ema, held.frozen, x_t, t, **conditions).eps
        error, gap = jnp.mean(jnp.square(ours - noise)), jnp.mean(jnp.square(ours - theirs))
        return error + gap, {"loss": error + gap, "gap": gap}

    return descend(loss)


def two_players(config, adapter):
    """The student predicts the noise, the critic what the student predicts: two gradients, and not one of a sum."""

    def student_loss(student, x_t, t, noise, conditions):
        return jnp.mean(jnp.square(adapter.model(student, x_t, t, **conditions).eps - noise))

    def gradients(trained, held, batch, keys):
        x_t, t, noise, conditions = noised(batch, keys)
        target = adapter.model(trained["student"], x_t, t, **conditions).eps + 1.0
        losses, grads = {}, {}
        for name, wanted in (("student", noise), ("critic", target)):
            losses[name], grads[name] = jax.value_and_grad(student_loss)(trained[name], x_t, t, wanted, conditions)
        norms = {f"{name}_grad": optax.tree.norm(grad) for name, grad in grads.items()}
        return grads, {"loss": losses["student"], "critic_loss": losses["critic"], **norms}

    return gradients


def two_rates(config, mesh):
    # A label for a whole network, which is a prefix of the tree.
    return optax.multi_transform(
        {name: optax.sgd(rate) for name, rate in RATES.items()}, {name: name for name in RATES}
    )


PARTS = {
    "biases": Parts(adapter=lambda config, model: Biases(apply_of(model))),
    "teacher": Parts(adapter=lambda config, model: WithTeacher(apply_of(model)), objective=imitate),
    "average": Parts(objective=stay_near_the_average),
    "two": Parts(
        adapter=lambda config, model: TwoNetworks(apply_of(model)), objective=two_players, optimizer=two_rates
    ),
    "ordinary": Parts(objective=build_objective),
}


# --- Evaluators -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MeanColour:
    """Draws some captions, says how bright they are, and shows the first."""

    drawings: Drawings
    every: int = 4
    name: str = "colour"

    def due(self, step, last):
        return step % self.every == 0 or step == last

    def __call__(self, weights, beat):
        assert isinstance(weights, Parameters)
        pictures = self.drawings.draw(weights, self.drawings.spread(4), beat)
        mean = float(np.mean([picture.mean() for picture in pictures]))
        strip = np.full((8, 8, 3), 127, np.uint8)
        return Report(f"mean colour {mean:.3f}", {"mean_colour": mean}, {"strip": strip}, draw=self.draw)

    def draw(self, path, rows):
        path.write_text(" ".join(str(row["step"]) for row in rows))


@dataclasses.dataclass(frozen=True)
class Killer:
    """Kills its process when it looks after a step, the first time."""

    step: int
    mark: pathlib.Path
    name: str = "killer"

    def due(self, step, last):
        return step == self.step and not self.mark.exists()

    def __call__(self, weights, beat):
        self.mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def with_colour(plan):
    samples, *others = open_evaluators(plan)
    return [samples, MeanColour(samples.drawings), *others]


# What a config may say beside its own settings, by the kind of run.
SETTINGS = {
    # Until the last third, which is another program; and drawn with what it learns by it.
    "routed": {
        **{"model.route.ratio": 0.5, "model.route.first": 0, "model.route.last": 0, "model.route.until": 0.7},
        **{"model.route.form": "sprint", "sample.guidance": "path_drop"},
    },
    # Likewise, and the block that is looked at sees half of the tokens.
    "aligned": {
        **{"align.weight": 0.5, "align.block": 0, "align.dim": ALIGN_DIM, "align.width": 16, "align.until": 0.7},
        **{"model.route.ratio": 0.5, "model.route.first": 0, "model.route.last": 0},
    },
}


# --- Runs -------------------------------------------------------------------------------------------------------------


def seam_config(data, init_from=""):
    """Of a run in which samples are drawn."""
    config = tiny_config(data)
    config.init_from = str(init_from)
    config.train.update({"log_every": 1, "num_steps": 9})
    config.sample.update({"every": 4, "num_images": 4, "num_steps": 2})
    return config


def _train(kind: str, data, init_from, workdir: pathlib.Path, kill_at: int, devices: int) -> None:
    print_to(workdir.with_name(f"{workdir.name}.log"))
    use_devices(devices)
    log_the_run()
    config = seam_config(data, init_from)
    config.update_from_flattened_dict(SETTINGS.get(kind, {}))
    if devices > 1:
        config.mesh.fsdp = 2
    mark = workdir.with_name(f"{workdir.name}.killed")
    train_and_evaluate(
        config,
        workdir,
        parts=PARTS.get(kind, FROM_CONFIG),
        evaluators=lambda plan: [*with_colour(plan), Killer(kill_at, mark)],
    )


def train_in_a_process(kind, data, workdir, *, init_from="", kill_at=-1, devices=1) -> int:
    """The exit code of a run in a process of its own, which is killed, once, after that step."""
    process = processes.Process(target=_train, args=(kind, str(data), str(init_from), workdir, kill_at, devices))
    process.start()
    process.join(240)
    return process.exitcode


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")
