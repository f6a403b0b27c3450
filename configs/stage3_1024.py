"""PixArt-α's stage 3 at 1024 px, all aspect ratios, told each picture's size and shape (micro-conditions).

Data: python -m tools.extract_features --source data/aesthetic.json --resolution 256 512 1024 --family alpha \
          --vae weights/vae --text-encoder weights/t5 --out data/alpha
Run:  python -m pixart_jax.main --config=configs/stage3_1024.py --workdir=runs/stage3_1024
Hardware: the paper's, 32 V100.
Batch: 384 (12 on each device), 16,000 steps.
Cost: 160 V100 days in the paper; not measured here.
Expected: what PixArt-XL-2-1024-MS draws.

The reference also has a config of squares without micro-conditions at 1024 px; the released model is of this one.
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(1024)
    config.model.micro_condition = True
    config.init_from = "runs/stage3_512"
    config.data.update({"source": "data/alpha/1024", "batch_size": 384})
    config.train.num_steps = 16_000
    return config
