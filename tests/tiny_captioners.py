"""Vision-language models small enough for a test: the real classes, with random weights and tokenizers made here."""

import pathlib

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# As in the repository of the real one.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|im_end|>"]
IMAGE = SPECIAL.index("<image>")


def make_tokenizer(**names) -> transformers.PreTrainedTokenizerFast:
    """Of single bytes, so that any text is known."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=SPECIAL[3:], **names,
    )  # fmt: skip


def make_llava(folder: pathlib.Path, *, template: str | None = LLAVA_TEMPLATE) -> None:
    """LLaVA 1.5: CLIP's vision tower before Llama."""
    tokenizer, text, vision = make_tokenizer(), *parts()
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    save(transformers.LlavaForConditionalGeneration, config, processor, folder)


def make_llava_next(folder: pathlib.Path) -> None:
    """LLaVA 1.6: a picture is cut into as many tiles as its shape wants."""
    tokenizer, text, vision = make_tokenizer(), *parts()
    shapes = [[32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaNextConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE, image_grid_pinpoints=shapes
    )
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=shapes
    )
    processor = transformers.LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    save(transformers.LlavaNextForConditionalGeneration, config, processor, folder)


def parts() -> tuple[transformers.LlamaConfig, transformers.CLIPVisionConfig]:
    text = {
        "vocab_size": len(make_tokenizer()), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "projection_dim": 16,
    }  # fmt: skip
    return transformers.LlamaConfig(**text), transformers.CLIPVisionConfig(**vision)


def make_paligemma(folder: pathlib.Path) -> None:
    """SigLIP before Gemma, which sees the prompt in both directions; it has no chat template."""
    tokenizer = make_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **text},
        vision_config={"model_type": "siglip_vision_model", **vision},
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    images = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    save(transformers.PaliGemmaForConditionalGeneration, config, processor, folder)


def save(kind, config, processor, folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            # Large enough that answers depend on the picture and on every word of the request.
            if value.ndim > 1:
                value.normal_(0, 2 * value.shape[-1] ** -0.5)
            elif "norm" not in name:
                value.normal_(0, 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
