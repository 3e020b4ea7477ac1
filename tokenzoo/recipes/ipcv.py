"""IPCV: tokens that hardly change are left out inside of the encoder, and come back after it."""

from __future__ import annotations

from tokenzoo._core.kinds import Count, Index
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity, NeighbourUpdate
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureChange, NegativeSquaredDistance


@register_recipe
def ipcv(
    *, keep: int | float = 0.25, layer: Count = 3, attended: Index = 7, neighbours: Count = 10
) -> Recipe:
    """Keep the tokens that one early block changes most; the others come back after the last block.

    The encoder is shortened, and what reads it is not: all tokens leave the tower. In block `layer` those
    that the block before has changed least are removed. Each of them has a few nearest neighbours among
    the kept ones, and is taken to move as they do on average. So it can be rebuilt at any later
    block: for a few blocks removed tokens still take part in the attention, as keys and values, but skip
    the MLP; then the kept tokens go on alone; at the end all removed ones are rebuilt.

    Formula:
        score_i = ||h_i - h'_i||,  h: what enters block `layer`; h': what entered the block before
        y_i = h_i + mean over the nearest kept j of (y_j - h_j)

    Args:
        keep: patch tokens that stay inside of the encoder: a count or a fraction. (authors' code: 0.35)
        layer: the block, by its index, in which tokens are removed. (authors' code: 3 of 32)
        attended: in the attention of how many blocks, from that one on, the removed tokens take part; 0:
            in none. (authors' code: 7)
        neighbours: how many nearest kept tokens move a removed one. (authors' code: 10)

    Departures:
        - Each image, and each slice in time of a video, keeps its own `keep` tokens, and has its own
          neighbours. The authors choose among all images of a call together.
        - Where several patches make one token of the language model (2 x 2 in Qwen2-VL), they stay or go
          together; the authors choose single patches.
        - Without removed tokens, the authors' attention counts a kept token that is the first of its frame
          as one of the frame before. That is not done.
        - They also drop tokens inside of the language model, by DART or FastV: recipes of their own here,
          whose steps go with these, `Recipe(*build("ipcv").recipe.steps, *build("dart").recipe.steps)`.

    Licence:
        Apache-2.0 (Perkzi/IPCV)

    Reference:
        IPCV, 2025, arXiv 2512.18747
    """
    match = SelectAssign(TopK(FeatureChange()), Drop())
    back = NeighbourUpdate(NegativeSquaredDistance("x"), neighbours)
    step = Step(Stage.BLOCK, Once(layer), match, Identity(), restorer=back, attended=attended)
    return Recipe(step, keep=keep)
