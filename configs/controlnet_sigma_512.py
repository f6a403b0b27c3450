"""A ControlNet for the released PixArt-Σ of 512 px: pictures follow the edges that HED draws, all aspect ratios.

Data: python -m tools.convert PixArt-alpha/PixArt-Sigma-XL-2-512-MS/transformer weights/sigma-512 --family sigma \
          --encoders PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers
      python -m tools.extract_features --source photos/ --resolution 512 --checkpoint weights/sigma-512 \
          --control hed --hed weights/ControlNetHED.pth --out data/edges-512
Run:  python -m pixart_jax.main --config=configs/controlnet_sigma_512.py --workdir=runs/controlnet_sigma_512 \
          --config.data.vae=weights/sigma-512/vae
Hardware: one host of accelerators.
Batch: 192, 10,000 steps. Both are ours: there is no official ControlNet for Σ.
Cost: not measured here.
Expected: pictures that follow the edges.

Settings are those of α's ControlNet, AdamW among them. With key/value compression in blocks 14 to 27:
--config.model.kv_compress_ratio=2; the 13 copies are of blocks without it, more of them may have it.
Draw: as configs/controlnet_alpha_1024.py says, with weights/sigma-512.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(512)
    config.optimizer.update({"name": "adamw", "weight_decay": 0.03})
    config.adapter.kind = "controlnet"
    config.init_from = "weights/sigma-512"
    config.data.update({"source": "data/edges-512", "batch_size": 192})
    config.train.update({"num_steps": 10_000, "ema_warmup": True})
    return config
