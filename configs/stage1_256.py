"""PixArt-α's stage 1, pixel dependency: a DiT-XL/2 of 1,000 classes learns ImageNet at 256 px.

Data: python -m tools.extract_features --source tfds:imagenet2012:train --labels --resolution 256 --vae weights/vae \
          --out data/imagenet-256
Run:  python -m pixart_jax.main --config=configs/stage1_256.py --workdir=runs/stage1_256
Hardware: the paper's, 8 V100.
Batch: 1,024 (128 on each device), 300,000 steps.
Cost: 88 V100 days in the paper; not measured here.
Expected: the objects of ImageNet in samples.png. The released DiT-XL/2-256 is such a model and saves the whole
  stage: stage2_256 can start from it.

The released code has no such stage: this is the paper's. Each block has the modulation of DiT (adaln="full"), which
stage 2 turns into adaLN-single. Labels are dropped where the other configs drop the text.
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(256)
    config.model.update({"num_classes": 1000, "adaln": "full"})
    config.data.update({"source": "data/imagenet-256", "batch_size": 1024})
    config.train.num_steps = 300_000
    return config
