"""Small checkpoints of random weights for a server, and what they answer in transformers with a recipe."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.evaluation.lmms import checkpoints

_TEXT = {
    "hidden_size": 128,
    "num_key_value_heads": 4,
}  # heads of 32 channels, which every kernel takes
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
_PACKED = {**_TEXT, "rope_parameters": _ROPE}

KINDS = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")


def made(kind: str) -> tuple[Any, Any]:
    """A model of this kind and its processor."""
    if kind.startswith("llava"):
        model = getattr(hf, kind)(vision={"hidden_size": 64}, text=_TEXT)
        return model, hf.processor(model)
    width = {"hidden_size": 128} if kind == "qwen2_vl" else {"out_hidden_size": 128}
    vision = {"embed_dim": 64} if kind == "qwen2_vl" else {"hidden_size": 64}
    model = getattr(qwen, kind)(vision={**vision, **width}, text=_PACKED)
    return model, qwen.processor(kind)


@dataclass(frozen=True)
class Question:
    """A question about images."""

    text: str
    images: tuple[Image.Image, ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As the protocol of OpenAI has it."""
        shown = [{"type": "image_url", "image_url": {"url": _url(one)}} for one in self.images]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": self.text}]}]


@dataclass(frozen=True)
class Answer:
    """An answer: its tokens as words, their log-probabilities, and the tokens of the prompt."""

    words: tuple[str, ...]
    logprobs: tuple[float, ...]
    prompt: int


LENGTH = 6

CHAT = "<s> " + checkpoints.CHAT.replace("<{{ part.type }}>", "see <{{ part.type }}> .")
"""With the first token, since vLLM adds none to a conversation, and Qwen's words around an image."""


class Reference:
    """A checkpoint in a folder, and the recipe on it in transformers."""

    def __init__(self, kind: str, recipe: Any, folder: Path) -> None:
        self.model, self.processor = made(kind)
        self.model.generation_config.eos_token_id = None
        self.folder = str(folder)
        self.processor.chat_template = CHAT
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.attached = recipe.attach(self.model)

    def answer(self, question: Question) -> Answer:
        """Answer by `generate`."""
        inputs = self.processor.apply_chat_template(
            checkpoints.conversation(question.text, *question.images),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            output = self.model.generate(
                **inputs,
                max_new_tokens=LENGTH,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids = output.sequences[0, inputs["input_ids"].shape[1] :]  # [LENGTH]
        steps = torch.cat(output.logits).log_softmax(-1)  # [LENGTH, words]
        chosen = steps.gather(1, ids[:, None])[:, 0]
        short = self.attached.shorten(inputs)["input_ids"].shape[1]
        words = tuple(self.processor.tokenizer.decode([one]).strip() for one in ids.tolist())
        return Answer(words, tuple(chosen.tolist()), short)


def questions() -> list[Question]:
    """Of one image, of the same again, of two, and of none."""
    temple, flower, tall, wide, *_ = hf.photos()
    return [
        Question("what is in the picture ?", (flower,)),
        Question("what is in the picture ? many more", (flower,)),
        Question("is the second like the first ?", (tall, wide)),
        Question("what colour has the sky ?"),
        Question("describe the temple", (temple,)),
    ]


def recipe(name: str, **options: Any) -> Any:
    """The method of this name."""
    return tokenzoo.build(name, **options)


def _url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
