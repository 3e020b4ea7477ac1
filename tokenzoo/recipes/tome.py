"""Token Merging (ToMe): a few merges in every block."""

from __future__ import annotations

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import Bipartite, Parity
from tokenzoo.mergers import WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Explicit, Mean, PerBlock
from tokenzoo.scorers import Similarity


@register_recipe
def tome(
    *,
    keep: int | float | None = None,
    r: int | tuple[int, ...] | list[int] | None = None,
    inflection: float = 0.0,
    proportional_attention: bool = True,
) -> Recipe:
    """Merge the tokens with the most similar keys, in every block, weighted by mass.

    Between attention and MLP the tokens are split by parity into a and b. Each of a finds the token of b
    with the most similar key, and the r best of these pairs are merged into their weighted mean. The
    mass of a merged token is the number of its patches; it weighs the token in later means and in the
    attention of later blocks.

    Formula:
        score(i, j) = cos(k_i, k_j),  k: mean over the heads,  i in a, j in b
        y_j = sum over i merged into j of m_i x_i / sum of m_i;    logits + log m_j

    Args:
        keep: patch tokens to keep, spread evenly over the blocks; a quarter where neither this nor `r`
            is given. (ours)
        r: ToMe's own measure: tokens removed per block (at most half), or a list of them. (paper: 13
            for ViT-B/16, 7 for ViT-L/16)
        inflection: with an int r: -1 removes more in the first blocks, 1 in the last, 0 the same in all.
            (paper: 0, and -1 for its decreasing schedule)
        proportional_attention: log mass on the logits of later blocks; the paper turns it off in training
            and for some self-supervised models. (paper: True)

    Departures:
        - Registers are left alone, which the original does not do.
        - The outputs of every merge are in ToMe's own order (proposers that stay, then receivers): the next
          split by parity depends on it.

    Licence:
        CC-BY-NC-4.0 (facebookresearch/ToMe)

    Reference:
        Token Merging: Your ViT But Faster (ToMe), ICLR 2023, arXiv 2210.09461
    """
    if keep is not None and r is not None:
        raise BadArgumentError(
            f"keep={quote(keep)} and r={quote(r)}; r fixes the removals of every block: pass one of the two"
        )
    if inflection != 0 and not isinstance(r, int):
        raise BadArgumentError(
            f"inflection={inflection!r} with r={quote(r)}; inflection distributes an int r over the "
            "blocks: pass r=16, or inflection=0"
        )
    match = Bipartite(Similarity("keys"), split=Parity(), order="tome")
    if r is None:
        schedule = Mean()
    elif not is_kind(r, int | tuple | list):
        raise BadArgumentError(
            f"r={quote(r)}; it must be an int, tokens removed per block, or a list of them"
        )
    else:
        schedule = PerBlock(r, inflection) if isinstance(r, int) else Explicit(tuple(r))
    return Recipe(
        Step(Stage.BLOCK, schedule, match, WeightedMean()),
        keep=None if r is not None else 0.25 if keep is None else keep,
        proportional_attention=proportional_attention,
    )
