"""A ControlNet for the released PixArt-α of 1024 px: pictures follow the edges that HED draws, all aspect ratios.

Data: python -m tools.convert PixArt-alpha/PixArt-XL-2-1024-MS weights/alpha-1024
      python -m tools.extract_features --source photos/ --resolution 1024 --checkpoint weights/alpha-1024 \
          --control hed --hed weights/ControlNetHED.pth --out data/edges-1024
Run:  python -m pixart_jax.main --config=configs/controlnet_alpha_1024.py --workdir=runs/controlnet_alpha_1024 \
          --config.data.vae=weights/alpha-1024/vae
Hardware: the paper's of PixArt-δ, 16 V100.
Batch: 192 in 4 accumulation steps (12 on each device), 3 million pictures; 10,000 steps, which are ours.
Cost: not measured here.
Expected: pictures that follow the edges "suddenly", after 300 to 1,000 steps (PixArt-δ, section 4).

Canny's edges: --control canny above. Any picture beside each photograph: --control given --control-dir DIR.
Draw: python -m tools.sample --checkpoint weights/alpha-1024 --controlnet runs/controlnet_alpha_1024 \
          --control photo.jpg --control-kind hed --hed weights/ControlNetHED.pth --prompt "..."
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(1024)
    config.model.micro_condition = True
    config.adapter.kind = "controlnet"
    config.init_from = "weights/alpha-1024"
    config.data.update({"source": "data/edges-1024", "batch_size": 192})
    config.train.update({"num_steps": 10_000, "accumulation_steps": 4, "ema_warmup": True})
    return config
