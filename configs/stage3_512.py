"""PixArt-α's stage 3 at 512 px, all aspect ratios.

Data: python -m tools.extract_features --source data/aesthetic.json --resolution 256 512 1024 --family alpha \
          --vae weights/vae --text-encoder weights/t5 --out data/alpha
Run:  python -m pixart_jax.main --config=configs/stage3_512.py --workdir=runs/stage3_512
Hardware: the paper's, 64 V100.
Batch: 2,560 (40 on each device), 100,000 steps.
Cost: 320 V100 days in the paper; not measured here.
Expected: what PixArt-XL-2-512x512 draws.
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(512)
    config.init_from = "runs/stage3_256"
    config.data.update({"source": "data/alpha/512", "batch_size": 2560})
    config.train.num_steps = 100_000
    return config
