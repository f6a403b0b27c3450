"""The recipe in miniature, stage 1: pixels. A class-conditional DiT learns what emoji on coloured grounds look like.

Data: python -m tools.make_recipe_data --out data/recipe
Run:  python -m pixart_jax.main --config=configs/mini_stage1.py --workdir=runs/mini_stage1
Cost: minutes on two CPU cores; `make recipe` runs all stages and what they are compared with (docs/recipe.md).
Expected: blurred emoji, some of the right group.
"""

from pixart_jax.config import default_config


def get_config():
    config = default_config()

    config.model.update(
        {
            "hidden_size": 192,
            "depth": 6,
            "num_heads": 6,
            "latent_channels": 12,
            "resolution": 64,
            "text_dim": 128,
            "max_text_tokens": 16,
            # The groups of tools/emoji.py.
            "num_classes": 12,
            "adaln": "full",
            # All six at once: a fifth faster on CPU.
            "scan_unroll": 6,
        }
    )
    config.data.update({"source": "data/recipe/dense", "batch_size": 32})
    config.optimizer.update(
        {
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 100,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "grad_clip": 1.0,
        }
    )
    config.train.update(
        {"num_steps": 1500, "ema_decay": 0.99, "log_every": 50, "checkpoint_every": 500, "keep_checkpoints": 1}
    )
    config.eval.update({"source": "data/recipe/held_out", "every": 250, "num_samples": 64})
    config.sample.update({"every": 0, "num_images": 64, "guidance_scale": 1.5})
    return config
