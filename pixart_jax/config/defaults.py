"""All keys of a config with their defaults."""

from __future__ import annotations

try:
    from ml_collections import ConfigDict
except ImportError:  # Accelerator images often lack it; a config file needs no more than attributes.

    class ConfigDict(dict):  # type: ignore[no-redef]
        """Nested dict with attribute access."""

        def __init__(self, values):
            super().__init__({k: ConfigDict(v) if isinstance(v, dict) else v for k, v in values.items()})

        def __getattr__(self, key):
            try:
                return self[key]
            except KeyError as error:
                raise AttributeError(key) from error

        def __setattr__(self, key, value):
            if key not in self:
                raise AttributeError(f"unknown config key {key}")
            self[key] = value

        def lock(self):
            return self


def default_config() -> ConfigDict:
    """All keys and their defaults; locked, so that a misspelt key is an error."""
    config = ConfigDict(
        {
            # Of parameters, data order and noise; two runs with the same seed are bit-identical on the same machine.
            "seed": 0,
            # Of matrix products: "bfloat16" on accelerators, "float32" on CPU.
            "dtype": "float32",
            # Weights to start from, as tools.convert takes them: a run's workdir (or one checkpoint in it), a model
            # that tools.convert wrote, a .pth, a diffusers folder, a DiT file, a hub id. docs/init_from.md says which
            # changes of model they survive. EMA, optimizer and step start afresh; a run that is resumed ignores it.
            "init_from": "",
            # How they are turned into this model; what does not apply is ignored.
            "init": {
                # Where there are both: "ema" or "raw" parameters; "auto" is EMA, but for a PixArt's .pth `state_dict`.
                "weights": "auto",
                # From a class-conditional DiT to captions: "tN" equals it at timestep N, "mean" is closest over all
                # of them, "none" leaves the modulation fresh.
                "reparameterize": "t500",
                # Which DiT: that of its "null" class, or of "none", without a class vector.
                "unconditional": "null",
                # Key/value compression that appears starts as the "reference"'s, or to "preserve" the function better.
                "kv_compress": "reference",
                # The null caption, that is the text encoder's features of the empty one: a .npy or .pth of them, or the
                # folder of a text encoder that tools.convert wrote.
                "null_text": "",
            },
            "model": {
                # A key of models.pixart.SIZES; the four fields below it override the size where they are not 0.
                "size": "XL/2",
                "hidden_size": 0,
                "depth": 0,
                "num_heads": 0,
                "patch_size": 0,
                "latent_channels": 4,
                # Pixels along one side of the resolution's square: fixes the number of tokens and the base of
                # positions.
                "resolution": 256,
                # `lewei_scale` / `pe_interpolation` of the reference (spec §1.7).
                "position_scale": 1.0,
                "text_dim": 4096,
                # 120 for α, 300 for Σ.
                "max_text_tokens": 120,
                # Above 0: class-conditional, for stage 1.
                "num_classes": 0,
                # α-1024's embedding of image size and aspect ratio.
                "micro_condition": False,
                # Σ's key/value compression: ratio, and the first block that has it.
                "kv_compress_ratio": 1,
                "kv_compress_from": 14,
                "qk_norm": False,
                # "single", or "full" for DiT and the paper's ablation.
                "adaln": "single",
                "learn_sigma": True,
                # What the backward pass recomputes: a key of models.remat.REMAT_POLICIES.
                "remat": "none",
                # Blocks per iteration of the loop over blocks: more compile longer and, on CPU, run faster.
                "scan_unroll": 1,
                # One of models.attention.IMPLEMENTATIONS; "auto" takes the platform's kernel where the shapes suit it.
                "attention": "auto",
            },
            "data": {
                # Directories of feature shards, "DIR" or "DIR:WEIGHT,DIR:WEIGHT"; with `online`, one of pictures; or
                # "synthetic", random numbers of the model's shapes in every aspect ratio, to try a config or a machine.
                "source": "",
                # Encode pictures and captions (or labels) on the way, without tools.extract_features: for small sets.
                # Each visit costs the encoders' time, and every device holds a copy of both. Then `source` is what
                # tools.extract_features takes as --source, `data_dir` what it takes as --data-dir, and `resolution` one
                # that has buckets (256, 512, 1024, 2048, 2880, 4096). Ratios mix freely in the one compiled step; the
                # autoencoder is compiled once for each bucket, when its first picture comes.
                "online": False,
                "data_dir": "",
                # Directories that tools.convert wrote. The autoencoder also decodes the sample grids of shards that
                # were made with it, which are drawn in false colours otherwise; the text encoder also reads their
                # `sample.prompts`.
                "vae": "",
                "text_encoder": "",
                # How `online` cleans captions: "none", "alpha" or "sigma".
                "caption_cleaning": "none",
                # Global: over all devices and processes.
                "batch_size": 256,
                # Processes that read and assemble batches; 0 does it in threads of this one.
                "num_workers": 0,
                # Share of captions (or labels) replaced by the null embedding, for guidance.
                "text_drop_prob": 0.1,
                # Global batches of one aspect ratio each, as the reference's are; else they mix them.
                "group_buckets": False,
            },
            "optimizer": {
                # "adamw" (α) or "came" (Σ, whose weight_decay is 0).
                "name": "adamw",
                "learning_rate": 2e-5,
                # "none", or the reference's rules for the global batch B: "sqrt" (·√(B/256), on in all its configs but
                # DreamBooth's) or "linear" (·B/256). What is logged is the result.
                "lr_scaling": "none",
                # After the warm-up, counted in optimizer steps: "constant"; "cosine", to zero at the end; or
                # "cosine_decay_to_constant", back to the rate before lr_scaling after two thirds.
                "schedule": "constant",
                "warmup_steps": 1000,
                "b1": 0.9,
                "b2": 0.999,
                # AdamW's alone; the reference's.
                "eps": 1e-10,
                # CAME's alone: decay rate of the instability, what is added to the squared gradient and to the
                # instability, and the largest root mean square of a tensor's update.
                "came": {"b3": 0.9999, "eps1": 1e-30, "eps2": 1e-16, "clip_threshold": 1.0},
                "weight_decay": 0.03,
                # Largest global gradient norm.
                "grad_clip": 0.01,
            },
            "train": {
                "num_steps": 100_000,
                # Microbatches that one optimizer step is summed over.
                "accumulation_steps": 1,
                "ema_decay": 0.9999,
                # The optimizer's state lies in the hosts' memory, and comes to the devices for each update.
                "offload_optimizer": False,
                # The reference's `snr_loss`; no config it ships sets it.
                "snr_loss": False,
                "log_every": 100,
                "checkpoint_every": 1000,
                # A checkpoint is written while training goes on. Seconds that a step may wait, to be saved, for the one
                # before to be complete; then it is not saved, unless it is the last, or a signal asks to stop.
                "checkpoint_wait": 60,
                # The newest ones. With 1 there is none to go back to from one that the disk has damaged.
                "keep_checkpoints": 2,
                # Seconds that a step, a save, an evaluation or a sample grid may take before the run is taken to hang:
                # it then writes the stacks of its threads and exits with status 75, to be started again. 0: never.
                "hang_timeout": 1800,
            },
            "mesh": {
                # Devices along each axis; their product is the number of devices, and -1 is what the others leave.
                # "data" splits the batch, and goes over the slow links between slices.
                "data": -1,
                # Splits parameters, EMA and optimizer state, and the batch like "data".
                "fsdp": 1,
                # Splits attention's heads and the MLPs: for parameters or batches too small for so many devices.
                "tensor": 1,
                # Splits each image's tokens: for 2K and 4K, where one image is a device's worth of work.
                "context": 1,
            },
            "sample": {
                # Steps between sample grids; 0 draws none.
                "every": 5000,
                # What they show: prompts, one a line, or the name of a text file of them that ends in .txt; "" draws
                # `num_images` captions of the training data, each beside its picture. For shards with features of T5,
                # `data.text_encoder` must name it.
                "prompts": "",
                "num_images": 16,
                "sampler": "dpm-solver",
                "num_steps": 20,
                "guidance_scale": 4.5,
                # Captions that the end of the run measures retrieval@1 over, for data sets small enough to know by
                # heart; 0 skips it.
                "retrieval_captions": 0,
            },
            "eval": {
                # Directories of held-out feature shards, "DIR" or "DIR,DIR", made with the encoders of the training
                # data; "" evaluates nothing.
                "source": "",
                # Steps between evaluations; the first and the last step have one too.
                "every": 5000,
                # Pictures, spread evenly over the source.
                "num_samples": 1024,
                # Model timesteps, 0 (hardly any noise) to 999: a curve each.
                "timesteps": "50,150,250,350,450,550,650,750,850,950",
                # Of the noise, and apart from the run's, so that runs compare.
                "seed": 0,
            },
        }
    )
    config.lock()
    return config
