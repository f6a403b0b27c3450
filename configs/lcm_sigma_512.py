"""Latent consistency distillation (PixArt-δ): the PixArt-Σ of 512 px learns to draw in few steps.

Data: python -m tools.convert PixArt-alpha/PixArt-Sigma-XL-2-512-MS weights/sigma-512
      feature shards in data/512px, as for any training at 512 px
Run:  python -m pixart_jax.main --config=configs/lcm_sigma_512.py --workdir=runs/lcm_sigma_512 \
          --config.data.vae=weights/sigma-512/vae
Draw: python -m tools.sample --checkpoint runs/lcm_sigma_512 --prompt "..."
Hardware: one host of accelerators; the frozen teacher lies beside the student, in bfloat16.
Batch: 32, 2,000 steps, which are ours.
Cost: not measured here.
Expected: pictures of the teacher's kind in 4 steps without guidance, in samples.png. Not run here: the released weights
  could not be had.

None was ever released for Σ. Guidance, distance, rates and the average's decay are the reference's. With
--config.adapter.kind=lora the student is a LoRA of the teacher. The reference's target is then the student itself; ours
is its average, as without.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(512)
    config.init_from = "weights/sigma-512"
    config.init.null_text = "weights/sigma-512/text_encoder"
    config.objective.kind = "consistency"
    config.data.update({"source": "data/512px", "batch_size": 32})
    config.optimizer.update({"learning_rate": 1e-5, "lr_scaling": "none", "warmup_steps": 0})
    config.train.update({"num_steps": 2000, "ema_decay": 0.95, "log_every": 10, "checkpoint_every": 250})
    config.sample.update({"sampler": "lcm", "num_steps": 4, "every": 250})
    return config
