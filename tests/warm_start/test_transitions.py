"""Each change between what weights are and what is to be trained: exact where theory says so, refused where none."""

import dataclasses
import re

import flax
import jax
import numpy as np
import pytest
from golden_cases import GOLDEN, forward, load_arrays, load_config, model_inputs, text_conditions, to_nchw

from pixart_jax.conversion.describe import describe
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.names.diffusers import NULL_TEXT
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.conversion.transfer import load_weights
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.warm_start.transitions import Choices, plan_transition

HINTS = Hints(num_heads=2, family="alpha")
TOLERANCE = 2e-5
# For random weights, whose outputs are ten times as large as the golden ones.
LOOSE = 2e-4


def load(case):
    """(description, arrays by path) of a golden checkpoint."""
    source = open_source(GOLDEN / f"{case}.pth")
    weights = load_weights(source, HINTS)
    return weights.stored, {path: weights.read(path) for path in weights.paths}


def changed(stored, **fields):
    return dataclasses.replace(stored, model=stored.model.clone(**fields))


def start(stored, arrays, target, **choices):
    """(the plan, the target's arrays)."""
    transition = plan_transition(stored, target, Choices(**choices))
    arrays = dict(arrays)
    transition.apply(arrays)
    assert sorted(row.path for row in transition.rows if row.action != "left out") == sorted(arrays)
    assert all(array.dtype == np.float32 for array in arrays.values())
    return transition, arrays


def actions(transition):
    return {row.path: row.action for row in transition.rows}


def tree(arrays):
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def random_weights(model):
    """A description and random arrays, also where fresh ones are zero."""
    rng = np.random.default_rng(0)
    arrays = {
        path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in sorted(parameter_shapes(model).items())
    }
    return StoredModel(model, 4, 1.0, 0.5, "none" if model.num_classes else "stored", "none", "ddim", {}), arrays


def random_inputs(model, text_length, seed=1):
    rng = np.random.default_rng(seed)
    batch = len(text_length)
    tokens = rng.normal(size=(batch, 4, 16)).astype(np.float32)
    return tokens, {
        "positions": rng.uniform(0, 4, (batch, 4, 2)).astype(np.float32),
        "text": rng.normal(size=(batch, max(text_length), model.text_dim)).astype(np.float32),
        "text_length": np.array(text_length, np.int32),
    }


TINY = PixArt(hidden_size=24, depth=3, num_heads=2, text_dim=8, max_text_tokens=6)


def dit_outputs(model, params, timesteps):
    """Of the golden case's input at each timestep, with captions of two lengths and a dropped one."""
    config = load_config("dit")
    tokens, conditions = model_inputs(config, load_arrays("dit")["in/x"])
    conditions["text"] = np.random.default_rng(0).normal(size=(len(tokens), 6, model.text_dim)).astype(np.float32)
    conditions |= {"text_length": np.array([6, 1, 4]), "text_drop": np.array([False, False, True])}
    count = len(timesteps)
    tokens, *values = (np.concatenate([array] * count) for array in (tokens, *conditions.values()))
    t = np.repeat(timesteps, len(tokens) // count)
    parts = forward(model, params, tokens, t, dict(zip(conditions, values, strict=True)))
    return np.split(np.concatenate([to_nchw(part, config, (0, 0, 8, 8)) for part in parts], axis=1), count)


@pytest.mark.parametrize(
    "adaln,choices,timesteps",
    [
        ("single", {"reparameterize": "t500"}, (500,)),
        ("full", {}, (0, 100, 500, 900)),
    ],
)
def test_captions_take_the_place_of_classes(adaln, choices, timesteps):
    """The model equals the golden DiT's null class: re-parameterized at one timestep, else at all; whatever the
    caption."""
    stored, arrays = load("dit")
    target = changed(stored, num_classes=0, adaln=adaln, text_dim=8, max_text_tokens=6)
    transition, arrays = start(stored, arrays, target, **choices)
    for t, ours in zip(timesteps, dit_outputs(target.model, tree(arrays), timesteps), strict=True):
        np.testing.assert_allclose(ours, load_arrays("dit")[f"out/uncond_t{t}"], rtol=0, atol=TOLERANCE)
    left_out = {path for path, action in actions(transition).items() if action == "left out"}
    modulation = {
        f"{part}/adaLN_modulation/{name}" for part in ("blocks_0", "final_layer") for name in ("kernel", "bias")
    }
    assert left_out == {"y_embedder/embedding_table"} | (modulation if adaln == "single" else set())


def test_captions_take_the_place_of_classes_under_one_modulation():
    stored, before = random_weights(TINY.clone(num_classes=5))
    target = changed(stored, num_classes=0)
    _, after = start(stored, before, target)
    # Fresh, but for the projection to zero.
    assert np.any(after["blocks_0/cross_attn/q_linear/kernel"]) and np.any(after[NULL_TEXT])
    tokens, conditions = random_inputs(TINY, [6, 1])
    text, t = {name: conditions.pop(name) for name in ("text", "text_length")}, np.float32([3, 871])
    nobody = {"label": np.zeros(2, np.int32), "text_drop": np.ones(2, bool)}
    expected = forward(stored.model, tree(before), tokens, t, conditions | nobody)
    np.testing.assert_allclose(
        forward(target.model, tree(after), tokens, t, conditions | text), expected, rtol=0, atol=LOOSE
    )


def test_without_reparameterization_only_what_has_the_same_name_is_copied():
    """As where the reference loads a DiT: everything else is fresh."""
    stored, before = load("dit")
    target = changed(stored, num_classes=0, adaln="single", text_dim=8, max_text_tokens=6)
    transition, after = start(stored, before, target, reparameterize="none", seed=3)
    for path, action in actions(transition).items():
        if action == "copied":
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    made = {path.split("/")[0] for path, action in actions(transition).items() if action == "made"}
    assert made == {"t_block", "final_layer", "blocks_0", "y_embedder"}
    assert actions(transition)["t_embedder/mlp_2/bias"] == actions(transition)["final_layer/linear/kernel"] == "copied"
    assert 0.019 < np.std(after["t_block/kernel"]) < 0.021


def test_micro_conditions_and_longer_captions_change_nothing():
    """Against the reference's numbers for the model without either."""
    stored, before = load("sigma_plain")
    target = changed(stored, micro_condition=True, max_text_tokens=40)
    transition, after = start(stored, before, target)
    assert actions(transition)["csize_embedder/mlp_0/kernel"] == "made" and np.any(after["csize_embedder/mlp_0/kernel"])
    np.testing.assert_array_equal(after[NULL_TEXT], np.concatenate([before[NULL_TEXT]] * 3)[:40])

    config, case = load_config("sigma_plain"), load_arrays("sigma_plain")
    tokens, conditions = model_inputs(config, case["in/x"])
    conditions |= text_conditions(case)
    text = conditions["text"]
    conditions["text"] = np.pad(text, ((0, 0), (0, 40 - text.shape[1]), (0, 0)), constant_values=9.0)
    conditions |= {"image_size": np.full((len(text), 2), 777.0), "aspect_ratio": np.full((len(text), 1), 0.4)}
    parts = forward(target.model, tree(after), tokens, case["in/t"], conditions)
    ours = np.concatenate([to_nchw(part, config, case["in/x"].shape) for part in parts], axis=1)
    np.testing.assert_allclose(ours, case["out/eps_sigma"], rtol=0, atol=TOLERANCE)


def test_the_null_caption_of_another_length():
    stored, before = load("sigma_plain")
    _, after = start(stored, before, changed(stored, max_text_tokens=5))
    np.testing.assert_array_equal(after[NULL_TEXT], before[NULL_TEXT][:5])
    given = np.full((20, 16), 0.25, np.float32)
    _, after = start(stored, before, changed(stored, max_text_tokens=20), null_text=given)
    np.testing.assert_array_equal(after[NULL_TEXT], given)
    with pytest.raises(InputError, match=r"shape \(20, 16\); the model takes \(16, 16\)"):
        plan_transition(stored, stored, Choices(null_text=given))
    with pytest.raises(InputError, match="all finite"):
        plan_transition(stored, stored, Choices(null_text=np.full((16, 16), np.nan)))


def test_a_longer_null_caption_equals_itself_where_it_is_repeated_whole():
    stored, before = random_weights(TINY)
    target = changed(stored, max_text_tokens=12)
    _, after = start(stored, before, target)
    t, drop = np.float32([3, 871]), np.ones(2, bool)
    tokens, conditions = random_inputs(TINY, [6, 6])
    conditions |= {"text_drop": drop}
    expected = forward(stored.model, tree(before), tokens, t, conditions)
    longer = {"text": np.zeros((2, 12, 8), np.float32), "text_length": np.array([12, 12])}
    ours = forward(target.model, tree(after), tokens, t, conditions | longer)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=LOOSE)


def test_without_micro_conditions_squares_are_drawn_as_before():
    stored, before = random_weights(TINY.clone(micro_condition=True))
    target = changed(stored, micro_condition=False)
    _, after = start(stored, before, target)
    tokens, conditions = random_inputs(TINY, [6, 1])
    t = np.float32([3, 871])
    square = {"image_size": np.full((2, 2), stored.resolution, np.float32), "aspect_ratio": np.ones((2, 1), np.float32)}
    expected = forward(stored.model, tree(before), tokens, t, conditions | square)
    ours = forward(target.model, tree(after), tokens, t, conditions)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=LOOSE)


@pytest.mark.parametrize(
    "before,after", [((), (1, 2, 2)), ((), (2, 2, 2)), ((1, 1, 2), (1, 2, 2)), ((1, 1, 2), (2,) * 3)]
)
def test_compression_appears_as_the_reference_starts_it(before, after):
    stored, old = random_weights(TINY.clone(kv_compress=before))
    transition, new = start(stored, old, changed(stored, kv_compress=after))

    def block(model, arrays, index):
        first = max(first for first, *_ in model.segments() if first <= index)
        prefix = f"blocks_{first}/"
        return {path[len(prefix) :]: a[index - first] for path, a in arrays.items() if path.startswith(prefix)}

    for index in range(3):
        ours, theirs = block(transition.model, new, index), block(stored.model, old, index)
        for path, array in theirs.items():
            np.testing.assert_array_equal(ours[path], array, err_msg=f"{index} {path}")
        if ours.keys() != theirs.keys():
            assert np.all(ours["attn/sr_kernel"] == 0.25) and not np.any(ours["attn/sr_bias"])
            assert np.all(ours["attn/norm/scale"] == 1) and not np.any(ours["attn/norm/bias"])
        assert ("attn/sr_kernel" in ours) == (after[index] == 2)


def test_everything_at_once():
    """From stage 1 to a compressed model with micro-conditions: what a change makes, the next one finds."""
    stored, arrays = load("dit")
    target = changed(
        stored,
        num_classes=0,
        adaln="single",
        text_dim=8,
        max_text_tokens=6,
        micro_condition=True,
        kv_compress=(1, 2, 2),
    )
    transition, _ = start(stored, arrays, target, null_text=np.zeros((6, 8), np.float32))
    whys = {row.path: row.why for row in transition.rows}
    assert whys["blocks_1/cross_attn/proj/kernel"].startswith("fresh, and projecting to zero")
    assert whys["blocks_1/scale_shift_table"] == "re-parameterized at t = 500"
    assert whys[NULL_TEXT] == "from config.init.null_text"


def test_the_same_model_is_copied():
    stored, before = load("sigma_kv_compress")
    transition, after = start(stored, before, dataclasses.replace(stored, latent_scale=0.5, position_base=64))
    assert set(actions(transition).values()) == {"copied"}
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize(
    "case,fields,lines",
    [
        ("sigma_plain", {"depth": 2, "num_heads": 3}, [r"depth +3 +2 +must be equal", r"num_heads +2 +3 +must be"]),
        ("sigma_plain", {"hidden_size": 48}, [r"hidden_size +24 +48 +must be equal"]),
        ("sigma_plain", {"patch_size": 1, "latent_channels": 16}, ["patch_size", r"latent_channels +4 +16 +must be"]),
        ("sigma_plain", {"learn_sigma": False, "qk_norm": True}, ["learn_sigma", r"qk_norm +False +True +must"]),
        ("sigma_plain", {"text_dim": 17, "max_text_tokens": 9}, [r"text_dim +16 +17", r"max_text_tokens .* can"]),
        ("sigma_plain", {"adaln": "full"}, [r"adaln +single +full +can change only from full to single"]),
        ("sigma_plain", {"num_classes": 3}, [r"num_classes +0 +3 +captions cannot become classes"]),
        ("sigma_kv_compress", {"kv_compress": ()}, [r"kv_compress +2 in \d of 3 blocks +none +can appear, but"]),
        ("dit", {"num_classes": 9}, [r"num_classes +10 +9 +must be equal, because labels"]),
        ("dit", {"adaln": "single"}, [r"adaln +full +single +can change only"]),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_all_differences(case, fields, lines):
    stored = describe(open_source(GOLDEN / f"{case}.pth"), HINTS)
    with pytest.raises(InputError) as error:
        plan_transition(stored, changed(stored, **fields), Choices())
    for line in lines:
        assert re.search(line, str(error.value)), str(error.value)


def test_numbers_that_are_not_finite_are_refused():
    stored, arrays = load("sigma_plain")
    transition = plan_transition(stored, stored, Choices())
    for path in ("blocks_0/mlp/fc1/kernel", NULL_TEXT):
        with pytest.raises(InputError, match=f"not finite:\n  {path}"):
            transition.apply(arrays | {path: np.full_like(arrays[path], np.nan)})
