"""DreamBooth: the released PixArt-Σ of 1024 px learns a subject from five pictures, and keeps its class.

Data: python -m tools.convert PixArt-alpha/PixArt-Sigma-XL-2-1024-MS weights/sigma-1024
      python -m tools.class_pictures --checkpoint weights/sigma-1024 --prompt "a photo of a dog" --num-images 100 \
          --out data/dogs
Run:  python -m pixart_jax.main --config=configs/dreambooth_sigma_1024.py --workdir=runs/dreambooth_sigma_1024 \
          --config.data.source=my_dog/ --config.data.caption="a photo of sks dog" --config.data.prior_source=data/dogs
Hardware: one accelerator that holds the model's training state and T5 (docs/scale.md).
Batch: 4, two pictures of the subject and two of its class, 400 steps. Both are ours; the rate is the reference's.
Cost: not measured here.
Expected: the subject in samples.png, which shows its own captions; look at samples/ and stop before it is all there is.

--config.data.prior_source= (empty) trains on the subject alone, four of its pictures a step: the model then forgets
what else is of the class. The released weights could not be had, so what these numbers make of them is unknown.
"""

from pixart_jax.config.stages import sigma_config


def get_config():
    config = sigma_config(1024)
    config.init_from = "weights/sigma-1024"
    config.init.null_text = "weights/sigma-1024/text_encoder"
    config.data.update(
        {
            "online": True,
            "source": "data/subject",
            "prior_source": "data/class",
            "caption": "a photo of sks dog",
            "caption_cleaning": "sigma",
            "vae": "weights/sigma-1024/vae",
            "text_encoder": "weights/sigma-1024/text_encoder",
            "batch_size": 4,
            # The subject's word belongs to the subject: nothing is learnt of captions that are left out.
            "text_drop_prob": 0.0,
        }
    )
    # The reference's DreamBooth has 5e-6 for one picture a step, and no decay by the batch's size.
    config.optimizer.update({"learning_rate": 5e-6, "lr_scaling": "none", "warmup_steps": 0})
    config.train.update(
        {"num_steps": 400, "ema_decay": 0.99, "ema_warmup": True, "log_every": 10, "checkpoint_every": 100}
    )
    config.sample.update({"every": 100, "num_images": 4})
    return config
