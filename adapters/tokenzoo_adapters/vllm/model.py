"""The model of vLLM's Transformers backend with a recipe attached to the model of transformers inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenzoo_adapters.vllm.counts import check_counts, check_model, image_spans
from tokenzoo_adapters.vllm.engine import imported
from tokenzoo_adapters.vllm.positions import planned_positions, recomputed, with_coordinates
from tokenzoo_adapters.vllm.processor import DummyInputs, TokenzooInfo, TokenzooProcessor
from tokenzoo_adapters.vllm.recipe import check_server, served

_Model: Any = imported(
    "vllm.model_executor.models.transformers", "TransformersMultiModalForCausalLM"
)
_registry: Any = imported("vllm.multimodal", "MULTIMODAL_REGISTRY")


@_registry.register_processor(TokenzooProcessor, info=TokenzooInfo, dummy_inputs=DummyInputs)
class TokenzooMultiModalForCausalLM(_Model):
    """A model that reads images, with fewer tokens of each.

    Raises:
        AttachError: the server runs it in a way that was not tried.
    """

    supports_multimodal_pruning = True
    """vLLM asks for the positions of what is left (`recompute_mrope_positions`)."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_server(vllm_config)
        _Model.__init__(self, vllm_config=vllm_config, prefix=prefix)
        if self.model_config.uses_mrope:
            # vLLM asks for positions only where it prunes videos itself; its backend ignores the rate.
            self.model_config.multimodal_config.video_pruning_rate = 0.5
        self.attached: Any = None
        self.proved = False

    def load_weights(self, weights: Iterable[Any]) -> Any:
        """Load the weights, and attach the recipe; kernels of the layers are chosen after that."""
        loaded: Any = _Model.load_weights(self, weights)
        self.attached = served().method.attach(self.model, prove=False)
        check_model(self.attached)
        return loaded

    def prove_recipe(self) -> None:
        """Try the blocks on random tokens, once; their layers must be able to run."""
        if not self.proved:
            self.attached.prove()
            self.proved = True

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encode images: `[m, c]` each, with M-RoPE followed by the coordinates of the tokens."""
        self.prove_recipe()
        images: Sequence[Tensor] = _Model.embed_multimodal(self, **kwargs)
        check_counts([len(image) for image in images], image_spans(self.attached, kwargs))
        if not self.model_config.uses_mrope:
            return images
        side = int(self.model.config.vision_config.spatial_merge_size)
        grids: list[list[int]] = kwargs["image_grid_thw"].tolist()
        return [
            with_coordinates(image, left.to(image.device), width // side)
            for image, left, (_, _, width) in zip(images, self.attached.left, grids, strict=True)
        ]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> Any:
        """Positions `[3, n]` of a prompt whose images are not encoded, and what is added after it."""
        grids = [feature.data["image_grid_thw"].data.tolist() for feature in mm_features]
        counts = [feature.mm_position.get_num_embeds() for feature in mm_features]
        token = int(self.model.config.image_token_id)
        return planned_positions(self.model, input_tokens, token, grids, counts)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Any,
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> Any:
        """Place the tokens of the images in the part of a prompt that is read next."""
        ids = torch.as_tensor(input_ids)
        token = int(self.model.config.image_token_id)
        return recomputed(ids, token, multimodal_embeddings, mrope_positions, num_computed_tokens)
