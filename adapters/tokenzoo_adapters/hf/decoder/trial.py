"""Steps and prompts for `decoder.verify`: one prompt keeps its tokens, each step halves the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from tokenzoo.evidence import Evidence, layer_of
from tokenzoo.hooks import EverySecond, Options
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Step
from tokenzoo.schedules import Once
from tokenzoo.token_map import TokenMap
from tokenzoo_adapters.hf.decoder.layers import Decoder


@dataclass(frozen=True)
class EverySecondOfLayers(EverySecond):
    """Keep the tokens 1, 3, 5, ..., and compute all evidence that the recipe needs, of other layers too."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Drop every other token."""
        for need in sorted(self.wanted):
            getattr(evidence.at(layer_of(need)), need.partition("@")[0])
        return EverySecond().match(evidence, keep)


@dataclass(frozen=True)
class TrialTokens:
    """The visual tokens of one of the random prompts.

    Attributes:
        full: how many.
        layers: with a step, each of which drops half of them; (): all are kept.
    """

    full: int
    layers: tuple[int, ...]

    @property
    def short(self) -> int:
        """As many."""
        return self.full

    def entering(self, recipe: Recipe, layer: int) -> int:
        """Count the tokens that enter a layer."""
        del recipe
        return self.full >> sum(step <= layer for step in self.layers)


@dataclass(frozen=True)
class TrialAttachment:
    """What a `Decoder` reads of an attached recipe."""

    recipe: Recipe
    options: Options = field(default_factory=Options)
    active: bool = True

    def note_prompts(self, counts: tuple[int, ...]) -> None:
        """Ignore what is left of the prompts."""
        del counts


def trial_decoder(language: nn.Module, steps: Mapping[int, Step]) -> Decoder:
    """A decoder whose steps, by layer, drop half of the tokens of every prompt but the first."""
    halves = [
        replace(
            step,
            stage=replace(step.stage, layer=layer),
            schedule=Once(),
            matcher=EverySecondOfLayers(step.needs),
            merger=Identity(),
        )
        for layer, step in steps.items()
    ]
    return Decoder(language, TrialAttachment(Recipe(*halves)))
