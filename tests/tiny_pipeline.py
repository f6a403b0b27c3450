"""Whole diffusers pipelines of PixArt small enough for a test: every part is the real class, its weights are random."""

import json
import pathlib

import torch
from conversion.test_diffusers import make_transformer
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline
from models.t5_cases import reference_model
from models.vae_cases import make_reference
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import T5Config, T5Tokenizer

from tools import convert

PIPELINES = {"alpha": PixArtAlphaPipeline, "sigma": PixArtSigmaPipeline}
SCALES = {"alpha": 0.18215, "sigma": 0.13025}
TEXT_DIM = 20

WORDS = ["a red cat on a mat", "a blue dog in the fog", "small green circle", "the quick brown fox, jumped over it."]


def make_tokenizer() -> T5Tokenizer:
    """T5's, with a vocabulary of its own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(WORDS * 5, trainer)
    vocabulary = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def make_pipeline(family: str, **transformer) -> PixArtAlphaPipeline | PixArtSigmaPipeline:
    """A pipeline whose autoencoder halves three times, as the real ones do."""
    tokenizer = make_tokenizer()
    t5 = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_DIM,
        d_kv=6,
        num_heads=3,
        d_ff=28,
        num_layers=2,
        feed_forward_proj="gated-gelu",
    )
    fields = {
        "block_out_channels": [4, 4, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "scaling_factor": SCALES[family],
        "sample_size": 256,
    }
    config = {
        "num_attention_heads": 3,
        "attention_head_dim": 12,
        "num_layers": 2,
        "cross_attention_dim": 36,
        "caption_channels": TEXT_DIM,
        "use_additional_conditions": False,
        "interpolation_scale": 1,
    }
    vae = make_reference(AutoencoderKL.from_config(fields).config)
    with torch.no_grad():
        # So that pictures have contrast, and hardly a pixel is clipped.
        vae.decoder.conv_out.weight.mul_(0.5)
        vae.decoder.conv_out.bias.zero_()
    pipeline = PIPELINES[family](
        tokenizer=tokenizer,
        text_encoder=reference_model(t5),
        vae=vae,
        transformer=make_transformer(**config | transformer),
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_sigma(folder: pathlib.Path) -> None:
    """FOLDER/weights, converted from the Σ in FOLDER/pipeline."""
    pipeline = save(make_pipeline("sigma", sample_size=32, interpolation_scale=0.5), folder / "pipeline")
    assert convert.main([str(pipeline), str(folder / "weights")]) == 0


def save(pipeline, folder: pathlib.Path) -> pathlib.Path:
    """The folder, as diffusers writes it."""
    pipeline.save_pretrained(folder)
    return folder
