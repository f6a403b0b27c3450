"""Distribution matching distillation: the PixArt-α of 512 px learns to draw in a single step.

Data: python -m tools.convert PixArt-alpha/PixArt-XL-2-512x512 weights/alpha-512
      feature shards in data/512px, as for any training at 512 px, of which the captions are read
      python -m tools.teacher_pairs --checkpoint weights/alpha-512 --source data/512px --out data/pairs_512 \
          --num-pairs 100000
Run:  python -m pixart_jax.main --config=configs/dmd_alpha_512.py --workdir=runs/dmd_alpha_512 \
          --config.data.vae=weights/alpha-512/vae
Draw: python -m tools.sample --checkpoint runs/dmd_alpha_512 --prompt "..."
Hardware: 16 chips or more; student and score network are trained, and the teacher lies beside them in bfloat16.
Batch: 16, 20,000 steps, which are ours.
Cost: not measured here; docs/adapting.md has what the TPU compiler says.
Expected: pictures of the teacher's kind in one step without guidance, in samples.png. Untested at full size: the
  released weights could not be had.

Timesteps, guidance, losses, optimizer and the average's decay are those of PixArt's training script, which keeps the
latents of its pairs alone and measures them by LPIPS, for which docs/adapting.md has the settings; here it is their
squared difference.
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(512)
    config.init_from = "weights/alpha-512"
    config.objective.update({"kind": "distribution_matching", "guidance": 2.0, "distance": "l2"})
    config.data.update({"source": "data/512px", "pair_source": "data/pairs_512", "batch_size": 16})
    config.optimizer.update({"name": "adamw", "learning_rate": 1e-6, "lr_scaling": "none", "warmup_steps": 0})
    config.optimizer.update({"weight_decay": 0.01, "eps": 1e-6, "grad_clip": 10.0})
    config.train.update({"num_steps": 20_000, "ema_warmup": True, "log_every": 10, "checkpoint_every": 500})
    config.sample.update({"sampler": "dmd", "num_steps": 1, "every": 500})
    return config
