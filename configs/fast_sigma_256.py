"""PixArt-Σ at 256 px for a fraction of its compute: fast_alpha_256's model learns another autoencoder and longer text.

Data: python -m tools.extract_features --source data/sigma.json --caption-weights prompt=1,sharegpt4v=1 \
          --resolution 256 512 1024 --checkpoint weights/sigma-512 --out data/sigma
Run:  python -m pixart_jax.main --config=configs/fast_sigma_256.py --workdir=runs/fast_sigma_256
Hardware: not tried; 16 devices are assumed.
Batch: 1,024 (64 on each device), 100,000 steps, which are ours.
Cost: 1.99 H200 days at 40 % of the peak, by the arithmetic of tools.cost; not measured.
Expected: unknown; no run of this size has been made.

Differs from the paper: half of the tokens pass blocks 2 to 25 by, but for the last tenth of the steps; rectified flow
with logit-normal timesteps, and no learned variance; Muon in place of CAME, at a rate of its own that falls at the end.
docs/cheap.md has the sources, and what each was worth in miniature.
"""

from pixart_jax.config.stages import fast_config


def get_config():
    config = fast_config("sigma", 256)
    config.init_from = "runs/fast_alpha_256"
    config.data.update({"source": "data/sigma/256", "batch_size": 1024})
    config.train.num_steps = 100_000
    return config
