"""What the configs of PixArt's stages, in configs/, have in common.

One after the other, stage1_256, stage2_256, stage3_256, stage3_512 and stage3_1024 make PixArt-α; stage3_256 and then
sigma_256, sigma_512, sigma_1024, sigma_2k and sigma_4k make PixArt-Σ. Each starts from the workdir of the one before
it, runs/NAME; another start is named by --config.init_from. Directories below weights/ are what tools.convert wrote.
All of them take

  --config.data.source=synthetic --config.init_from=   random data and fresh weights: to try the config on a machine
  --config.data.batch_size=64                          what fits; the learning rate follows (see below)
  --config.train.accumulation_steps=8                  the whole batch in eight parts
  --config.mesh.fsdp=8                                 parameters, EMA and optimizer state split over eight devices
  --config.mesh.context=4                              each image's tokens split over four devices: fewer images, longer
  --config.model.kv_compress_ratio=2                   Σ's key/value compression, in blocks 14 to 27
  --config.data.vae=weights/vae                        sample grids in true colours: the autoencoder of the data

Settings are the reference code's, or where it has none, the paper's. As in the reference the learning rate is
2e-5·√(global batch/256); the paper names 2e-5 alone, which is --config.optimizer.lr_scaling=none. The rule is kept
because it is what the released code does unless told otherwise, and because it follows a batch that is not the paper's.

The average's decay is fixed, as the reference's (train.ema_warmup=False); fine-tuning, which may be short, warms it up.

What the reference does and these do not:
- its warm-up ends after 1000/(number of processes) optimizer steps, because each process moves the schedule; here it is
  as long as it says;
- `class_dropout_prob` of its configs reaches no model; here data.text_drop_prob is heeded, and is the same 0.1;
- PixArt-Σ trains without EMA; here EMA is kept, for sampling too (tools.sample --no-ema draws with the raw weights);
- it trains in float16 with a loss scale; here matrix products are in bfloat16;
- it resizes pictures straight to their bucket when it extracts features, which distorts them; here they are cropped;
- up to 512 px in α and at 256 px in Σ its pictures are all squares; here every resolution has its 40 aspect ratios.

Costs are those of the paper on its V100s, as remembered (docs/cost.md): it could not be had where this was written.
tools.cost counts a config's FLOPs. None of these configs has been run to its end here.
"""

from pixart_jax.config.defaults import default_config

# Pictures in a sample grid: at 4096 px one is 50 MB.
_GRID = {256: 16, 512: 16, 1024: 8, 2048: 2, 4096: 1}


def _config(resolution):
    config = default_config()
    config.dtype = "bfloat16"
    config.model.resolution = resolution
    # The reference's, and so are the defaults of the optimizer that are not named here: 2e-5, a constant schedule, the
    # gradient's norm at most 0.01, AdamW's epsilon and decay.
    config.optimizer.lr_scaling = "sqrt"
    config.train.ema_warmup = False
    config.sample.num_images = _GRID[resolution]
    if resolution >= 1024:
        # Steps take long, and runs have few.
        config.train.checkpoint_every = 500
        config.sample.every = 1000
    return config


def alpha_config(resolution):
    """PixArt-α: 120 tokens of text, AdamW."""
    config = _config(resolution)
    config.model.max_text_tokens = 120
    config.model.position_scale = max(1.0, resolution / 512)
    config.sample.sampler = "dpm-solver-alpha"
    return config


def sigma_config(resolution):
    """PixArt-Σ: 300 tokens of text, CAME, positions in [0, 32) at every resolution."""
    config = _config(resolution)
    config.model.max_text_tokens = 300
    config.model.position_scale = resolution / 512
    config.optimizer.update({"name": "came", "weight_decay": 0.0})
    config.sample.sampler = "dpm-solver"
    return config


def fast_config(family, resolution):
    """PixArt of a family, "alpha" or "sigma", with what makes training cheaper (docs/cheap.md).

    Half of the tokens pass the middle blocks by, but for the last tenth of the steps, in which the learning rate falls
    to zero too; Muon; rectified flow. Rates are ours, and not tried at this size.
    """
    config = {"alpha": alpha_config, "sigma": sigma_config}[family](resolution)
    config.model.learn_sigma = False
    config.model.route.update({"ratio": 0.5, "until": 0.9})
    # More noise at higher resolutions, as SD3 (Esser et al. 2024, arXiv:2403.03206); and more of the middle of the way.
    config.diffusion.update({"prediction": "flow", "timesteps": "logit_normal", "shift": 0.0})
    config.optimizer.update({"name": "muon", "learning_rate": 1e-4, "lr_scaling": "none", "weight_decay": 0.03})
    config.optimizer.update({"schedule": "warmup_stable_decay", "decay_share": 0.1})
    config.sample.sampler = "flow-dpm-solver"
    return config


def lcm_config(family, resolution):
    """Latent consistency distillation of the released model of a family, "alpha" or "sigma".

    Guidance, distance, rates and the average's decay are the reference's; batch and number of steps ours.
    """
    config = {"alpha": alpha_config, "sigma": sigma_config}[family](resolution)
    weights = f"weights/{family}-{resolution}"
    config.init_from = weights
    if family == "alpha":
        config.model.micro_condition = resolution == 1024
        config.optimizer.update({"learning_rate": 2e-5, "weight_decay": 0.0})
    else:
        config.init.null_text = f"{weights}/text_encoder"
        config.optimizer.learning_rate = 1e-5
    config.objective.kind = "consistency"
    config.data.update({"source": f"data/{resolution}px", "batch_size": 32})
    config.optimizer.update({"lr_scaling": "none", "warmup_steps": 0})
    config.train.update({"num_steps": 2000, "ema_decay": 0.95, "log_every": 10, "checkpoint_every": 250})
    config.sample.update({"sampler": "lcm", "num_steps": 4, "every": 250})
    return config


def lcm_lora_config(family, resolution):
    """The same, learnt by a LoRA: rank 32, alpha 8 and its layers are the reference's, and so is AdamW's eps."""
    config = lcm_config(family, resolution)
    config.adapter.kind = "lora"
    config.adapter.lora.update({"rank": 32, "alpha": 8.0, "init": "gaussian"})
    config.optimizer.update({"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.0, "eps": 1e-8})
    return config
