"""A vision-language model of transformers with its weights and its processor, and the prompts for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.data import open_image
from tokenzoo.evaluation.prompts import Prompt
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.tools.transformers_loading import is_folder, is_multimodal

Inputs = Mapping[str, Any]
"""Arguments of a call, as a processor returns them."""


@dataclass(frozen=True, eq=False)
class VisionLanguageModel:
    """A model that answers prompts about images and videos.

    Attributes:
        model: bare, in eval mode.
        processor: writes its prompts.
    """

    model: Any
    processor: Any

    def inputs(self, prompt: Prompt) -> Inputs:
        """Return the arguments of a call: tensors on the CPU, floats as the model's; a batch of one.

        The image comes first. The processor's chat template writes the conversation; without one the prompt
        follows the placeholder of the image as it is. The frames of a video are one video, or several
        images where the processor takes no videos.

        Raises:
            BadArgumentError: an image cannot be read, or the prompt has a placeholder of its own.
        """
        for token in (self._token("image"), self._token("video")):
            if token and token in prompt.text:
                raise BadArgumentError(
                    f"the prompt {quote(prompt.text)} has the placeholder {token}; leave it out: the image "
                    "comes before the prompt"
                )
        images = [open_image(one, one) for one in prompt.frames or [prompt.image]]
        try:
            given = self._written(images, prompt.text, video=bool(prompt.frames) and self._videos)
        except ValueError as error:  # an image that is too narrow, for example
            raise BadArgumentError(
                f"{type(self.processor).__name__} takes no prompt about {prompt.image}: {error}"
            ) from error
        # PaliGemma's processor returns labels, too: there are no targets here.
        without = {name: value for name, value in given.items() if name != "labels"}
        return moved(without, dtype=self.model.dtype)

    def frames(self, asked: Sequence[Prompt]) -> int | None:
        """Return how many images of a call are the frames of its video, for `Method.attach`.

        Returns:
            None: the prompts are about images, or the model says itself what is a video.

        Raises:
            BadArgumentError: the model takes frames as images, and not all prompts have as many.
        """
        counts = sorted({len(one.frames) for one in asked})
        try:
            find_adapter(self.model).with_frames(max(counts[-1], 1))
        except BadArgumentError:
            return None
        if len(counts) > 1:
            raise BadArgumentError(
                f"prompts about {', '.join(map(str, counts))} frames (0: an image), and "
                f"{type(self.model).__name__} takes frames as images, so that a video is a fixed number of "
                "them: write the same number of frames in each line"
            )
        return counts[0] or None

    @property
    def _videos(self) -> bool:
        return getattr(self.processor, "video_processor", None) is not None

    def _token(self, kind: str) -> str:
        return str(getattr(self.processor, f"{kind}_token", None) or "")

    def _written(self, images: Sequence[Any], text: str, *, video: bool) -> Any:
        if not getattr(self.processor, "chat_template", None):
            if video:
                words, seen = self._token("video"), {"videos": [images]}
            else:
                words, seen = self._token("image") * len(images), {"images": images}
            return self.processor(**seen, text=[words + text], return_tensors="pt")
        shown = [{"type": "image", "image": one} for one in images]
        if video:
            shown = [{"type": "video", "video": images}]
        content = [*shown, {"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [[{"role": "user", "content": content}]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


def moved(
    given: Inputs, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Return the arguments of a call with their tensors moved to a device, and their floats to a dtype."""
    found = dict(given)
    for name, value in given.items():
        if isinstance(value, Tensor):
            found[name] = value.to(
                device=device, dtype=dtype if value.is_floating_point() else None
            )
    return found


def load(name: str, device: str = "cpu") -> VisionLanguageModel:
    """Load a checkpoint with its weights, in its own dtype, and its processor.

    Args:
        name: the checkpoint's folder, or its name on the hub ("llava-hf/llava-1.5-7b-hf").
        device: of torch, or "auto" to spread the model over all GPUs.

    Raises:
        BadArgumentError: it is not a model that reads images and text, or transformers cannot load it.
        UnsupportedModelError: no adapter supports it.
        MissingDependencyError: transformers is not installed.
    """
    # No hub name of a vision-language model has no owner, and a model of timm must not be looked up there.
    if not is_folder(name) and ("/" not in name or Path(name).is_dir()):
        raise BadArgumentError(
            f"prompts with the model {quote(name)}; they need a vision-language model of transformers, as "
            "the folder of its checkpoint or its name on the hub (llava-hf/llava-1.5-7b-hf). A vision "
            "model is tuned without --prompts"
        )
    library = need("transformers", "eval")
    try:
        config = library.AutoConfig.from_pretrained(name)
        if not is_multimodal(config):
            raise BadArgumentError(
                f"prompts with the model {quote(name)}, a {config.model_type}, which does not read images "
                "and text: leave --prompts out, or name a vision-language model"
            )
        processor = library.AutoProcessor.from_pretrained(name)
        spread = {"device_map": "auto"} if device == "auto" else {}
        kind = library.AutoModelForImageTextToText
        model = kind.from_pretrained(name, dtype="auto", **spread).eval()
    except BadArgumentError:
        raise
    except (ImportError, OSError, ValueError) as error:
        raise BadArgumentError(f"transformers cannot load {quote(name, 200)}: {error}") from error
    find_adapter(model)  # an unsupported model is an error now, not after its prompts
    if not spread:
        model.to(device)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return VisionLanguageModel(model, processor)
