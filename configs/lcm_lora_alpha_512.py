"""Latent consistency distillation (PixArt-δ): the PixArt-α of 512 px learns to draw in few steps, as a LoRA.

Data: python -m tools.convert PixArt-alpha/PixArt-XL-2-512x512 weights/alpha-512
      feature shards in data/512px, as for any training at 512 px
Run:  python -m pixart_jax.main --config=configs/lcm_lora_alpha_512.py --workdir=runs/lcm_lora_alpha_512 \
          --config.data.vae=weights/alpha-512/vae
Draw: python -m tools.sample --checkpoint runs/lcm_lora_alpha_512 --prompt "..."
      python -m tools.convert runs/lcm_lora_alpha_512 weights/alpha-512-lcm --to peft
      python -m tools.sample --checkpoint weights/alpha-512 --lora weights/alpha-512-lcm --prompt "..."
Hardware: one host of accelerators; base and teacher are one frozen copy, in bfloat16.
Batch: 32, 2,000 steps, which are ours.
Cost: not measured here; what a chip holds is in docs/adapting.md#memory.
Expected: pictures of the teacher's kind in 4 steps without guidance, in samples.png. Untested at full size: the
  released weights could not be had.

The one that was released is for 1024 px. Its rate is ours: the reference's full distillation has 2e-5. The reference's
target is the student itself; ours is its average, as without a LoRA.
"""

from pixart_jax.config.stages import lcm_lora_config


def get_config():
    return lcm_lora_config("alpha", 512)
