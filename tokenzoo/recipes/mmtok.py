"""MMTok: tokens that cover the image and the question."""

from __future__ import annotations

from tokenzoo._core.kinds import NonNegative, Positive
from tokenzoo.matchers import Drop, MaxCoverage, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity


@register_recipe
def mmtok(
    *,
    keep: int | float = 0.25,
    text: NonNegative = 2.0,
    text_temperature: Positive = 0.02,
    temperature: Positive = 0.2,
) -> Recipe:
    """Keep tokens one by one, each with the largest gain in coverage of the image and of the question.

    Tokens that cover the words of the question find what it asks about; tokens that cover the other tokens
    keep the rest of the image. Both are one problem of maximum coverage: how well a token covers a word,
    or another token, is a softmax of cosines, so that a token that covers everything a little is worth
    little. It uses no attention, and runs after the projector; the others are dropped. Kept tokens stay in
    raster order.

    Formula:
        Q_ij = softmax over j of cos(x_i, x_j) / temperature,   P_wj = the same of cos(word_w, x_j)
        coverage of S = text * mean over w of max over j in S of P_wj
                        + mean over i of max over j in S of Q_ij
        next = argmax over j not kept of the gain in coverage

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 192, 128 or 64 of 576)
        text: weight of the coverage of the question. (authors' code: 1 for the question, 0.5 for the image)
        text_temperature: of the softmax of words. (authors' code: 0.02)
        temperature: of the softmax of tokens. (authors' code: 0.2)

    Departures:
        - The words are all tokens of the prompt but placeholders, padding and special ones. The authors
          leave out words such as "the" or "what", and the fixed sentences of benchmarks.
        - Tokens are compared after the projector, as words and tokens are; the authors compare tokens with
          each other before it, in CLIP's space.
        - The authors' optional agent, a small model that answers first to add words, is not there.

    Licence:
        Apache-2.0 (Ironieser/MMTok)

    Reference:
        MMTok, ICLR 2026, arXiv 2508.18264
    """
    stay = MaxCoverage(
        Similarity("x"), temperature=temperature, text=text, text_temperature=text_temperature
    )
    return Recipe(Step(Stage.PROJECTED, Once(), SelectAssign(stay, Drop()), Identity()), keep=keep)
