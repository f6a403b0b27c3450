"""The gallery's three packages with a handful of pictures and a MiniLM of random weights."""

import io
import json
import pathlib
import tarfile
import zipfile

import numpy as np
import safetensors.torch
import tokenizers
import torch
import transformers
from PIL import Image

from tools.fluent_emoji import CAPTIONS, EMOJI, MINILM

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
WORDS = (
    *("waving", "hand", ":", "light", "medium", "-", "dark", "skin", "tone", "dog", "face", "thumbs", "up"),
    *("rocket", "puppy", "of", "spain", "flag"),
)


def write_packages(folder: pathlib.Path, asset_suffix: str = "-fe0f") -> None:
    """A dog (of which the puppy is a synonym), a rocket, two hands in all tones, a couple of two tones, and a flag."""
    folder.mkdir()
    entries = [
        {"label": "dog face", "hexcode": "1F436", "order": 1, "group": 3},
        {"label": "rocket", "hexcode": "1F680-FE0F", "order": 2, "group": 5},
        {"label": "flag of spain", "hexcode": "1F1EA", "order": 3, "group": 9},
        {"label": "letter", "hexcode": "1F1E6"},
    ]
    for order, (name, code) in enumerate((("waving hand", "1F44B"), ("thumbs up", "1F44D")), start=4):
        skins = [
            {"label": f"{name}: {tone} skin tone", "hexcode": f"{code}-1F3F{'BCDEF'[i]}", "tone": i + 1}
            for i, tone in enumerate(TONES)
        ]
        skins.append({"label": "two of them", "hexcode": f"{code}-200D", "tone": [1, 2]})
        entries.append({"label": name, "hexcode": code, "order": order, "group": 1, "skins": skins})
    codes = [entry["hexcode"] for entry in entries] + [s["hexcode"] for e in entries for s in e.get("skins", ())]
    assets = {f"package/assets/{code.lower().replace('-fe0f', asset_suffix)}.webp": picture(code) for code in codes}
    write_tar(folder / EMOJI.file, {"package/README.md": b"emoji", **assets})
    write_tar(folder / CAPTIONS.file, {"package/en/data.json": json.dumps(entries).encode()})
    with zipfile.ZipFile(folder / MINILM.file, "w") as wheel:
        wheel.writestr("all_minilm_l6_v2/model.zip", model_zip())


def write_tar(path: pathlib.Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def picture(code: str) -> bytes:
    """A webp: noise that the code points seed, clear on the left half."""
    pixels = np.random.default_rng(list(code.encode())).integers(0, 255, (64, 64, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:, :32, 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "webp", lossless=True)
    return file.getvalue()


def tokenizer() -> tokenizers.Tokenizer:
    """BERT's kind, padding as the published one does."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(length=12)
    return made


def bert() -> transformers.BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96, "num_hidden_layers": 2}
    model = transformers.BertModel(
        transformers.BertConfig(vocab_size=30, max_position_embeddings=20, initializer_range=0.2, **sizes)
    )
    return model.eval()


def model_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as model:
        model.writestr("tokenizer.json", tokenizer().to_str())
        model.writestr("model.safetensors", safetensors.torch.save(bert().state_dict()))
    return file.getvalue()
