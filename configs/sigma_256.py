"""PixArt-Σ at 256 px: α's model learns another autoencoder (SDXL's), T5's text to 300 tokens, and half the positions.

Data: python -m tools.extract_features --source data/sigma.json --caption-weights prompt=1,sharegpt4v=1 \
          --resolution 256 512 1024 --checkpoint weights/sigma-512 --out data/sigma
Run:  python -m pixart_jax.main --config=configs/sigma_256.py --workdir=runs/sigma_256
Hardware: the reference does not say how many devices; 16 are assumed.
Batch: 1,024 (64 on each device), 100,000 steps, which are ours: the reference counts epochs of its own pictures.
Cost: not published by stage, not measured here.
Expected: what PixArt-Sigma-XL-2-256x256 draws.

With key/value compression (--config.model.kv_compress_ratio=2) data at 256 px must be of buckets whose sides are
multiples of 32 px, as squares are: the run refuses others. Synthetic data leave them out.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(256)
    config.init_from = "runs/stage3_256"
    config.data.update({"source": "data/sigma/256", "batch_size": 1024})
    config.train.num_steps = 100_000
    return config
