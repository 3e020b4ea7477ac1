"""Shared pieces of recipes with several steps inside a language model."""

from __future__ import annotations

from typing import Any, Literal

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_count, check_positive
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import NEXT
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.parts import Matcher, Merger
from tokenzoo.recipe import Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import LastTokenAttention

Positions = Literal["keep", "compact"]


def by_next_layer() -> Matcher:
    """Keep the visual tokens with the highest attention of the prompt's last token in the next layer."""
    return SelectAssign(TopK(LastTokenAttention(layer=NEXT)), Drop())


def staged_steps(
    layers: tuple[int, ...],
    factors: tuple[float, ...],
    match: Matcher | tuple[Matcher, ...],
    merger: Merger,
    positions: Positions,
) -> tuple[Step, ...]:
    """Make one step before each of the layers; step i leaves `keep` times factor i.

    `match` is one matcher for all layers, or one for each.

    Raises:
        BadArgumentError: a layer or a factor has a wrong value, or there is not one factor, or matcher, for
            each layer.
    """
    given: Any = (layers, factors)
    if any(not isinstance(each, tuple | list) for each in given) or len(layers) != len(factors):
        raise BadArgumentError(
            f"layers={quote(layers)} and factors={quote(factors)}; each layer needs one factor, which "
            "multiplies keep: layers=(8, 16, 24), factors=(4.0, 2.0, 1.0)"
        )
    for layer, factor in zip(layers, factors, strict=True):
        check_count("layers", layer)
        check_positive("factors", factor)
    matches = match if isinstance(match, tuple) else (match,)
    matches = matches * len(layers) if len(matches) == 1 else matches
    if len(matches) != len(layers):
        raise BadArgumentError(
            f"{len(matches)} choices for the {len(layers)} layers {quote(layers)}; pass one for each, or "
            "one for all"
        )
    return tuple(
        Step(Stage.LLM(layer), Once(keep=factor), each, merger, positions=positions)
        for layer, factor, each in zip(layers, factors, matches, strict=True)
    )
