"""CLIPs of transformers with random weights, large enough that no layer hides behind its residual."""

import math

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

# Odd on purpose: towers that differ in everything, and an epsilon large enough to matter.
TINY = CLIPConfig(
    projection_dim=7,
    vision_config={
        "hidden_size": 20,
        "intermediate_size": 28,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "image_size": 23,
        "patch_size": 6,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-3,
        "projection_dim": 7,
    },
    text_config={
        "hidden_size": 18,
        "intermediate_size": 30,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 11,
        "vocab_size": 41,
        "eos_token_id": 37,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-2,
        "projection_dim": 7,
    },
)
KINDS = {
    "clip": (CLIPModel, TINY),
    "clip_vision_model": (CLIPVisionModelWithProjection, TINY.vision_config),
    "clip_text_model": (CLIPTextModelWithProjection, TINY.text_config),
}


def reference_clip(config=TINY, kind=CLIPModel):
    """PyTorch's model; matrices of std 1.5/√inputs, so that attention is not uniform."""
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if "norm" in name or "layrnorm" in name:
                weight.copy_((1 if name.endswith("weight") else 0) + 0.3 * drawn)
            elif "embedding" in name or weight.ndim < 2:
                weight.copy_(drawn if "embedding" in name else 0.3 * drawn)
            else:
                weight.copy_(drawn * 1.5 / math.sqrt(weight[0].numel()))
    return model
