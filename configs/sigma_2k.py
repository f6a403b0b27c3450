"""PixArt-Σ at 2048 px, all aspect ratios.

Data: python -m tools.extract_features --source data/sigma-2k.json --caption-weights prompt=1,sharegpt4v=1 \
          --resolution 2048 --min-side 1024 --checkpoint weights/sigma-512 --out data/sigma-2048
Run:  python -m pixart_jax.main --config=configs/sigma_2k.py --workdir=runs/sigma_2k
Hardware: the reference does not say how many devices; 16 are assumed.
Batch: 64 (4 on each device), 10,000 steps, which are ours: the reference counts epochs of its own pictures.
Cost: not published by stage, not measured here.
Expected: what PixArt-Sigma-XL-2-2K-MS draws.

With key/value compression in blocks 14 to 27: --config.model.kv_compress_ratio=2. The reference's "2K
kvcompress" config has it switched off, and its released model has none.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(2048)
    config.init_from = "runs/sigma_1024"
    config.data.update({"source": "data/sigma-2048", "batch_size": 64})
    config.optimizer.warmup_steps = 100
    config.train.num_steps = 10_000
    return config
