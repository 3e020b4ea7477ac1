"""What writes prompts for vLLM: the processor of its Transformers backend, with fewer placeholders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from typing import Any

import torch

from tokenzoo_adapters.vllm.counts import image_spans, planner, shortened
from tokenzoo_adapters.vllm.engine import imported
from tokenzoo_adapters.vllm.recipe import served

_BACKEND = "vllm.model_executor.models.transformers.multimodal"
_Info: Any = imported(_BACKEND, "MultiModalProcessingInfo")
_Processor: Any = imported(_BACKEND, "MultiModalProcessor")
DummyInputs: Any = imported(_BACKEND, "MultiModalDummyInputsBuilder")


class TokenzooInfo(_Info):
    """What vLLM asks about a model before it serves."""

    @cached_property
    def planner(self) -> Any:
        """The recipe on the model without its weights."""
        return planner(served(), self.get_hf_config())

    def _get_supported_modalities(self) -> list[str]:
        known: list[str] = _Info._get_supported_modalities(self)
        return [name for name in known if name == "image"]

    def get_max_image_tokens(self) -> int:
        """Tokens of an image that has the most."""
        width, height = self.get_image_size_with_most_features()
        image = import_module("PIL.Image").new("RGB", (width, height))
        given = self.get_hf_processor().image_processor(images=[image], return_tensors="pt")
        return max(span.short for span in image_spans(self.planner, given))


class TokenzooProcessor(_Processor):
    """Writes as many placeholders as are planned."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        output: Any = _Processor._apply_hf_processor_main(self, mm_items, hf_kwargs)
        ids = output.get("image_replacement_ids")
        if ids is None:
            return output
        spans = image_spans(self.info.planner, output)
        short = shortened(ids, output["image_replacement_sizes"].tolist(), spans)
        output["image_replacement_ids"] = torch.cat(short)
        output["image_replacement_sizes"] = torch.tensor([len(one) for one in short])
        return output

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Name the recipe in the identity of each image: caches may be shared between servers."""
        digest = served().digest
        found: Mapping[str, list[str]] = _Processor._get_mm_hashes(self, inputs)
        return {kind: [f"{one}-{digest}" for one in several] for kind, several in found.items()}
