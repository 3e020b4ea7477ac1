"""TRIM: the tokens that are relevant to a question, and one for all others."""

from __future__ import annotations

from tokenzoo.matchers import Drop, Fuse, Outliers, SelectAssign, TopK
from tokenzoo.mergers import Fused, Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import TextSoftmax


@register_recipe
def trim(
    *,
    keep: int | float = 0.25,
    adaptive: bool = False,
    mean: bool = True,
    relevance: int | str | None = None,
    negated: bool = True,
    match_reference: bool = False,
) -> Recipe:
    """Keep the tokens that are relevant to the text; the others become their mean.

    In CLIP, patches and text share one space, so the product with the prompt measures the relevance of a
    patch. Outliers are kept with their own features, in raster order; the mean of all others comes
    last. Attached to a multimodal model it works after the projector, where tokens and the words of the
    prompt share the language model's space.

    Formula:
        score_j = softmax over the tokens j of -<p_j, t>,  p: CLIP's projected patches, t: the prompt
        adaptive: kept are the j with score_j > Q3 + 1.5 (Q3 - Q1)
        y_last = mean of x_j over all j that are not kept

    Args:
        keep: patch tokens to keep, the mean counted: a count or a fraction; with `adaptive` the most.
            (paper: a fifth on average)
        adaptive: keep as many as stand out. (paper: True)
        mean: one of the tokens is the mean of the others; False: the others are dropped, which works in
            models where a new token has no place (Qwen2-VL). (paper: True)
        relevance: the layer whose features share a space with the text; None: the tokens themselves. The
            paper compares CLIP's projected patches: `at={"clip": {"x": ...}}` with relevance="clip".
        negated: in CLIP the low products mark the patches that the text speaks of; of other spaces nothing
            is known. (authors' code: True)
        match_reference: quartiles of the whole batch, as in the authors' code.

    Departures:
        - The authors take the quartiles over the whole batch, so that an image's count depends on its batch
          mates; `match_reference=True` does, too.
        - The paper speaks of a cosine; the code, and this, take the plain product.
        - It needs a space that image and text share, and no attention: an encoder may be without CLS.
        - Attached, it differs in three ways. The authors reduce before the projector; this works after it.
          They compare patches with one embedding of the prompt, by CLIP's text tower; this compares
          projected tokens with the embeddings that the language model has of the prompt's tokens (without
          placeholders, padding and special tokens), and takes the mean product. What is known of CLIP
          (`negated`) need not hold there, and no accuracy is claimed. The authors' own relevance works on
          features: `zoo.reduce(x, text=..., at={"clip": ...})`.
        - Attached, `adaptive` is refused: prompts are written for a number that is known before.

    Licence:
        Apache-2.0 (FreedomIntelligence/TRIM)

    Reference:
        Less is More: A Simple yet Effective Token Reduction Method (TRIM), COLING 2025, arXiv 2409.10994
    """
    scorer = TextSoftmax(relevance, negated)
    over = "batch" if match_reference else "image"
    stay = Outliers(scorer, over=over) if adaptive else TopK(scorer)
    join, merger = (Fuse(), Fused()) if mean else (Drop(), Identity())
    match = SelectAssign(stay, join)
    return Recipe(Step(Stage.PROJECTED, Once(), match, merger), keep=keep)
