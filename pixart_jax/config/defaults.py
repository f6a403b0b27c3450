"""Every setting of a run: its key, its meaning, its default, and the values that can work by themselves.

What settings cannot work together, `checks` says.
"""

from __future__ import annotations

from typing import Any

from pixart_jax.adapters.lora import INITS
from pixart_jax.config.declaration import (
    AT_LEAST_ONE,
    DECAY_RATE,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    RISING_TIMESTEPS,
    SEED,
    SHARE,
    Range,
    Setting,
    matching,
    one_of,
    some_of,
    within,
)
from pixart_jax.config.processes import DIFFUSION
from pixart_jax.config.savings import ALIGN, AVERAGE, ROUTE
from pixart_jax.models.attention import IMPLEMENTATIONS
from pixart_jax.models.layers import KV_SAMPLINGS
from pixart_jax.models.pixart import SIZES
from pixart_jax.models.remat import AUTO, BY_WEIGHT
from pixart_jax.objectives.consistency import DISTANCES
from pixart_jax.optimizers import LR_SCALINGS, OPTIMIZERS, SCHEDULES
from pixart_jax.samplers import SAMPLERS
from pixart_jax.samplers.program import DROPPED_PATH

try:
    from ml_collections import ConfigDict
except ImportError:  # Accelerator images often lack it; a config file needs no more than attributes.

    class ConfigDict(dict):  # type: ignore[no-redef] # stands in for the one above
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


# Objectives that teach a student what a frozen teacher knows.
DISTILLED = ("consistency", "distribution_matching")

SETTINGS = {
    # Of parameters, data order and noise; two runs with the same seed are bit-identical on the same machine.
    "seed": Setting(0, SEED),
    # Of matrix products: "bfloat16" on accelerators, "float32" on CPU.
    "dtype": Setting("float32", one_of("float32", "bfloat16")),
    # Of the sum that the blocks add to, in training: "" is dtype. "float32" is what PyTorch's autocast makes of it in
    # PixArt's own training: nearer to float32's gradients, for more memory and time (docs/training.md#precision).
    "residual_dtype": Setting("", one_of("", "float32")),
    # Weights to start from, as tools.convert takes them: a run's workdir (or one checkpoint in it), a model that
    # tools.convert wrote, a .pth, a diffusers folder, a DiT file, a hub id. docs/init_from.md says which changes of
    # model they survive. EMA, optimizer and step start afresh; a run that is resumed ignores it.
    "init_from": Setting(""),
    # How they are turned into this model; what does not apply is ignored.
    "init": {
        # Where there are both: "ema" or "raw" parameters; "auto" is EMA, but for a PixArt's .pth `state_dict`.
        "weights": Setting("auto", one_of("auto", "ema", "raw")),
        # From a class-conditional DiT to captions: "tN" equals it at timestep N, "mean" is closest over all of them,
        # "none" leaves the modulation fresh.
        "reparameterize": Setting(
            "t500",
            matching(r"none|mean|t\d{1,3}", "must be none, mean, or t and a timestep of 0..999, as in t500"),
        ),
        # Which DiT: that of its "null" class, or of "none", without a class vector.
        "unconditional": Setting("null", one_of("null", "none")),
        # Key/value compression that appears starts as the "reference"'s, or to "preserve" the function better.
        "kv_compress": Setting("reference", one_of("reference", "preserve")),
        # The null caption, that is the text encoder's features of the empty one: a .npy or .pth of them, or the folder
        # of a text encoder that tools.convert wrote.
        "null_text": Setting(""),
    },
    "model": {
        # A key of models.pixart.SIZES; the four fields below it override the size where they are not 0.
        "size": Setting("XL/2", one_of(*SIZES)),
        "hidden_size": Setting(0, within(0, 1 << 16)),
        "depth": Setting(0, within(0, 1 << 10)),
        "num_heads": Setting(0, within(0, 1 << 12)),
        "patch_size": Setting(0, within(0, 1 << 6)),
        "latent_channels": Setting(4, within(1, 1 << 10)),
        # Pixels along one side of the resolution's square: fixes the number of tokens and the base of positions.
        "resolution": Setting(256, within(1, 1 << 15)),
        # `lewei_scale` / `pe_interpolation` of the reference (spec §1.7).
        "position_scale": Setting(1.0, within(1e-4, 1e4)),
        "text_dim": Setting(4096, within(1, 1 << 16)),
        # 120 for α, 300 for Σ.
        "max_text_tokens": Setting(120, within(1, 1 << 16)),
        # Above 0: class-conditional, for stage 1.
        "num_classes": Setting(0, within(0, 1 << 24)),
        # α-1024's embedding of image size and aspect ratio.
        "micro_condition": Setting(False),
        # Σ's key/value compression: ratio, and the first block that has it.
        "kv_compress_ratio": Setting(1, within(1, 64)),
        "kv_compress_from": Setting(14, NOT_NEGATIVE),
        # How: by a convolution that is learnt; or what of each block of tokens is kept, see `layers.SelfAttention`.
        "kv_sampling": Setting("conv", one_of(*KV_SAMPLINGS)),
        "qk_norm": Setting(False),
        # "single", or "full" for DiT and the paper's ablation.
        "adaln": Setting("single", one_of("single", "full")),
        "learn_sigma": Setting(True),
        # What the backward pass recomputes: a key of models.remat.REMAT_POLICIES; "auto" is the lightest that fits into
        # the devices' memory (training.memory).
        "remat": Setting(AUTO, one_of(AUTO, *BY_WEIGHT)),
        # Blocks per iteration of the loop over blocks: more compile longer and, on CPU, run faster. With all of them
        # the compiler decides what of "dots" is computed again. 0: all in a training step on TPUs, else one
        # (training.memory).
        "scan_unroll": Setting(0, within(0, 1 << 10)),
        # One of models.attention.IMPLEMENTATIONS; "auto" takes the platform's kernel where the shapes suit it.
        "attention": Setting("auto", one_of(*IMPLEMENTATIONS)),
        "route": ROUTE,
    },
    "adapter": {
        # What of the model is trained: "full" is everything. Beside frozen weights, which are `init_from`'s: "lora"
        # small matrices (docs/adapting.md); "controlnet" copies of its first blocks, which follow a control picture
        # (docs/control.md).
        "kind": Setting("full", one_of("full", "lora", "controlnet")),
        # One that was trained already, to be trained further: a run's workdir, or what tools.sample takes as --lora or
        # --controlnet. A run that is resumed ignores it.
        "init_from": Setting(""),
        "lora": {
            # What is added to a layer's weights is alpha/rank times the product of two matrices of that rank.
            "rank": Setting(16, within(1, 1 << 12)),
            "alpha": Setting(8.0, POSITIVE),
            # diffusers' names of the layers, or what those end with after a dot, with commas between them; "" is the
            # list of the reference's scripts: every linear layer and the patch embedding.
            "targets": Setting(""),
            # In place of them, a regular expression of whole names: r"transformer_blocks\.\d+\.attn1\..+".
            "pattern": Setting(""),
            # Other ranks and alphas of some layers, "REGEX=4,REGEX=8", each of whole names or what follows a dot.
            "rank_pattern": Setting(""),
            "alpha_pattern": Setting(""),
            # The factor is alpha/√rank.
            "rslora": Setting(False),
            # DoRA: the lengths of the adapted weights' rows are trained too.
            "dora": Setting(False),
            # Share of what goes into the first matrix that is set to 0.
            "dropout": Setting(0.0, DECAY_RATE),
            # Of the first matrix, one of adapters.lora.INITS; the second begins with zeros.
            "init": Setting("kaiming", one_of(*INITS)),
        },
        "controlnet": {
            # How many blocks are copied; the reference's 13 of 28.
            "num_copies": Setting(13, within(1, 1 << 10)),
        },
    },
    "data": {
        # Directories of feature shards, "DIR" or "DIR:WEIGHT,DIR:WEIGHT"; with `online`, one of pictures; or
        # "synthetic", random numbers of the model's shapes in every aspect ratio, to try a config or a machine.
        "source": Setting(""),
        # Encode pictures and captions (or labels) on the way, without tools.extract_features: for small sets. Each
        # visit costs the encoders' time, and every device holds a copy of both. Then `source` is what
        # tools.extract_features takes as --source, `data_dir` what it takes as --data-dir, and `resolution` one that
        # has buckets (256, 512, 1024, 2048, 2880, 4096). Ratios mix freely in the one compiled step; the autoencoder is
        # compiled once for each bucket, when its first picture comes.
        "online": Setting(False),
        "data_dir": Setting(""),
        # With `online`: what tools.extract_features takes as --caption-column and --image-column.
        "caption_column": Setting(""),
        "image_column": Setting(""),
        # DreamBooth's prior preservation: pictures of the subject's class, drawn by the model itself
        # (tools.class_pictures), or shards of them. They are half of every batch; `source` is the subject.
        "prior_source": Setting(""),
        # Distribution matching's pairs, shards of noises and what the teacher draws of them (tools.teacher_pairs). They
        # are half of every batch; of `source` the captions are read.
        "pair_source": Setting(""),
        # With `online` and a folder as `source`: the caption of pictures that have no text file beside them.
        "caption": Setting(""),
        # Directories that tools.convert wrote. The autoencoder also decodes the sample grids of shards that were made
        # with it, which are drawn in false colours otherwise; the text encoder also reads their `sample.prompts`.
        "vae": Setting(""),
        "text_encoder": Setting(""),
        # How `online` cleans captions: "none", "alpha" or "sigma".
        "caption_cleaning": Setting("none", one_of("none", "alpha", "sigma")),
        # With `online`, for a ControlNet: one of data.shards.manifest's CONTROLS, what tools.extract_features takes as
        # --control; and as --control-dir and --hed.
        "control": Setting("none", one_of("none", "given", "canny", "hed")),
        "control_dir": Setting(""),
        "hed": Setting(""),
        # Global: over all devices and processes.
        "batch_size": Setting(256, AT_LEAST_ONE),
        # Processes that read and assemble batches; 0 does it in threads of this one.
        "num_workers": Setting(0, NOT_NEGATIVE),
        # Share of captions (or labels) replaced by the null embedding, for guidance.
        "text_drop_prob": Setting(0.1, SHARE),
        # Global batches of one aspect ratio each, as the reference's are; else they mix them.
        "group_buckets": Setting(False),
    },
    "objective": {
        # What is descended: "denoising" predicts the noise; "consistency" distils the model of `init_from`, the frozen
        # teacher, into one that draws in 1 to 4 steps (sampler "lcm"): all of it is trained, or a LoRA;
        # "distribution_matching" into one that draws in a single step (sampler "dmd"), beside a second network that
        # learns the scores of what it draws (docs/adapting.md).
        "kind": Setting("denoising", one_of("denoising", *DISTILLED)),
        # The teacher's w in cond + w·(cond - null); samplers call 1 + w the guidance scale.
        "guidance": Setting(4.5, NOT_NEGATIVE),
        # Unless 0: w is drawn from `guidance` to this, and the student takes it as an input, so that its pictures have
        # any guidance scale from 1 + `guidance` to 1 + this (tools.sample --guidance-scale) at the price of none.
        "guidance_to": Setting(0.0, NOT_NEGATIVE),
        # In how many steps the teacher goes all the way: of consistency, each lands where the next prediction stands.
        "solver_steps": Setting(50, POSITIVE),
        # Of student and target, or of a pair's latents: "huber" is √(d² + c²) - c with c = huber_c, "l2" is d². "lpips"
        # is of a pair's pictures; the files of its weights are below (docs/adapting.md says where they are to be had).
        "distance": Setting("huber", one_of(*DISTANCES, "lpips")),
        "huber_c": Setting(0.001, POSITIVE),
        "lpips_vgg": Setting(""),
        "lpips_heads": Setting(""),
        # Distribution matching's own. Of the distance between what student and teacher draw of one noise, for which
        # data.pair_source has the teacher's; the learning rate of the score network, 0 being the student's; and its
        # updates for each of the student's.
        "regression_weight": Setting(0.25, NOT_NEGATIVE),
        "fake_learning_rate": Setting(0.0, NOT_NEGATIVE),
        "fake_updates": Setting(1, within(1, 1 << 10)),
    },
    "align": ALIGN,
    "average": AVERAGE,
    "diffusion": DIFFUSION,
    "optimizer": {
        # "adamw" (α), "came" (Σ, whose weight_decay is 0), or "muon" for the matrices of the blocks and AdamW for the
        # rest, with AdamW's learning rate and weight decay (optimizers.muon), or "schedule_free", AdamW that averages
        # in place of a schedule's decay (optimizers.schedule_free).
        "name": Setting("adamw", one_of(*OPTIMIZERS)),
        "learning_rate": Setting(2e-5, POSITIVE),
        # "none", or the reference's rules for the global batch B: "sqrt" (·√(B/256), on in all its configs but
        # DreamBooth's) or "linear" (·B/256). What is logged is the result.
        "lr_scaling": Setting("none", one_of(*LR_SCALINGS)),
        # After the warm-up, counted in optimizer steps: "constant"; "cosine", to zero at the end; or
        # "cosine_decay_to_constant", back to the rate before lr_scaling after two thirds; or "warmup_stable_decay",
        # constant, and to zero in the last `decay_share` of the steps.
        "schedule": Setting("constant", one_of(*SCHEDULES)),
        "decay_share": Setting(0.2, POSITIVE_SHARE),
        "warmup_steps": Setting(1000, NOT_NEGATIVE),
        "b1": Setting(0.9, DECAY_RATE),
        "b2": Setting(0.999, DECAY_RATE),
        # AdamW's alone; the reference's.
        "eps": Setting(1e-10, POSITIVE),
        # CAME's alone: decay rate of the instability, what is added to the squared gradient and to the instability, and
        # the largest root mean square of a tensor's update.
        "came": {
            "b3": Setting(0.9999, DECAY_RATE),
            "eps1": Setting(1e-30, POSITIVE),
            "eps2": Setting(1e-16, POSITIVE),
            "clip_threshold": Setting(1.0, POSITIVE),
        },
        # Muon's alone: the decay rate of the matrices' momentum.
        "muon": {"beta": Setting(0.95, DECAY_RATE)},
        "weight_decay": Setting(0.03, NOT_NEGATIVE),
        # Largest global gradient norm.
        "grad_clip": Setting(0.01, POSITIVE),
    },
    "train": {
        "num_steps": Setting(100_000, AT_LEAST_ONE),
        # Microbatches that one optimizer step is summed over.
        "accumulation_steps": Setting(1, AT_LEAST_ONE),
        "ema_decay": Setting(0.9999, SHARE),
        # The average's decay is min(ema_decay, (1 + step) / (10 + step)), an average over about the last ninth of the
        # steps so far: it follows in short runs too. False: ema_decay from the first step on, as in the reference. A
        # run keeps what it began with.
        "ema_warmup": Setting(True),
        # The optimizer's state lies in the hosts' memory, and comes to the devices for each update.
        "offload_optimizer": Setting(False),
        # Whether the loss has the learned variance's bound beside the error. The reference's LoRA scripts leave it out.
        "variance_loss": Setting(True),
        # The reference's `snr_loss`; no config it ships sets it.
        "snr_loss": Setting(False),
        # Weighs the noise's error by min(SNR, γ)/SNR, which spares the steps with hardly any noise, and that of other
        # predictions so that the picture's counts as much; 5 is usual, 0 is off. With data.prior_source the subject's.
        "min_snr_gamma": Setting(0.0, NOT_NEGATIVE),
        # EDM2's weights: at each noise level the error over what a small network, trained beside, expects of it there.
        "learned_weights": Setting(False),
        # Of the class's loss beside the subject's, with data.prior_source.
        "prior_weight": Setting(1.0, NOT_NEGATIVE),
        "log_every": Setting(100, AT_LEAST_ONE),
        # Where numbers and pictures are shown besides the workdir's own files, with commas between them: "tensorboard",
        # "wandb" and "mlflow" (docs/training.md#trackers).
        "trackers": Setting("tensorboard", some_of("tensorboard", "wandb", "mlflow")),
        "checkpoint_every": Setting(1000, AT_LEAST_ONE),
        # A copy of the workdir in a bucket, gs://BUCKET/RUN or s3://BUCKET/RUN, from which a workdir that is empty is
        # fetched first (docs/training.md#buckets).
        "mirror": Setting(""),
        # A checkpoint is written while training goes on. Seconds that a step may wait, to be saved, for the one before
        # to be complete; then it is not saved, unless it is the last, or a signal asks to stop.
        "checkpoint_wait": Setting(60, NOT_NEGATIVE),
        # The newest ones. With 1 there is none to go back to from one that the disk has damaged.
        "keep_checkpoints": Setting(2, AT_LEAST_ONE),
        # Seconds that a step, a save, an evaluation or a sample grid may take before the run is taken to hang: it then
        # writes the stacks of its threads and exits with status 75, to be started again. 0: never. What may compile has
        # an hour at least: the first steps and looks, and all steps with `data.online`.
        "hang_timeout": Setting(1800, NOT_NEGATIVE),
    },
    "mesh": {
        # Devices along each axis; their product is the number of devices, and -1 is what the others leave. "data"
        # splits the batch, and goes over the slow links between slices.
        "data": Setting(-1, Range(lambda value: value == -1 or value >= 1, "must be at least 1, or -1 for the rest")),
        # Splits parameters, EMA and optimizer state, and the batch like "data".
        "fsdp": Setting(1, AT_LEAST_ONE),
        # Splits attention's heads and the MLPs: for parameters or batches too small for so many devices.
        "tensor": Setting(1, AT_LEAST_ONE),
        # Splits each image's tokens: for 2K and 4K, where one image is a device's worth of work.
        "context": Setting(1, AT_LEAST_ONE),
    },
    "sample": {
        # Steps between sample grids; 0 draws none.
        "every": Setting(5000, NOT_NEGATIVE),
        # What they show: prompts, one a line, or the name of a text file of them that ends in .txt; "" draws
        # `num_images` captions of the training data, each beside its picture. For shards with features of T5,
        # `data.text_encoder` must name it.
        "prompts": Setting(""),
        "num_images": Setting(16, AT_LEAST_ONE),
        "sampler": Setting("dpm-solver", one_of(*SAMPLERS)),
        "num_steps": Setting(20, AT_LEAST_ONE),
        "guidance_scale": Setting(4.5),
        # "" is the sampler's own; "path_drop", with model.route.form=sprint, leads away from what the model without the
        # route's blocks predicts of the null caption (models.path_drop, docs/cheap.md).
        "guidance": Setting("", one_of("", DROPPED_PATH)),
        # Captions that the end of the run measures retrieval@1 over, for data sets small enough to know by heart; 0
        # skips it.
        "retrieval_captions": Setting(0, NOT_NEGATIVE),
    },
    "eval": {
        # Directories of held-out feature shards, "DIR" or "DIR,DIR", made with the encoders of the training data; ""
        # evaluates nothing.
        "source": Setting(""),
        # Steps between evaluations; the first and the last step have one too.
        "every": Setting(5000, AT_LEAST_ONE),
        # Pictures, spread evenly over the source.
        "num_samples": Setting(1024, AT_LEAST_ONE),
        # Model timesteps, 0 (hardly any noise) to 999: a curve each.
        "timesteps": Setting("50,150,250,350,450,550,650,750,850,950", RISING_TIMESTEPS),
        # Of the noise, and apart from the run's, so that runs compare.
        "seed": Setting(0, SEED),
        # Metrics of pictures that the run draws, each with a curve: "frechet_distance" and "kid", distances from a
        # reference between the features of `network`, which are called FID and KID where that is FID's; and
        # "clip_score", how well `clip` finds that pictures fit their captions.
        "metrics": Setting("", some_of("frechet_distance", "kid", "clip_score")),
        # Steps between them; the first and the last step have them too.
        "metrics_every": Setting(5000, AT_LEAST_ONE),
        # Captions of the training data, spread evenly, that they draw. Figures of different numbers do not compare.
        "num_pictures": Setting(1024, within(2, 2**31 - 1)),
        # "fid-inception", which takes pictures as clean-fid does, or "efficientnet-lite0"; and the file of its weights.
        "network": Setting("fid-inception", one_of("fid-inception", "efficientnet-lite0")),
        "network_weights": Setting(""),
        # The folder of a CLIP, as transformers saves it or tools.convert wrote it.
        "clip": Setting(""),
        # A .npz of mean and covariance, as tools.evaluate --statistics writes it; "" takes the training data's own
        # pictures, up to `reference_pictures` of them, as their autoencoder gives them back.
        "reference": Setting(""),
        "reference_pictures": Setting(10_000, within(2, 2**31 - 1)),
    },
}


def default_config() -> ConfigDict:
    """All keys and their defaults; locked, so that a misspelt key is an error."""
    config = ConfigDict(_defaults(SETTINGS))
    config.lock()
    return config


def _defaults(section: dict[str, Any]) -> dict[str, Any]:
    return {key: _defaults(inner) if isinstance(inner, dict) else inner.default for key, inner in section.items()}
