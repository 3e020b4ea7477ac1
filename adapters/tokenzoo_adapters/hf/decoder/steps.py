"""The steps of a recipe in a language model, and the evidence that they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenzoo.evidence import EMBEDDED, NEXT, TEXT
from tokenzoo.recipe import Recipe, Step

FROM_ATTENTION = frozenset({"keys", "last_attention", "text_attention", f"keys@{TEXT}"})
"""Evidence from the attention of the layer before a step."""

FROM_EMBEDDINGS = frozenset({f"x@{EMBEDDED}", f"text@{EMBEDDED}"})
"""Evidence from the embedded prompt."""

FROM_NEXT_LAYER = frozenset({f"last_attention@{NEXT}"})
"""Evidence from the layer that the step reduces the input of."""

FROM_POSITIONS = frozenset({"text_rotation"})
"""Evidence from the rotary positions."""


@dataclass(frozen=True)
class DecoderSteps:
    """The steps at the stage "llm", by the layer whose input they reduce."""

    by_layer: Mapping[int, Step]

    @classmethod
    def of(cls, recipe: Recipe) -> DecoderSteps:
        """The steps of a recipe; a stage without a layer counts as layer -1, which no model has."""
        steps = [step for step in recipe.steps if step.stage.name == "llm"]
        return cls({-1 if s.stage.layer is None else s.stage.layer: s for s in steps})

    @property
    def names(self) -> str:
        """The layers, for messages."""
        return ", ".join(f"layer {layer}" for layer in self.by_layer)

    def at(self, layer: int) -> int:
        """The last layer with a step up to this layer, or -1."""
        return max((k for k in self.by_layer if k <= layer), default=-1)

    def need(self, evidence: frozenset[str]) -> bool:
        """Whether a step needs some of this evidence."""
        return any(step.needs & evidence for step in self.by_layer.values())
