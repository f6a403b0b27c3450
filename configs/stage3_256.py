"""PixArt-α's stage 3, aesthetics: pictures of quality, at 256 px first.

Data: python -m tools.extract_features --source data/aesthetic.json --resolution 256 512 1024 --family alpha \
          --vae weights/vae --text-encoder weights/t5 --out data/alpha
Run:  python -m pixart_jax.main --config=configs/stage3_256.py --workdir=runs/stage3_256
Hardware: the paper's, 64 V100.
Batch: 11,264 (176 on each device; the paper says 178), 90,000 steps.
Cost: 416 V100 days in the paper; not measured here.
Expected: what PixArt-XL-2-256x256 draws.
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(256)
    config.init_from = "runs/stage2_256"
    config.data.update({"source": "data/alpha/256", "batch_size": 11_264})
    config.train.num_steps = 90_000
    return config
