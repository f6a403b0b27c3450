"""PixArt-Σ at 1024 px, all aspect ratios, without micro-conditions.

Data: python -m tools.extract_features --source data/sigma.json --caption-weights prompt=1,sharegpt4v=1 \
          --resolution 256 512 1024 --checkpoint weights/sigma-512 --out data/sigma
Run:  python -m pixart_jax.main --config=configs/sigma_1024.py --workdir=runs/sigma_1024
Hardware: the reference does not say how many devices; 16 are assumed.
Batch: 192 (12 on each device), 20,000 steps, which are ours: the reference counts epochs of its own pictures.
Cost: not published by stage, not measured here.
Expected: what PixArt-Sigma-XL-2-1024-MS draws.

With key/value compression in blocks 14 to 27: --config.model.kv_compress_ratio=2. The reference then warms up
for 500 steps (--config.optimizer.warmup_steps=500).
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(1024)
    config.init_from = "runs/sigma_512"
    config.data.update({"source": "data/sigma/1024", "batch_size": 192})
    config.train.num_steps = 20_000
    return config
