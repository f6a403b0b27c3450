"""Latent consistency distillation (PixArt-δ): the PixArt-α of 1024 px learns to draw in few steps.

Data: python -m tools.convert PixArt-alpha/PixArt-XL-2-1024-MS weights/alpha-1024
      feature shards in data/1024px, as for any training at 1024 px
Run:  python -m pixart_jax.main --config=configs/lcm_alpha_1024.py --workdir=runs/lcm_alpha_1024 \
          --config.data.vae=weights/alpha-1024/vae
Draw: python -m tools.sample --checkpoint runs/lcm_alpha_1024 --prompt "..."
Hardware: one host of accelerators; the frozen teacher lies beside the student, in bfloat16.
Batch: 32, 2,000 steps, which are ours.
Cost: not measured here; what a chip holds is in docs/adapting.md#memory.
Expected: pictures of the teacher's kind in 4 steps without guidance, in samples.png. Untested at full size: the
  released weights could not be had.

Guidance, distance, rates and the average's decay are the reference's.
"""

from pixart_jax.config.stages import lcm_config


def get_config():
    return lcm_config("alpha", 1024)
