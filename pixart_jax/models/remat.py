"""What the backward pass keeps of each block, instead of computing it again (Chen et al. 2016, arXiv:1604.06174).

| policy | of each block are kept, beside its input | computed again |
|---|---|---|
| "none" | everything that gradients need | nothing |
| "dots" | results of matrix products with weights, of attention | elementwise functions, norms |
| "attention" | results of attention | all but attention |
| "full" | nothing | all |

Attention's results are its output and, of a kernel that keeps no logits, the logarithm of each row's softmax sum: with
them its backward pass need not run it again. Plain attention's logits are kept by "none" alone.

`config.model.remat` may also be "auto": the lightest that fits, which `training.memory.settle` finds before
anything is compiled.
"""

from __future__ import annotations

from typing import Any

import jax

# What attention's implementations call their results by `jax.ad_checkpoint.checkpoint_name`.
ATTENTION_RESULT = "attention_result"

_is_named = jax.checkpoint_policies.save_only_these_names(ATTENTION_RESULT)


def _is_attention(primitive, *arguments, **parameters) -> bool:
    # JAX's rule for cuDNN's kernel names nothing, but the kernel is a primitive of its own.
    is_cudnn = primitive.name.startswith("dot_product_attention_fwd")
    return is_cudnn or _is_named(primitive, *arguments, **parameters)


# For `jax.checkpoint`; None is without it.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _is_attention
    ),
    "attention": _is_attention,
    "full": jax.checkpoint_policies.nothing_saveable,
}
# From what computes least again to what keeps least.
BY_WEIGHT = ("none", "dots", "attention", "full")
AUTO = "auto"


def remat_options(policy: str, *, unroll: int, length: int) -> dict[str, Any]:
    """Arguments of `jax.checkpoint` for a stack of `length` blocks, `unroll` of which are an iteration of their loop.

    A loop by itself keeps XLA from merging the forward pass with what is computed again. Without one it must be told,
    for the policies that are there for memory; what "dots" computes again is elementwise, and XLA then decides better
    what of it to keep (docs/scale.md).
    """
    return {"policy": REMAT_POLICIES[policy], "prevent_cse": unroll >= length and policy != "dots"}
