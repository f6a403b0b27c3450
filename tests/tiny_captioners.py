"""Vision-language models small enough for a test: the real classes, with random weights and tokenizers made here."""

import pathlib

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# As in the repositories of the real ones.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|image_pad|>", "<|video_pad|>"]  # fmt: skip


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
    """CLIP's vision tower before Llama."""
    tokenizer = make_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "projection_dim": 16,
    }  # fmt: skip
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.CLIPVisionConfig(**vision),
        image_token_index=SPECIAL.index("<image>"),
    )
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    save(transformers.LlavaForConditionalGeneration, config, processor, folder)


def make_qwen(folder: pathlib.Path) -> None:
    """Qwen2-VL: pictures of any size, positions in three dimensions."""
    tokenizer = make_tokenizer()
    names = {name: SPECIAL.index(f"<|{name.removesuffix('_token_id')}|>") for name in (
        "vision_start_token_id", "vision_end_token_id")}  # fmt: skip
    config = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": SPECIAL.index("<|im_end|>"),
            "rope_parameters": {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8},
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        **names,
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64})
    processor = transformers.Qwen2VLProcessor(images, tokenizer, chat_template=QWEN_TEMPLATE)
    save(transformers.Qwen2VLForConditionalGeneration, config, processor, folder)


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
        image_token_index=SPECIAL.index("<image>"),
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
