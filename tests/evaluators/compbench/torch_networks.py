"""Folders of tiny random networks of the real architectures, as transformers writes them."""

import pathlib

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
)

WORDS = ["yes", "no", "a", "the", "red", "blue", "green", "cat", "dog", "sofa", "hat", "on", "of", "top", "near", "?"]
LABELS = ["Cat", "dog", "sofa", "person", "hat"]


def make_blip(folder: pathlib.Path, *, image_size: int = 480, of=BlipForQuestionAnswering) -> pathlib.Path:
    """Patches of 120 pixels; answers far from a half."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokens) + 2, "bos_token_id": len(tokens), "pad_token_id": 0, "sep_token_id": 3,
        "encoder_hidden_size": 16, "max_position_embeddings": 64, "initializer_range": 0.5,
    }  # fmt: skip
    vision = {"image_size": image_size, "patch_size": 120, "initializer_range": 0.2}
    torch.manual_seed(0)
    model = of(BlipConfig(text_config=sizes | text, vision_config=sizes | vision))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_detr(folder: pathlib.Path, seed: int = 1) -> pathlib.Path:
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = DetrConfig(
        backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6, init_std=1.0,
        id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = DetrForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.weight.mul_(20)
    model.save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder
