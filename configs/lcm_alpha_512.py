"""Latent consistency distillation (PixArt-δ): the PixArt-α of 512 px learns to draw in few steps.

Data: python -m tools.convert PixArt-alpha/PixArt-XL-2-512x512 weights/alpha-512
      feature shards in data/512px, as for any training at 512 px
Run:  python -m pixart_jax.main --config=configs/lcm_alpha_512.py --workdir=runs/lcm_alpha_512 \
          --config.data.vae=weights/alpha-512/vae
Draw: python -m tools.sample --checkpoint runs/lcm_alpha_512 --prompt "..."
Hardware: one host of accelerators; the frozen teacher lies beside the student, in bfloat16.
Batch: 32, 2,000 steps, which are ours.
Cost: not measured here; what a chip holds is in docs/adapting.md#memory.
Expected: pictures of the teacher's kind in 4 steps without guidance, in samples.png. Untested at full size: the
  released weights could not be had.

The one that was released is for 1024 px. Guidance, distance, rates and the average's decay are the reference's.
"""

from pixart_jax.config.stages import lcm_config


def get_config():
    return lcm_config("alpha", 512)
