"""PixArt-α's stage 2, text-image alignment: stage 1's model learns SAM's pictures with LLaVA's captions at 256 px.

Data: python -m tools.extract_features --source "data/sam-{000000..000999}.tar" --resolution 256 --family alpha \
          --vae weights/vae --text-encoder weights/t5 --out data/sam-256
Run:  python -m pixart_jax.main --config=configs/stage2_256.py --workdir=runs/stage2_256
Hardware: the paper's, 64 V100.
Batch: 11,264 (176 on each device; the paper says 178), 150,000 steps.
Cost: 672 V100 days in the paper; not measured here.
Expected: pictures that follow their captions.

The start is a class-conditional DiT, whose modulation is re-parameterised to equal it at t = 500 while the new
cross-attention adds nothing. With --config.init_from=DiT-XL-2-256x256.pt it is the released DiT (CC-BY-NC). The
released code has no re-parameterisation and starts such a model from noise.
"""

from pixart_jax.config.stages import alpha_config


def get_config():
    config = alpha_config(256)
    config.init_from = "runs/stage1_256"
    config.init.reparameterize = "t500"
    config.data.update({"source": "data/sam-256", "batch_size": 11_264})
    config.train.num_steps = 150_000
    return config
