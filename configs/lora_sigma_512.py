"""The released PixArt-Σ of 512 px learns tens of your pictures beside its own weights, as a LoRA of rank 16.

Data: python -m tools.convert PixArt-alpha/PixArt-Sigma-XL-2-512-MS weights/sigma-512
      python -m tools.extract_features --source photos/ --resolution 512 --checkpoint weights/sigma-512 \
          --out data/photos-512
Run:  python -m pixart_jax.main --config=configs/lora_sigma_512.py --workdir=runs/lora_sigma_512 \
          --config.data.vae=weights/sigma-512/vae
Draw: python -m tools.sample --checkpoint runs/lora_sigma_512 --prompt "..."
      python -m tools.convert runs/lora_sigma_512 weights/style --to peft
Hardware: one accelerator; its memory is in docs/adapting.md#memory.
Batch: 4, 1,500 steps, which are ours: of 60 pictures each is seen a hundred times.
Cost: not measured here.
Expected: the pictures' style in samples.png. Not run here with the released weights, which could not be had.

Rank 16 and alpha 8 are those of the reference's scripts, whose rates are 1e-6 to 1e-5, and 1e-3 for DreamBooth. Ours
is 1e-4.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(512)
    config.init_from = "weights/sigma-512"
    config.init.null_text = "weights/sigma-512/text_encoder"
    config.adapter.kind = "lora"
    config.adapter.lora.update({"rank": 16, "alpha": 8.0, "init": "gaussian"})
    config.data.update({"source": "data/photos-512", "batch_size": 4})
    # As the reference's LoRA scripts but for the rate; the error alone is their loss.
    config.optimizer.update(
        {"name": "adamw", "learning_rate": 1e-4, "lr_scaling": "none", "warmup_steps": 50, "weight_decay": 0.01}
    )
    config.optimizer.update({"eps": 1e-8, "grad_clip": 1.0})
    config.train.variance_loss = False
    config.train.update(
        {"num_steps": 1500, "ema_decay": 0.99, "ema_warmup": True, "log_every": 10, "checkpoint_every": 250}
    )
    config.sample.update({"every": 250, "num_images": 4})
    return config
