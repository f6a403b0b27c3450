"""PixArt-Σ at 4096 px, all aspect ratios: 65,536 tokens.

Data: python -m tools.extract_features --source data/sigma-4k.json --caption-weights prompt=1,sharegpt4v=1 \
          --resolution 4096 --min-side 2048 --checkpoint weights/sigma-512 --out data/sigma-4096
Run:  python -m pixart_jax.main --config=configs/sigma_4k.py --workdir=runs/sigma_4k
Hardware: ours, 16 devices.
Batch: 16 (one on each device), 10,000 steps.
Cost: not published, not measured here.
Expected: unknown: the paper draws at 4K, and there is neither a config nor a checkpoint of it.

With key/value compression in blocks 14 to 27: --config.model.kv_compress_ratio=2.

Nothing here has a reference: the position scale 8 continues the row 0.5, 1, 2, 4, so that positions span [0, 32) as at
every other resolution; the buckets are those of 1024 px times four; the rest is sigma_2k's.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(4096)
    config.init_from = "runs/sigma_2k"
    config.data.update({"source": "data/sigma-4096", "batch_size": 16})
    config.optimizer.warmup_steps = 100
    config.train.num_steps = 10_000
    return config
