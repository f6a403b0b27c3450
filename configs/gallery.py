"""A small PixArt learns 3,000 emoji of Microsoft's Fluent 3D set, with MiniLM in place of T5.

Data: python -m tools.make_gallery_data --out data/gallery
Run:  python -m pixart_jax.main --config=configs/gallery.py --workdir=runs/gallery
Cost: 10,000 steps in about half an hour on two CPU cores (docs/gallery.md).
Expected: retrieval@1 = 1.0; pairs of subject and skin tone that it never saw, nine of ten in the right tone.
"""

from pixart_jax.config import default_config


def get_config():
    config = default_config()

    config.model.update(
        {
            "hidden_size": 192,
            "depth": 6,
            "num_heads": 6,
            # Sixteen tokens of 32 pixels squared, as many as the quickstart's at half its size.
            "patch_size": 4,
            "learn_sigma": False,
            "latent_channels": 16,
            "resolution": 128,
            "text_dim": 384,
            "max_text_tokens": 16,
            # All six at once: a fifth faster on CPU.
            "scan_unroll": 6,
        }
    )
    # A token has 256 numbers, more than the model is wide: noise does not pass through, and a picture has fewer
    # directions (Li & He 2025, arXiv:2511.13720). Trained on eps it drew nothing but noise.
    config.diffusion.prediction = "x0"
    config.data.source = "data/gallery/train"
    config.data.batch_size = 64
    config.optimizer.update(
        {
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 200,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "grad_clip": 1.0,
        }
    )
    config.train.update(
        {"num_steps": 10_000, "ema_decay": 0.995, "log_every": 100, "checkpoint_every": 500, "keep_checkpoints": 2}
    )
    # More steps and more guidance leave more grain (docs/gallery.md).
    config.sample.update(
        {"every": 2000, "num_images": 64, "num_steps": 10, "guidance_scale": 1.5, "retrieval_captions": 64}
    )
    return config
