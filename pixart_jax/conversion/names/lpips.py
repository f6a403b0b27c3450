"""PyTorch names of LPIPS's two files to ours: rules, strict on both sides. numpy only."""

from __future__ import annotations

from pixart_jax.conversion.names.rules import COPY, Rule
from pixart_jax.conversion.names.vae import CONV_KERNEL
from pixart_jax.models.hed import STAGES

# torchvision's classifier, which looks at no features in space.
CLASSIFIER = r"classifier\.[036]\.(weight|bias)"
# Its layers are counted through: a convolution and its ReLU are two, and a stage ends with a pool.
_CONVS = [
    (sum(2 * count + 1 for count, _ in STAGES[:stage]) + 2 * i, f"conv{stage + 1}_{i + 1}")
    for stage, (count, _) in enumerate(STAGES)
    for i in range(count)
]
VGG_RULES: list[Rule] = [
    rule
    for number, name in _CONVS
    for rule in (
        (rf"features\.{number}\.weight", f"{name}/kernel", CONV_KERNEL),
        (rf"features\.{number}\.bias", f"{name}/bias", COPY),
    )
]
# Before it is a dropout.
HEAD_RULES: list[Rule] = [(r"(lin[0-4])\.model\.1\.weight", r"\1/kernel", CONV_KERNEL)]
