"""Distribution matching's step, scores, losses and gradients are those of the reference's training script."""

import dataclasses
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GOLDEN, load_arrays

from pixart_jax.adapters.adapter import Params
from pixart_jax.adapters.followed import FAKE, Followed
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.names.diffusers import revert_diffusers
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.transfer import load_weights
from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.models.params import apply_of
from pixart_jax.models.pixart import ModelOutput, PixArt
from pixart_jax.objectives.distribution_matching import (
    IS_PAIR,
    NOISE,
    DistributionMatching,
    Draws,
    direction,
    latent_distance,
    matching_loss,
    one_step,
)
from pixart_jax.objectives.objective import Held
from pixart_jax.tokens import grid_positions, patchify, unpatchify

SCHEDULE, GRID = linear_schedule(), (4, 4)
L2 = latent_distance("l2", 0.001)


def tokens_of(array):
    return jnp.asarray(patchify(array.transpose(0, 2, 3, 1), 2))


def assert_near(tokens, expected, tolerance=1e-4):
    found = unpatchify(np.asarray(tokens), tuple(n // 2 for n in expected.shape[2:]), 2).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@dataclasses.dataclass(frozen=True)
class Case:
    model: PixArt
    params: dict[str, Params]
    arrays: dict[str, np.ndarray]

    @property
    def batch(self):
        shape = self.arrays["in/init_noise"].shape
        return {
            "tokens": jnp.zeros((2, 16, 16)),
            "positions": jnp.asarray(np.tile(grid_positions(GRID, 4, 1.0), (2, 1, 1))),
            "num_tokens": jnp.full(shape[0], 16, jnp.int32),
            "text": jnp.asarray(self.arrays["in/text"]),
            "text_length": jnp.asarray(self.arrays["in/mask"].sum(-1).astype(np.int32)),
            # Which no network heeds: a one-step student has no null caption.
            "text_drop": jnp.array([True, False]),
        }

    @property
    def draws(self):
        noises = (tokens_of(self.arrays[f"in/{name}"]) for name in ("init_noise", "noise", "noise_for_fake"))
        times = (jnp.asarray(self.arrays[f"in/timesteps{name}"], jnp.int32) for name in ("", "_for_fake"))
        (start, noise, fake_noise), (t, fake_t) = noises, times
        return Draws(start, t, noise, fake_t, fake_noise)

    def null(self, conditions):
        """The null caption at its own length."""
        return {
            "text": np.repeat(self.arrays["in/null_text"], 2, axis=0),
            "text_length": np.repeat(self.arrays["in/null_mask"].sum(-1).astype(np.int32), 2),
        }


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    params = {}
    for name in ("student", "fake", "real"):
        folder = tmp_path_factory.mktemp(name)
        shutil.copyfile(GOLDEN / "extras/dmd/config.json", folder / "config.json")
        shutil.copyfile(GOLDEN / f"extras/dmd/{name}.safetensors", folder / "diffusion_pytorch_model.safetensors")
        weights = load_weights(open_source(folder), Hints(family="alpha"))
        params[name] = flax.traverse_util.unflatten_dict({path: weights.read(path) for path in weights.paths}, sep="/")
    return Case(weights.stored.model, params, load_arrays("extras/dmd/dmd"))


def test_one_step_scores_and_direction(case):
    arrays, batch, draws = case.arrays, dict(case.batch), case.draws
    batch |= {"text_drop": np.zeros(2, bool)}
    del batch["tokens"]
    apply = apply_of(case.model)

    @jax.jit
    def all_of_it(params):
        latents = one_step(
            lambda *given, **more: apply(params["student"], *given, **more), SCHEDULE, draws.start, batch
        )
        x_t = gaussian.q_sample(SCHEDULE, latents, draws.t, draws.noise)
        eps = [
            apply(params[name], x_t, draws.t, **given).eps
            for name, given in (("fake", batch), ("real", batch), ("real", batch | case.null(batch)))
        ]
        guided = eps[2] + 3.0 * (eps[1] - eps[2])
        found = direction(SCHEDULE, latents, x_t, draws.t, eps[0], guided, batch["num_tokens"])
        by_latents = jax.grad(lambda at: matching_loss(SCHEDULE, at, found, draws.t, batch["num_tokens"]))(latents)
        of_snr = matching_loss(SCHEDULE, latents, found, draws.t, batch["num_tokens"], min_snr_gamma=5.0)
        fake_x_t = gaussian.q_sample(SCHEDULE, latents, draws.fake_t, draws.fake_noise)
        fake = apply(params["fake"], fake_x_t, draws.fake_t, **batch).eps
        return latents, x_t, [-value for value in (*eps, guided)], found, by_latents, of_snr, fake_x_t, fake

    latents, x_t, scores, found, by_latents, of_snr, fake_x_t, fake = all_of_it(case.params)
    assert_near(latents, arrays["out/latents"])
    assert_near(x_t, arrays["out/noisy_latents"])
    for score, name in zip(scores, ("fake", "real_cond", "real_uncond", "real"), strict=True):
        assert_near(score, arrays[f"out/score_{name}"])
    assert_near(found.gradient, arrays["out/coeff"])
    assert_near(found.real_x0, arrays["out/pred_latents_real"])
    np.testing.assert_allclose(found.weight, arrays["out/weight"].ravel(), rtol=1e-4)
    assert_near(by_latents, arrays["out/grad_latents"])
    assert float(of_snr) == pytest.approx(float(arrays["out/dm_loss_min_snr5"]), rel=1e-4)
    assert_near(fake_x_t, arrays["out/noisy_latents_for_fake"])
    assert_near(fake, arrays["out/fake_pred"])


def test_losses_and_gradients(case):
    """The null caption is the teacher's."""
    networks, arrays = Followed(apply_of(case.model), jnp.float32), case.arrays
    objective = DistributionMatching(networks, SCHEDULE, guidance=2.0, distance=L2)
    null_text = arrays["in/null_text"][0]
    padded = np.pad(null_text, ((0, case.model.max_text_tokens - len(null_text)), (0, 0)))
    embedder = case.params["real"]["y_embedder"] | {"y_embedding": jnp.asarray(padded)}
    held = Held({"teacher": case.params["real"] | {"y_embedder": embedder}}, {})
    trained = {**case.params["student"], FAKE: case.params["fake"]}
    grads, metrics = jax.jit(objective.of_draws)(trained, held, case.batch, case.draws)
    assert float(metrics["dm"]) == pytest.approx(float(arrays["out/dm_loss"]), rel=1e-4)
    assert float(metrics["fake"]) == pytest.approx(float(arrays["out/fake_loss"]), rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["dm"] + metrics["fake"]))
    compared = 0
    for network, tree in (("student", networks.drawn(grads)), ("fake", grads[FAKE])):
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        named = dict(revert_diffusers(flat, lambda path, flat=flat: np.asarray(flat[path]), case.model.segments(), 2))
        for name, expected in arrays.items():
            if name.startswith(f"out/{network}_grad/"):
                found = named[name.removeprefix(f"out/{network}_grad/")]
                np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)
                compared += 1
    assert compared == 7


def test_given_scores():
    arrays = load_arrays("extras/dmd_toy")
    # Of 5 by 6 latents no token can be made: any tokens will do.
    latents, noise, real, fake = (
        jnp.asarray(arrays[f"in/{name}"].reshape(2, 30, 4)) for name in ("latents", "noise", "score_real", "score_fake")
    )
    t, count = jnp.asarray(arrays["in/timesteps"], jnp.int32), jnp.full(2, 30)
    x_t = gaussian.q_sample(SCHEDULE, latents, t, noise)
    found = direction(SCHEDULE, latents, x_t, t, -fake, -real, count)
    loss, by_latents = jax.value_and_grad(lambda at: matching_loss(SCHEDULE, at, found, t, count))(latents)
    assert float(loss) == pytest.approx(float(arrays["out/dm_loss"]), rel=1e-4)
    np.testing.assert_allclose(found.weight, arrays["out/weight"].ravel(), rtol=1e-4)
    for array, name in ((found.gradient, "coeff"), (by_latents, "grad_latents")):
        expected = arrays[f"out/{name}"].reshape(2, 30, 4)
        np.testing.assert_allclose(array, expected, atol=1e-4 * np.abs(expected).max())


def scaled(params, tokens, t, *, text, text_drop, **conditions):
    """A network that is one number, but for what it reads; the teacher alone has a null caption."""
    nothing = 0.0 if "teacher" in params else jnp.nan
    text = jnp.where(text_drop[:, None, None], nothing, text)
    return ModelOutput(params["scale"] * tokens + text, None)


@pytest.fixture
def stub():
    """(trained, held, batch, keys): student, fake and teacher are one number each; the last two rows are pairs."""
    rng = np.random.default_rng(0)
    tokens, noise = rng.standard_normal((2, 4, 3, 2), np.float32)
    batch = {
        "tokens": tokens,
        "num_tokens": np.int32([3, 2, 3, 1]),
        "text": rng.standard_normal((4, 1, 2), np.float32),
        "text_drop": np.array([True, False, False, True]),
        NOISE: noise,
        IS_PAIR: np.array([False, False, True, True]),
    }
    trained = {"scale": jnp.float32(0.5), FAKE: {"scale": jnp.float32(0.25)}}
    held = Held({"teacher": {"scale": jnp.float32(0.75), "teacher": 0.0}}, {}, jnp.int32(4))
    return trained, held, jax.tree.map(jnp.asarray, batch), jax.random.split(jax.random.key(3), 4)


def objective_of(**settings):
    return DistributionMatching(Followed(scaled, jnp.float32), SCHEDULE, guidance=2.0, distance=L2, **settings)


def test_pairs_are_drawn_of_the_teachers_noise(stub):
    trained, held, batch, keys = stub
    _, metrics = objective_of()(trained, held, batch, keys)
    drawn = one_step(lambda x, t, **more: scaled(trained, x, t, **more), SCHEDULE, batch[NOISE], {
        "text": batch["text"], "text_drop": jnp.zeros(4, bool)
    })  # fmt: skip
    apart = L2(drawn, batch["tokens"], batch, {})
    assert float(metrics["regression"]) == pytest.approx(float(apart[2:].mean()), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(
        float(metrics["dm"] + 0.25 * metrics["regression"] + metrics["fake"])
    )
    # Without pairs the rows are none, and the other draws are what they were.
    without = {name: value for name, value in batch.items() if name not in (NOISE, IS_PAIR)}
    _, alone = objective_of()(trained, held, without, keys)
    assert "regression" not in alone and alone["fake"] != metrics["fake"]
    _, none = objective_of()(trained, held, batch | {IS_PAIR: jnp.zeros(4, bool)}, keys)
    assert none["regression"] == 0 and none["dm"] == alone["dm"] and none["fake"] == alone["fake"]


def test_between_its_turns_the_student_has_no_gradient(stub):
    trained, held, batch, keys = stub
    every = objective_of()(trained, held, batch, keys)
    third = objective_of(fake_updates=3)
    own, metrics = third(trained, held._replace(step=jnp.int32(3)), batch, keys)
    np.testing.assert_allclose(own["scale"], every[0]["scale"], rtol=1e-6)
    np.testing.assert_allclose(metrics["dm"], 3 * every[1]["dm"], rtol=1e-6)
    between, metrics = third(trained, held, batch, keys)
    assert between["scale"] == metrics["dm"] == metrics["regression"] == 0
    np.testing.assert_allclose(between[FAKE]["scale"], every[0][FAKE]["scale"], rtol=1e-6)
    assert metrics["loss"] == metrics["fake"]
