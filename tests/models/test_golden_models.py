"""The model equals the reference's outputs in tests/golden."""

import numpy as np
import pytest
from golden_cases import (
    build_model,
    forward,
    load_arrays,
    load_config,
    load_params,
    load_state_dict,
    model_inputs,
    text_conditions,
    to_nchw,
)

TOLERANCE = 2e-5
CAPTION_CASES = [
    "alpha_single_scale",
    "alpha_multi_scale",
    "alpha_multi_scale_tall",
    "sigma_plain",
    "sigma_kv_compress",
    "sigma_kv_compress_qk_norm",
]


def check(config, output, expected):
    eps, v = (to_nchw(part, config, expected.shape) for part in output)
    np.testing.assert_allclose(np.concatenate([eps, v], axis=1), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("padding", [0, 24])
@pytest.mark.parametrize("case", CAPTION_CASES)
def test_caption_model(case, padding):
    config, arrays = load_config(case), load_arrays(case)
    model = build_model(config)
    tokens, conditions = model_inputs(config, arrays["in/x"])
    if padding:
        tokens, conditions = model_inputs(config, arrays["in/x"], pad_to=tokens.shape[1] + padding)
    conditions |= text_conditions(arrays)
    params = load_params(model, load_state_dict(case))
    check(config, forward(model, params, tokens, arrays["in/t"], conditions), arrays["out/eps_sigma"])


def test_every_text_token_without_a_mask():
    config, arrays = load_config("alpha_single_scale"), load_arrays("alpha_single_scale")
    model = build_model(config)
    tokens, conditions = model_inputs(config, arrays["in/x"])
    conditions |= text_conditions(arrays) | {"text_length": None, "num_tokens": None}
    params = load_params(model, load_state_dict("alpha_single_scale"))
    check(config, forward(model, params, tokens, arrays["in/t"], conditions), arrays["out/eps_sigma_nomask"])


def test_both_branches_of_guidance():
    """The reference guides three channels; channel 3 and the variance are the conditional branch's in row 0, the null
    branch's in row 1. So both branches are seen, and our null caption is attended to at the prompt's length, as theirs.

    The case does not record its call; this is the one that matches, found by search, and to float precision: sample 0
    twice, sample 1's mask for both rows, t = 400, scale 4.5.
    """
    config, arrays = load_config("alpha_single_scale"), load_arrays("alpha_single_scale")
    expected = arrays["out/cfg_eps3"]
    model = build_model(config)
    tokens, conditions = model_inputs(config, arrays["in/x"][[0, 0]])
    conditions |= {
        "text": arrays["in/y"][[0, 0], 0],
        "text_length": arrays["in/mask"][[1, 1]].sum(-1).astype(np.int32),
        "text_drop": np.array([False, True]),
    }
    params = load_params(model, load_state_dict("alpha_single_scale"))
    output = forward(model, params, tokens, np.full(2, 400), conditions)
    branches = np.concatenate([to_nchw(part, config, expected.shape) for part in output], axis=1)
    np.testing.assert_allclose(branches[:, 3:], expected[:, 3:], rtol=0, atol=TOLERANCE)
    cond, null = branches[:, :3]
    guided = null + 4.5 * (cond - null)
    np.testing.assert_allclose([guided, guided], expected[:, :3], rtol=0, atol=TOLERANCE)


def test_mixed_aspect_ratios_in_one_padded_batch():
    """Two checkpoints' grids (32 and 40 tokens) in one batch of one model give what each grid gives alone."""
    wide, tall = load_arrays("alpha_multi_scale"), load_arrays("alpha_multi_scale_tall")
    config = load_config("alpha_multi_scale")
    model = build_model(config)
    parts = []
    for arrays in (wide, tall):
        tokens, conditions = model_inputs(config, arrays["in/x"], pad_to=48)
        parts.append({"tokens": tokens, "t": arrays["in/t"]} | conditions | text_conditions(arrays))
    mixed = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    tokens, t = mixed.pop("tokens"), mixed.pop("t")
    assert len(set(mixed["num_tokens"])) == 2
    for case, rows, arrays in (
        ("alpha_multi_scale", slice(0, 2), wide),
        ("alpha_multi_scale_tall", slice(2, 4), tall),
    ):
        params = load_params(model, load_state_dict(case))
        output = [part[rows, : mixed["num_tokens"][rows.start]] for part in forward(model, params, tokens, t, mixed)]
        check(config, output, arrays["out/eps_sigma"])


@pytest.mark.parametrize("t", [0, 100, 500, 900])
def test_dit_unconditional(t):
    config, arrays = load_config("dit"), load_arrays("dit")
    model = build_model(config)
    tokens, conditions = model_inputs(config, arrays["in/x"])
    batch = len(tokens)
    conditions |= {"label": np.zeros(batch, np.int32), "text_drop": np.ones(batch, bool)}
    params = load_params(model, load_state_dict("dit"))
    check(config, forward(model, params, tokens, np.full(batch, t), conditions), arrays[f"out/uncond_t{t}"])


def test_dit_with_classes():
    """The case does not record its classes; 0, 3 and 9 are the only ones whose outputs match, and match to float
    precision."""
    config, arrays = load_config("dit"), load_arrays("dit")
    model = build_model(config)
    tokens, conditions = model_inputs(config, arrays["in/x"])
    conditions |= {"label": np.array([0, 3, 9], np.int32)}
    params = load_params(model, load_state_dict("dit"))
    check(config, forward(model, params, tokens, np.full(3, 500), conditions), arrays["out/class_t500"])
