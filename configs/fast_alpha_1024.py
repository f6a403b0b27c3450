"""PixArt-α at 1024 px, all aspect ratios, with micro-conditions, for a fraction of its compute.

Data: python -m tools.extract_features --source data/aesthetic.json --resolution 256 512 1024 --family alpha \
          --vae weights/vae --text-encoder weights/t5 --out data/alpha
Run:  python -m pixart_jax.main --config=configs/fast_alpha_1024.py --workdir=runs/fast_alpha_1024
Hardware: not tried; 32 devices are assumed.
Batch: 384 (12 on each device), 16,000 steps, which are ours.
Cost: 1.95 H200 days at 40 % of the peak, by the arithmetic of tools.cost; not measured.
Expected: unknown; no run of this size has been made.

Differs from the paper: half of the tokens pass blocks 2 to 25 by, but for the last tenth of the steps; rectified flow
with logit-normal timesteps, and no learned variance; Muon, at a rate of its own that falls at the end. docs/cheap.md
has the sources, and what each was worth in miniature.
"""

from pixart_jax.config.stages import fast_config


def get_config():
    config = fast_config("alpha", 1024)
    config.model.micro_condition = True
    config.init_from = "runs/fast_alpha_512"
    config.data.update({"source": "data/alpha/1024", "batch_size": 384})
    config.train.num_steps = 16_000
    return config
