"""PixArt-α at 256 px for a fraction of its compute: the papers' two stages of captions in one, and none of classes.

Data: python -m tools.extract_features --source data/captioned.json --resolution 256 --family alpha \
          --vae weights/vae --text-encoder weights/t5 \
          --align dino --align-weights weights/dinov2-base --out data/fast-256
Run:  python -m pixart_jax.main --config=configs/fast_alpha_256.py --workdir=runs/fast_alpha_256
Hardware: not tried; 32 devices are assumed.
Batch: 2,048 (64 on each device), 300,000 steps, which are ours.
Cost: 10.3 H200 days at 40 % of the peak, by the arithmetic of tools.cost; not measured.
Expected: unknown; no run of this size has been made.

Differs from the paper: it starts from noise and sees 614 million pictures instead of 3,041 million; for the first 30 %
of the steps block 7 is drawn to DINOv2's features; half of the tokens pass blocks 2 to 25 by, but for the last tenth of
the steps; rectified flow with logit-normal timesteps, and no learned variance; Muon, at a rate of its own that falls at
the end. docs/cheap.md has the sources, and what each was worth in miniature.
"""

from pixart_jax.config.stages import fast_config


def get_config():
    config = fast_config("alpha", 256)
    config.align.update({"weight": 0.5, "until": 0.3})
    config.data.update({"source": "data/fast-256", "batch_size": 2048})
    config.train.num_steps = 300_000
    return config
