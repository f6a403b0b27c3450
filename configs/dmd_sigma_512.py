"""Distribution matching distillation: the PixArt-Σ of 512 px learns to draw in a single step.

Data: python -m tools.convert PixArt-alpha/PixArt-Sigma-XL-2-512-MS weights/sigma-512
      feature shards in data/512px, as for any training at 512 px, of which the captions are read
      python -m tools.teacher_pairs --checkpoint weights/sigma-512 --source data/512px --out data/pairs_512 \
          --num-pairs 100000
Run:  python -m pixart_jax.main --config=configs/dmd_sigma_512.py --workdir=runs/dmd_sigma_512 \
          --config.data.vae=weights/sigma-512/vae
Draw: python -m tools.sample --checkpoint runs/dmd_sigma_512 --prompt "..."
Hardware: 16 chips or more; student and score network are trained, and the teacher lies beside them in bfloat16.
Batch: 16, 20,000 steps, which are ours.
Cost: not measured here; docs/adapting.md has what the TPU compiler says.
Expected: pictures of the teacher's kind in one step without guidance, in samples.png. Untested at full size: the
  released weights could not be had.

None was ever released for Σ; the settings are those of dmd_alpha_512.py. diffusers' pipeline of Σ does not draw in one
step: tools.sample does.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(512)
    config.init_from = "weights/sigma-512"
    config.init.null_text = "weights/sigma-512/text_encoder"
    config.objective.update({"kind": "distribution_matching", "guidance": 2.0, "distance": "l2"})
    config.data.update({"source": "data/512px", "pair_source": "data/pairs_512", "batch_size": 16})
    config.optimizer.update({"name": "adamw", "learning_rate": 1e-6, "lr_scaling": "none", "warmup_steps": 0})
    config.optimizer.update({"weight_decay": 0.01, "eps": 1e-6, "grad_clip": 10.0})
    config.train.update({"num_steps": 20_000, "ema_warmup": True, "log_every": 10, "checkpoint_every": 500})
    config.sample.update({"sampler": "dmd", "num_steps": 1, "every": 500})
    return config
