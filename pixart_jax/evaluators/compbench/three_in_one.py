"""The score of a complex prompt: the mean of its attributes' and of what relations it has.

Source: T2I-CompBench, §4.4; its `3_in_1_eval/3_in_1.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pixart_jax.evaluators.compbench.layout import PICTURES_PER_PROMPT


def _first_sentence(prompt: str) -> str:
    return prompt.split(".")[0].lower()


def three_in_one(
    prompts: Sequence[str],
    *,
    spatial_prompts: Collection[str],
    action_prompts: Collection[str],
    attribute: np.ndarray,
    spatial: np.ndarray,
    action: np.ndarray,
) -> np.ndarray:
    """Scores of the complex category.

    Args:
      prompts: N of them.
      spatial_prompts, action_prompts: those with one kind of relation; all others have both.
      attribute, spatial, action: f64[10·N], by BLIP-VQA, the detector and CLIP.

    Returns:
      f64[10·N]
    """
    in_space = {_first_sentence(prompt) for prompt in spatial_prompts}
    acting = {_first_sentence(prompt) for prompt in action_prompts}
    scores = np.empty(PICTURES_PER_PROMPT * len(prompts))
    for number, prompt in enumerate(prompts):
        rows = slice(number * PICTURES_PER_PROMPT, (number + 1) * PICTURES_PER_PROMPT)
        if _first_sentence(prompt) in in_space:
            scores[rows] = (spatial[rows] + attribute[rows]) * 0.5
        elif _first_sentence(prompt) in acting:
            scores[rows] = (action[rows] + attribute[rows]) * 0.5
        else:
            scores[rows] = (attribute[rows] + spatial[rows] + action[rows]) / 3
    return scores
