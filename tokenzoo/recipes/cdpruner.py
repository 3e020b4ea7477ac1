"""CDPruner: diverse tokens that are relevant to the question."""

from __future__ import annotations

from tokenzoo.matchers import Drop, GreedyDPP, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, TextRelevance


@register_recipe
def cdpruner(
    *,
    keep: int | float = 0.25,
    relevance: int | str | None = None,
    negated: bool = True,
    match_reference: bool = False,
) -> Recipe:
    """Keep the most probable subset of a DPP: kernel = relevance_i * cosine_ij * relevance_j.

    A determinantal point process gives a set of tokens a probability that grows with the volume that they
    span, which is small for similar tokens. Weighted by the relevance to the question, the set is
    diverse among the relevant tokens. It is built greedily, one token at a time, after the projector;
    the others are dropped.

    Formula:
        L_ij = r_i * cos(x_i, x_j) * r_j,    r = minmax over the image of -cos(v_i, question)
        next = argmax over i not kept of  det(L[kept + i]) / det(L[kept])

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 64, 128 or 192 of 576)
        relevance: the layer whose features share a space with the text; None: the tokens themselves. The
            paper compares CLIP's projected patches: `at={"clip": {"x": ...}}` with relevance="clip".
            (paper: "clip")
        negated: in CLIP the low cosines mark the patches that the text speaks of; of other spaces nothing
            is known. (authors' code: True)
        match_reference: scale over the batch, and fail beyond the rank, as in the authors' code.

    Departures:
        - Relevance is scaled in each image; the authors scale over the batch, so that an image's result
          depends on its batch mates. `match_reference=True` does, too.
        - The count is exact beyond the rank of the kernel; theirs falls short, by as much as rounding
          decides. So does `match_reference=True`.
        - Attached, relevance is in the language model's space: the cosine of projected tokens with the
          embeddings that the language model has of the prompt's tokens (without placeholders, padding and
          special tokens). The authors compare CLIP's projected patches with the question, by CLIP's text
          tower. What is known of CLIP (`negated`) need not hold there, and no accuracy is claimed. The
          authors' own relevance works on features: `zoo.reduce(x, text=..., at={"clip": ...},
          ...)` with relevance="clip".

    Licence:
        Apache-2.0 (Theia-4869/CDPruner)

    Reference:
        CDPruner, NeurIPS 2025, arXiv 2506.10967
    """
    scorer = TextRelevance(relevance, negated, "batch" if match_reference else "image")
    stay = GreedyDPP(Similarity("x"), scorer, fails=match_reference)
    return Recipe(Step(Stage.PROJECTED, Once(), SelectAssign(stay, Drop()), Identity()), keep=keep)
