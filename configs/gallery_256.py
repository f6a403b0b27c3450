"""The gallery's whole set at 256 px, for one H100. Written by arithmetic: nobody has trained it yet.

Data: python -m tools.make_gallery_data --size 256 --out data/gallery_256
Run:  python -m pixart_jax.main --config=configs/gallery_256.py --workdir=runs/gallery_256
Cost: not measured.
Expected: not known; docs/gallery.md says what the one at 128 px came to.
"""

from pixart_jax.config import read_config_file


def get_config():
    config = read_config_file("gallery")
    # 256 tokens of 16 pixels squared, in a model of about 130 million parameters.
    config.model.update(
        {"hidden_size": 768, "depth": 12, "num_heads": 12, "patch_size": 2, "resolution": 256, "scan_unroll": 1}
    )
    config.data.source = "data/gallery_256/train"
    config.data.batch_size = 256
    config.dtype = "bfloat16"
    config.optimizer.update({"learning_rate": 3e-4, "warmup_steps": 1000})
    config.train.update({"num_steps": 40_000, "ema_decay": 0.999, "checkpoint_every": 2000})
    config.sample.every = 5000
    return config
