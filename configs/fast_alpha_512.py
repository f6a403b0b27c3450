"""PixArt-α at 512 px, all aspect ratios, for a fraction of its compute.

Data: python -m tools.extract_features --source data/aesthetic.json --resolution 256 512 1024 --family alpha \
          --vae weights/vae --text-encoder weights/t5 --out data/alpha
Run:  python -m pixart_jax.main --config=configs/fast_alpha_512.py --workdir=runs/fast_alpha_512
Hardware: not tried; 32 devices are assumed.
Batch: 1,024 (32 on each device), 40,000 steps, which are ours.
Cost: 2.67 H200 days at 40 % of the peak, by the arithmetic of tools.cost; not measured.
Expected: unknown; no run of this size has been made.

Differs from the paper: 41 million pictures instead of 256 million; half of the tokens pass blocks 2 to 25 by, but for
the last tenth of the steps; rectified flow with logit-normal timesteps, and no learned variance; Muon, at a rate of its
own that falls at the end. docs/cheap.md has the sources, and what each was worth in miniature.
"""

from pixart_jax.config.stages import fast_config


def get_config():
    config = fast_config("alpha", 512)
    config.init_from = "runs/fast_alpha_256"
    config.data.update({"source": "data/alpha/512", "batch_size": 1024})
    config.train.num_steps = 40_000
    return config
