"""A consistency model's step, loss and gradients are those of the reference's training script."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import build_model, load_arrays, load_config, load_params, load_state_dict, model_inputs, to_nchw

from pixart_jax.conversion.names.pixart import convert_pixart
from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.models.params import apply_of
from pixart_jax.objectives.consistency import consistency_loss, consistency_step, pointwise, solver_tables
from pixart_jax.objectives.denoising import token_mean
from pixart_jax.objectives.objective import Held

CASE, SCHEDULE = "extras/lcm_loss", linear_schedule()


@pytest.fixture(scope="module")
def distilled():
    """(config, model, parameters by name, arrays)"""
    config = load_config(CASE)
    model = build_model(config)
    params = {name: load_params(model, load_state_dict(f"extras/lcm_{name}")) for name in ("student", "ema", "teacher")}
    return config, model, params, load_arrays(CASE)


def given(config, arrays, case):
    """(x_t as tokens, which step, conditions) of a case."""
    arrays = {name.replace(f"/{case}/", "/"): array for name, array in arrays.items() if f"/{case}/" in name}
    x_t, conditions = model_inputs(config, arrays["out/x_t"])
    conditions |= {"text": arrays["in/text"][:, 0], "text_length": arrays["in/mask"].sum(-1).astype(np.int32)}
    conditions |= {"image_size": arrays["in/img_hw"], "aspect_ratio": arrays["in/aspect_ratio"]}
    conditions["text_drop"] = np.zeros(len(x_t), bool)
    return arrays, jnp.asarray(x_t), jnp.asarray(arrays["in/index"]), jax.tree.map(jnp.asarray, conditions)


def test_the_solver_is_the_references(distilled):
    arrays, tables = distilled[-1], solver_tables(SCHEDULE)
    np.testing.assert_array_equal(tables.start, arrays["out/solver/ddim_timesteps"])
    np.testing.assert_allclose(tables.alpha_end**2, arrays["out/solver/ddim_alpha_cumprods_prev"], rtol=1e-5)
    for case in ("case0", "case1"):
        np.testing.assert_array_equal(tables.end[arrays[f"in/{case}/index"]], arrays[f"out/{case}/timesteps"])


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_step_losses_and_gradients(distilled, case):
    config, model, params, everything = distilled
    arrays, x_t, index, conditions = given(config, everything, case)
    apply = apply_of(model)

    def bound(name):
        return lambda tokens, t, **more: apply(params[name], tokens, t, **more)

    def step_of(student):
        return consistency_step(
            lambda tokens, t, **more: apply(student, tokens, t, **more),
            *(bound("ema"), bound("teacher")),
            *(SCHEDULE, x_t, index, conditions, config["w"]),
        )

    def loss_of(student, distance):
        step = step_of(student)
        values = pointwise(step.prediction - step.target, distance, config["huber_c"])
        return token_mean(values, conditions["num_tokens"]).mean(), step

    noised, _ = model_inputs(config, arrays["in/latents"])
    noise, _ = model_inputs(config, arrays["in/noise"])
    start = jnp.asarray(solver_tables(SCHEDULE).start)[index]
    np.testing.assert_allclose(gaussian.q_sample(SCHEDULE, noised, start, noise), x_t, atol=1e-5)

    (loss, step), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True), static_argnums=1)(
        params["student"], "huber"
    )
    assert float(loss) == pytest.approx(float(arrays["out/loss_huber"]), rel=2e-5)
    assert float(jax.jit(loss_of, static_argnums=1)(params["student"], "l2")[0]) == pytest.approx(
        float(arrays["out/loss_l2"]), rel=2e-5
    )
    for found, name in ((step.prediction, "model_pred"), (step.x_prev, "x_prev"), (step.target, "target")):
        expected = arrays[f"out/{name}"]
        np.testing.assert_allclose(to_nchw(found, config, expected.shape), expected, atol=2e-5 * np.abs(expected).max())
    flat = {path: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(gradient, sep="/").items()}
    # The reference's arrays under our names: those it keeps, in a state dict whose others are zeros.
    state = {name: np.zeros_like(array) for name, array in load_state_dict("extras/lcm_student").items()}
    kept = {name.removeprefix("out/grad/"): array for name, array in arrays.items() if name.startswith("out/grad/")}
    ones = convert_pixart(
        state | {name: np.ones_like(array) for name, array in kept.items()},
        model.segments(),
        {path: leaf.shape for path, leaf in flat.items()},
    )
    expected = convert_pixart(state | kept, model.segments(), {path: leaf.shape for path, leaf in flat.items()})
    assert sum(np.asarray(mask).sum() for mask in ones.values()) == sum(array.size for array in kept.values())
    for path, mask in ones.items():
        # qkv's halves, tables and the like: where the mask is one.
        want, have = np.asarray(expected[path]), flat[path] * np.asarray(mask)
        np.testing.assert_allclose(have, want, atol=2e-5 * max(1e-3, np.abs(want).max()), err_msg=path)


def test_fewer_steps_of_the_solver_are_longer():
    few, many = solver_tables(SCHEDULE, 10), solver_tables(SCHEDULE)
    assert few.start.tolist() == list(range(99, 1000, 100))
    assert few.end.tolist() == [0, *range(99, 900, 100)]
    # Where both have a step that ends at the same time, x is made of the same parts.
    for place, end in enumerate(few.end):
        other = many.end.tolist().index(end)
        assert few.alpha_end[place] == many.alpha_end[other] and few.sigma_end[place] == many.sigma_end[other]


@pytest.mark.parametrize("solver_steps", [50, 10])
def test_the_loss_draws_for_each_row_and_drops_the_students_captions_only(distilled, solver_steps):
    config, model, params, everything = distilled
    arrays, _, _, conditions = given(config, everything, "case0")
    tokens, _ = model_inputs(config, arrays["in/latents"])
    seen = []

    def apply(trained, frozen, tokens, t, *, text_drop, **more):
        seen.append((trained, text_drop, t))
        return apply_of(model)(params["student"], tokens, t, text_drop=text_drop, **more)

    def teacher(frozen):
        return lambda tokens, t, **more: apply("teacher", frozen, tokens, t, **more)

    loss_fn = consistency_loss(apply, teacher, SCHEDULE, solver_steps=solver_steps)
    dropped = jnp.array([True, False, True])
    batch = {**conditions, "tokens": jnp.asarray(tokens), "text_drop": dropped}
    loss, metrics = loss_fn("student", Held({}, "average"), batch, jax.random.split(jax.random.key(1), 3))
    assert np.isfinite(loss) and metrics["loss"] == loss
    (_, of_student, t), (_, of_teacher, _), (_, of_average, _) = seen
    assert [name for name, _, _ in seen] == ["student", "teacher", "average"]
    assert (of_student == dropped).all() and not of_average.any()
    assert of_teacher.tolist() == [True, False] * 3  # Null and caption side by side.
    assert len(set(t.tolist())) > 1 and set(t.tolist()) <= set(solver_tables(SCHEDULE, solver_steps).start.tolist())
