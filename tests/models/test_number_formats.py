"""What is computed in bfloat16 and what never is, in the programs themselves and not only in their results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pixart import CLASSES, TINY, B, N, equations, init, make_inputs, random_params, run


@pytest.mark.parametrize(
    "fields", [{}, {"kv_compress": (1, 1, 2, 2), "qk_norm": True}, {"adaln": "full", "num_classes": CLASSES}]
)
def test_bfloat16_stays_out_of_statistics(fields):
    """Norms and softmax are float32 and matrix products bfloat16, in the program itself and not only in its result."""
    model = TINY.clone(dtype=jnp.bfloat16, **fields)
    params, (arguments, conditions) = random_params(model), make_inputs(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(init(model))} == {jnp.dtype(jnp.float32)}

    closed = jax.make_jaxpr(lambda p: model.apply({"params": p}, *arguments, **conditions))(params)
    operands = {}
    for equation in equations(closed.jaxpr):
        inputs = {variable.aval.dtype for variable in equation.invars if hasattr(variable.aval, "dtype")}
        operands.setdefault(equation.primitive.name, set()).update(inputs)
    for statistic in ("reduce_sum", "reduce_max", "exp", "rsqrt", "cos", "sin"):
        assert operands[statistic] == {jnp.dtype(jnp.float32)}, statistic
    assert operands["dot_general"] == {jnp.dtype(jnp.bfloat16)}

    output, exact = run(model, params), run(model.clone(dtype=jnp.float32), params)
    assert output.eps.dtype == output.v.dtype == jnp.float32
    error = np.asarray(output.eps - exact.eps)
    assert 0 < error.std() < 0.03 * np.asarray(exact.eps).std()


@pytest.mark.parametrize("fields", [{}, {"kv_compress": (1, 1, 2, 2)}, {"adaln": "full", "num_classes": CLASSES}])
def test_a_residual_stream_in_float32_is_nearer(fields):
    """While matrix products are in bfloat16 as before. In the program the stream is what goes from block to block."""
    plain = TINY.clone(depth=12, **fields | ({"kv_compress": (1, 2) * 6} if "kv_compress" in fields else {}))
    halves, params = plain.clone(dtype=jnp.bfloat16), random_params(plain)
    wide = halves.clone(residual_dtype=jnp.float32)
    arguments, conditions = make_inputs(wide)
    found = [*equations(jax.make_jaxpr(lambda p: wide.apply({"params": p}, *arguments, **conditions))(params).jaxpr)]
    for equation in found:
        if equation.primitive.name == "dot_general":
            assert {variable.aval.dtype for variable in equation.invars} == {jnp.dtype(jnp.bfloat16)}
        if equation.primitive.name == "scan":
            carried = [
                variable.aval for variable in equation.outvars if variable.aval.shape == (B, N, wide.hidden_size)
            ]
            assert {value.dtype for value in carried} == {jnp.dtype(jnp.float32)}
    exact, near, far = (np.asarray(run(model, params).eps) for model in (plain, wide, halves))
    assert np.square(near - exact).sum() < 0.5 * np.square(far - exact).sum()
