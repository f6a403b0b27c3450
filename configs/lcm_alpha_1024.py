"""Latent consistency distillation (PixArt-δ): the PixArt-α of 1024 px learns to draw in few steps.

Data: python -m tools.convert PixArt-alpha/PixArt-XL-2-1024-MS weights/alpha-1024
      feature shards in data/1024px, as for any training at 1024 px
Run:  python -m pixart_jax.main --config=configs/lcm_alpha_1024.py --workdir=runs/lcm_alpha_1024 \
          --config.data.vae=weights/alpha-1024/vae
Draw: python -m tools.sample --checkpoint runs/lcm_alpha_1024 --prompt "..."
Hardware: one host of accelerators; the frozen teacher lies beside the student, in bfloat16.
Batch: 32, 2,000 steps, which are ours.
Cost: not measured here.
Expected: pictures of the teacher's kind in 4 steps without guidance, in samples.png. Not run here: the released weights
  could not be had.

Guidance, distance, rates and the average's decay are the reference's. With --config.adapter.kind=lora the student is a
LoRA of the teacher. The reference's target is then the student itself; ours is its average, as without.
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(1024)
    config.init_from = "weights/alpha-1024"
    config.model.micro_condition = True
    config.objective.kind = "consistency"
    config.data.update({"source": "data/1024px", "batch_size": 32})
    config.optimizer.update({"learning_rate": 2e-5, "lr_scaling": "none", "warmup_steps": 0, "weight_decay": 0.0})
    config.train.update({"num_steps": 2000, "ema_decay": 0.95, "log_every": 10, "checkpoint_every": 250})
    config.sample.update({"sampler": "lcm", "num_steps": 4, "every": 250})
    return config
