"""The released PixArt-Σ of 1024 px learns tens of your pictures: a subject, or a style.

Data: python -m tools.convert PixArt-alpha/PixArt-Sigma-XL-2-1024-MS weights/sigma-1024
      python -m tools.extract_features --source photos/ --resolution 1024 --checkpoint weights/sigma-1024 \
          --out data/photos-1024
Run:  python -m pixart_jax.main --config=configs/finetune_small_sigma.py --workdir=runs/finetune_small_sigma \
          --config.data.vae=weights/sigma-1024/vae
Hardware: one accelerator.
Batch: 4, 1,500 steps: of 60 pictures each is seen a hundred times. Both are ours.
Cost: not measured here.
Expected: the pictures' subject or style in samples.png. Look at samples/ on the way, and stop where they begin to
  repeat the pictures themselves: tens of them are learnt by heart before long.

Its rates, the warm-up and the average's memory are made for so short a run; finetune_sigma_1024 takes over at some
thousands of pictures. The whole way was tried on 60 crops of photographs with a tiny model of random weights
(docs/training.md#tens-of-pictures): the released ones could not be had, so what these numbers make of them is unknown.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(1024)
    config.init_from = "weights/sigma-1024"
    config.init.null_text = "weights/sigma-1024/text_encoder"
    config.data.update({"source": "data/photos-1024", "batch_size": 4})
    # As the reference's DreamBooth: a rate that does not follow the batch. Twice its 5e-6, for four times its batch.
    config.optimizer.update({"learning_rate": 1e-5, "lr_scaling": "none", "warmup_steps": 50})
    config.train.update(
        {"num_steps": 1500, "ema_decay": 0.99, "ema_warmup": True, "log_every": 10, "checkpoint_every": 250}
    )
    config.sample.update({"every": 250, "num_images": 4})
    return config
