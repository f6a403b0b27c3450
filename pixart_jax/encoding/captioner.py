"""Pictures to text by transformers' vision-language models, in PyTorch: LLaVA, Qwen-VL, PaliGemma and their like."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from PIL import Image

from pixart_jax.errors import InputError

# How models without a chat template are spoken to, by transformers' name of their kind. Of LLaVA 1.5's repository only
# early copies have none.
_WITHOUT_TEMPLATE = {
    "paligemma": "<image>{request}",
    "llava": "USER: <image>\n{request} ASSISTANT:",
}
DTYPES = ("float32", "bfloat16", "float16")
# Of each parameter so many numbers are looked at, to tell one model from another.
_PROBED = 16


class Answer(NamedTuple):
    """What a model says of a picture.

    Attributes:
      text: without white space around it, possibly "".
      is_cut: it had more to say than it was allowed tokens.
    """

    text: str
    is_cut: bool


class Captioner:
    """A vision-language model that answers requests about pictures, always taking the likeliest token.

    An answer depends on its picture and its request alone: shorter prompts of a batch are padded on the left, the
    padding is masked, and what a repository says of penalties is left out, as these count the padding too. In bfloat16
    rounding may still tip the scales between two tokens that are equally likely.

    Args:
      model: a folder, or a repository of the Hugging Face hub.
      device: as PyTorch names it; "auto" spreads the model over all GPUs (this needs accelerate); None for the GPU
        where there is one.
      dtype: of DTYPES; None for bfloat16, or float32 on a CPU.
      max_new_tokens: after which an answer is cut.

    Attributes:
      fingerprint: hex digest that tells one model's weights from another's.
      dtype: what `dtype` came to.

    Raises:
      InputError: PyTorch is not installed; there is no such model; it is not one that turns pictures into text, or is
        not whole.
    """

    def __init__(self, model: str, *, device: str | None = None, dtype: str | None = None, max_new_tokens: int = 512):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise InputError(f"captioning needs PyTorch ({error}): pip install torch torchvision accelerate") from error
        self._torch = torch
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        where = _folder_or_name(model)
        with _named_errors(model):
            config = transformers.AutoConfig.from_pretrained(where)
        if type(config) not in transformers.AutoModelForImageTextToText._model_mapping:
            raise InputError(
                f"{model} is a {config.model_type}, which does not turn pictures into text; name a vision-language "
                "model, such as llava-hf/llava-1.5-7b-hf"
            )
        with _named_errors(model, is_processor=True):
            self._processor = transformers.AutoProcessor.from_pretrained(where)
        self._form = self._form_of(model, config.model_type)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device != "auto":
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError) as error:  # The latter where PyTorch has no CUDA.
                raise InputError(
                    f"--device {device}: {str(error).splitlines()[0]}; leave it out to take what there is"
                ) from error
        self.dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        with _named_errors(model):
            self._model, loaded = transformers.AutoModelForImageTextToText.from_pretrained(
                where,
                dtype=getattr(torch, self.dtype),
                device_map="auto" if device == "auto" else None,
                output_loading_info=True,
            )
            if device != "auto":
                self._model.to(device)
        if missing := sorted(loaded["missing_keys"]):
            raise InputError(
                f"{model} lacks {len(missing)} of the model's arrays, such as {missing[0]}: copy it again, or name "
                "another"
            )
        self._model.eval()
        self._tokenizer = self._processor.tokenizer
        self._tokenizer.padding_side = "left"
        ends = self._model.generation_config.eos_token_id
        ends = self._tokenizer.eos_token_id if ends is None else ends
        self._ends = {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        # In place of the repository's, whose fields would hold wherever ours are not given.
        self._model.generation_config = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        self._marks = self._control_marks()
        self.fingerprint = self._fingerprint()

    def answers(self, pictures: Sequence[Image.Image], requests: Sequence[str]) -> list[Answer]:
        """What the model says of each picture, of mode RGB, when it gets its request.

        Raises:
          InputError: they do not fit on the device at a time.
        """
        torch = self._torch
        prompts = [self._prompt(request) for request in requests]
        begin = self._tokenizer.bos_token
        inputs = self._processor(
            text=prompts,
            images=[[picture] for picture in pictures],
            padding=True,
            return_tensors="pt",
            # Templates that write the first token themselves would get a second one.
            add_special_tokens=not (begin and prompts[0].startswith(begin)),
        )
        inputs = inputs.to(self._model.device, dtype=self._model.dtype)
        try:
            with torch.inference_mode():
                tokens = self._model.generate(**inputs)[:, inputs["input_ids"].shape[1] :].tolist()
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{len(pictures)} pictures do not fit on the device at a time: a smaller --batch-size, --picture-side "
                "or --max-new-tokens, and the same command goes on"
            ) from error
        return [
            Answer(self._tokenizer.decode(row, skip_special_tokens=True).strip(), self._ends.isdisjoint(row))
            for row in tokens
        ]

    def _prompt(self, request: str) -> str:
        """The whole prompt, with the place of the picture marked."""
        # What stands for a picture, or for the end of a turn, may not come from a caption.
        for mark in self._marks:
            request = request.replace(mark, " ")
        if self._form is not None:
            return self._form.format(request=request)
        content = [{"type": "image"}, {"type": "text", "text": request}]
        return self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _form_of(self, model: str, kind: str) -> str | None:
        """The prompt of a model that has no chat template; None of one that has."""
        if not hasattr(self._processor, "image_processor") or not hasattr(self._processor, "tokenizer"):
            raise InputError(f"{model} has no processor of pictures and text: copy its preprocessor_config.json too")
        if self._processor.chat_template or self._processor.tokenizer.chat_template:
            return None
        if kind not in _WITHOUT_TEMPLATE:
            raise InputError(
                f"{model} has no chat template, and it is not known how a {kind} is asked; copy its "
                "chat_template.jinja too, or name another model"
            )
        return _WITHOUT_TEMPLATE[kind]

    def _control_marks(self) -> list[str]:
        """Tokens that mean something else than their letters; the longest first."""
        added = self._tokenizer.added_tokens_decoder.values()
        marks = {token.content for token in added if token.special} | set(self._tokenizer.all_special_tokens)
        marks |= {str(getattr(self._processor, f"{kind}_token", "") or "") for kind in ("image", "video", "boi", "eoi")}
        return sorted((mark for mark in marks if mark.strip()), key=lambda mark: (-len(mark), mark))

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self._model.named_parameters()):
            flat = value.detach().reshape(-1)
            ends = self._torch.cat([flat[:_PROBED], flat[-_PROBED:]]).float().cpu().numpy()
            digest.update(f"{name}{tuple(value.shape)}".encode() + ends.tobytes())
        return digest.hexdigest()


def _folder_or_name(model: str) -> str | pathlib.Path:
    """A folder that is there, or what may be a repository's name."""
    folder = pathlib.Path(os.path.expanduser(model))
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model):
        raise InputError(f"{model}: there is no such folder, and no repository has such a name")
    return model


@contextlib.contextmanager
def _named_errors(model: str, is_processor: bool = False) -> Iterator[None]:
    """Errors of opening a model as InputError; transformers, its tokenizers and safetensors have some ten kinds."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        first: Any = next(iter(str(error).strip().splitlines()), type(error).__name__)
        is_folder = os.path.isdir(os.path.expanduser(model))
        hint = "" if is_folder else "; name a folder, or a repository where there is a network"
        if is_processor and importlib.util.find_spec("torchvision") is None:
            hint += "; some models need torchvision, which is not here: pip install torchvision"
        raise InputError(f"{model} cannot be opened: {first:.300}{hint}") from error
