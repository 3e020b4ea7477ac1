"""EVS: tokens that differ from the frame before."""

from __future__ import annotations

from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import TemporalChange


@register_recipe
def evs(*, keep: int | float = 0.25) -> Recipe:
    """Keep the tokens of a clip that differ most from the token at the same place in the frame before.

    What does not change from frame to frame is redundant. The first frame has nothing before it and comes
    first; of all other tokens of the clip those with the lowest cosine to their predecessor stay, wherever
    they are. Tokens stay in order of position.

    Formula:
        score_fp = 1 - cos(x_fp, x_(f-1)p);   the first frame: higher than all others

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction. (ours)

    Departures:
        - vLLM's code keeps at least the whole first frame, however few are wanted; here the count is exact,
          and fewer tokens than a frame has are the first of the first frame.
        - It neither gives the kept tokens other positions nor trains on pruned clips.

    Licence:
        Written from the paper's rule; vLLM's file says Apache-2.0, with a notice that contradicts it

    Reference:
        Efficient Video Sampling, arXiv 2510.14624
    """
    match = SelectAssign(TopK(TemporalChange()), Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), match, Identity()), keep=keep)
