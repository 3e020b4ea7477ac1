"""What a processor of transformers returns for prompts, with the images and videos of all in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def processed(
    processor: Any,
    prompts: str | Sequence[str],
    images: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    **options: Any,
) -> Any:
    """Padded tensors. Without images or videos the processor is given no list of them."""
    given = {"images": list(images or ()), "videos": list(videos or ())}
    given = {name: some for name, some in given.items() if some}
    text = [prompts] if isinstance(prompts, str) else list(prompts)
    return processor(text=text, padding=True, return_tensors="pt", **given, **options)
