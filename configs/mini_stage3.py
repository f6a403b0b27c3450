"""The recipe in miniature, stage 3: double resolution, seven aspect ratios in every batch, micro-conditions.

Data: python -m tools.make_recipe_data --out data/recipe
Run:  python -m pixart_jax.main --config=configs/mini_stage3.py --workdir=runs/mini_stage3
Cost: minutes on two CPU cores; `make recipe` runs all stages and what they are compared with (docs/recipe.md).
Expected: sharper emoji, at the place on the canvas that the caption names.
"""

from pixart_jax.config import read_config_file


def get_config():
    config = read_config_file("mini_stage2")
    # Twice the tokens along a side over the same span of positions.
    config.model.update({"resolution": 128, "position_scale": 2.0, "micro_condition": True})
    config.data.source = "data/recipe/large"
    config.init_from = "runs/mini_stage2"
    config.train.num_steps = 500
    config.eval.update({"source": "data/recipe/large_held_out", "every": 100, "num_samples": 192})
    return config
