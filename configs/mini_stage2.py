"""The recipe in miniature, stage 2: captions. Stage 1's DiT, re-parameterised, learns what dense captions mean.

Data: python -m tools.make_recipe_data --out data/recipe
Run:  python -m pixart_jax.main --config=configs/mini_stage2.py --workdir=runs/mini_stage2
Cost: minutes on two CPU cores; `make recipe` runs all stages and what they are compared with (docs/recipe.md).
Expected: most held-out captions, each a known emoji on a ground it was never seen on, drawn recognisably.
"""

from pixart_jax.config import read_config_file


def get_config():
    config = read_config_file("mini_stage1")
    config.model.update({"num_classes": 0, "adaln": "single"})
    config.init_from = "runs/mini_stage1"
    return config
