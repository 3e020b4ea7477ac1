"""A vision-language model of transformers that answers conversations, and counts its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.lmms.arguments import ModelArguments
from tokenzoo.hooks.attach import check_fit, find_adapter
from tokenzoo.hooks.handle import Attached
from tokenzoo.tools.transformers_loading import placeholders
from tokenzoo.zoo import Method

Conversation = list[dict[str, Any]]
"""Messages as processors of transformers take them: role, and content in parts (text, image, video)."""

EDGES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Names of the limits of an image's pixels in the `size` of a processor."""


@dataclass(frozen=True)
class Answer:
    """An answer, and the tokens that it took.

    Attributes:
        text: without special tokens.
        prompt: tokens of the prompt that the language model reads, without padding.
        visual: visual tokens among them.
        whole: visual tokens of the bare model's prompt.
        last: visual tokens that the last layers of the language model read.
        generated: tokens of the answer, the end included.
    """

    text: str
    prompt: int
    visual: int
    whole: int
    last: int
    generated: int


@dataclass(frozen=True, eq=False)
class ChatModel:
    """A model with a recipe attached, or a bare one.

    Attributes:
        model: in eval mode.
        processor: writes its prompts, padded on the left.
        attached: the recipe; None: the model is bare.
        frames: sampled from a video; None: the processor's default.
    """

    model: Any
    processor: Any
    attached: Attached | None
    frames: int | None = None

    def answer(
        self, conversations: Sequence[Conversation], options: Mapping[str, Any]
    ) -> list[Answer]:
        """Answer a batch of conversations.

        Args:
            conversations: each with the same role last, the user's.
            options: of `generate`.
        """
        inputs = self._inputs(conversations)
        short = inputs if self.attached is None else self.attached.shorten(inputs)
        ids = inputs["input_ids"]  # [b, n]
        with torch.inference_mode():
            output = self.model.generate(**inputs, **options)[:, ids.shape[1] :].tolist()
        visual, whole = self._visual(short["input_ids"]), self._visual(ids)
        prompts = short["attention_mask"].sum(1).tolist()
        last = self._last_layers(visual)
        generated = [self._until_end(row) for row in output]
        texts = self.processor.batch_decode(generated, skip_special_tokens=True)
        counts = zip(texts, prompts, visual, whole, last, map(len, generated), strict=True)
        return [Answer(text.strip(), *numbers) for text, *numbers in counts]

    def _inputs(self, conversations: Sequence[Conversation]) -> Any:
        given: dict[str, Any] = {"padding": True}
        parts = [part for one in conversations for message in one for part in message["content"]]
        if self.frames is not None and any(part["type"] == "video" for part in parts):
            given["num_frames"] = self.frames
        inputs = self.processor.apply_chat_template(
            [*conversations],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=given,
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _visual(self, ids: Tensor) -> list[int]:
        """Count the visual tokens of each prompt, `[b, n]`."""
        tokens = [token for token in placeholders(self.model.config) if token]
        counts: Any = torch.isin(ids, torch.tensor(tokens, device=ids.device)).sum(1)  # [b]
        return counts.tolist()

    def _last_layers(self, visual: list[int]) -> list[int]:
        """Return the visual tokens of each prompt that the last layers read.

        Args:
            visual: those that the first layer reads.
        """
        attached = self.attached
        if attached is None or not any(step.stage.name == "llm" for step in attached.recipe.steps):
            return visual
        if not any(visual):  # nothing was reduced, and there is no count
            return visual
        beams = len(attached.prompts) // len(visual)
        return list(attached.prompts[::beams])

    def _until_end(self, row: list[int]) -> list[int]:
        """Cut an answer after its end, where the padding of a batch begins."""
        end = self.model.generation_config.eos_token_id
        ends = {end} if end is None or isinstance(end, int) else set(end)
        place = next((i for i, token in enumerate(row) if token in ends), len(row))
        return row[: place + 1]


def load(given: ModelArguments) -> ChatModel:
    """Load a model and its processor, and attach the recipe.

    Whether the recipe fits the model is found out from its configuration, before the weights are loaded.

    Raises:
        BadArgumentError: transformers cannot load it, or its processor has no chat template.
        UnsupportedModelError, MissingEvidenceError, AttachError: see `Method.attach`.
        MissingDependencyError: transformers is not installed.
    """
    library = need("transformers", "lmms-eval")
    name = given.pretrained
    options: dict[str, Any] = {"dtype": given.dtype, "device_map": given.device}
    if given.attention is not None:
        options["attn_implementation"] = given.attention
    try:
        config = library.AutoConfig.from_pretrained(name)
        if given.method is not None:
            _check_fit(library.AutoModelForImageTextToText, config, given.method)
        processor = _processor(library, given)
        model = library.AutoModelForImageTextToText.from_pretrained(name, **options).eval()
    except BadArgumentError:
        raise
    except (ImportError, OSError, ValueError) as error:
        raise BadArgumentError(
            f"pretrained={quote(name, 200)}: transformers cannot load it as a model that reads images "
            f"and text: {error}"
        ) from error
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    attached = None if given.method is None else given.method.attach(model)
    return ChatModel(model, processor, attached, given.frames)


def _check_fit(kind: Any, config: Any, method: Method) -> None:
    """Raise unless an adapter knows the model and the recipe fits it; no weights are needed."""
    try:
        with torch.device("meta"):
            model = kind.from_config(config)
    except (RuntimeError, NotImplementedError):
        return  # its constructor computes values: `attach` will find out
    check_fit(method.recipe, find_adapter(model), type(model).__name__)


def _processor(library: Any, given: ModelArguments) -> Any:
    """Load the processor of a model, with the limits of an image's size.

    Raises:
        BadArgumentError: it writes no conversations, or has no such limits.
    """
    processor = library.AutoProcessor.from_pretrained(given.pretrained)
    if not getattr(processor, "chat_template", None):
        raise BadArgumentError(
            f"pretrained={quote(given.pretrained, 200)}: its processor has no chat template, and lmms-eval "
            "passes conversations: use a checkpoint that was trained on conversations"
        )
    for name, value in given.pixels.items():
        images = processor.image_processor
        if name not in getattr(images.valid_kwargs, "__annotations__", ()):
            raise BadArgumentError(
                f"{name}={value}: {type(images).__name__} has no such limit; leave it out"
            )
        images.size[EDGES[name]] = value
    processor.tokenizer.padding_side = "left"
    return processor
