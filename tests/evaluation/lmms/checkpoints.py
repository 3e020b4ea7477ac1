"""Small checkpoints in a folder, of random weights, whose processors write conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.adapters.hf import models as hf

CHAT = (
    "{% for message in messages %}{{ message.role }} : {% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}> {% endif %}"
    "{% endfor %}{% endfor %}"
)


def save(folder: Path, model: Any, processor: Any | None = None) -> str:
    """Write a model and its processor; returns the folder's path."""
    processor = hf.processor(model) if processor is None else processor
    processor.chat_template = CHAT
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def conversation(text: str, *images: Any) -> list[dict[str, Any]]:
    """A question about images, as a processor of transformers takes it."""
    shown: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
