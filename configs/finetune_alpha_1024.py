"""The released PixArt-α of 1024 px learns your pictures, all aspect ratios.

Data: python -m tools.convert PixArt-alpha/PixArt-XL-2-1024-MS weights/alpha-1024
      python -m tools.extract_features --source photos/ --resolution 1024 --checkpoint weights/alpha-1024 \
          --out data/photos-1024
Run:  python -m pixart_jax.main --config=configs/finetune_alpha_1024.py --workdir=runs/finetune_alpha_1024 \
          --config.data.vae=weights/alpha-1024/vae
Hardware: one host of accelerators.
Batch: 32, 10,000 steps. Both are ours: choose them by the number of pictures.
Cost: not measured here.
Expected: the pictures' style in samples.png.

At 512 px add --config.model.resolution=512 --config.model.position_scale=1 --config.model.micro_condition=False, and
name weights and data of 512 px. --config.init_from also takes a hub id, a .pth, a diffusers folder or the workdir of a
run.
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(1024)
    config.model.micro_condition = True
    config.init_from = "weights/alpha-1024"
    config.data.update({"source": "data/photos-1024", "batch_size": 32})
    config.train.update({"num_steps": 10_000, "ema_warmup": True})
    return config
