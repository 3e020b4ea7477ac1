"""Controls: baselines that every method has to beat."""

from __future__ import annotations

from tokenzoo.matchers import Drop, GridCentres, SameCell, SelectAssign, TopK, WholeFrames
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once, Skip
from tokenzoo.scorers import Random


@register_recipe
def random(*, keep: int | float = 0.25, seed: int = 0, start: int = 1, every: int = 2) -> Recipe:
    """Drop random tokens, under EvoPrune's default schedule.

    The counts after the blocks are EvoPrune's as long as no site there has to halve its tokens (a
    selection can remove more at once, so it then removes later and costs a little more).

    Formula:
        score_j = a pseudo-random number, a function of (seed, j, n) alone

    Args:
        keep: patch tokens to keep: a count or a fraction.
        seed: another seed is another choice; it is the same for every image.
        start: first block that drops.
        every: distance between dropping blocks.
    """
    match = SelectAssign(TopK(Random(seed)), Drop())
    return Recipe(Step(Stage.BLOCK, Skip(start, every), match, Identity()), keep=keep)


@register_recipe
def uniform(*, keep: int | float = 0.25, at: int | float = 0.34) -> Recipe:
    """Keep a strided grid of tokens, once.

    Formula:
        kept = the middle token of each of k cells of the grid, as square and as equal as k allows

    Args:
        keep: patch tokens to keep: a count or a fraction.
        at: the block after whose attention it happens, as an index or a fraction of the depth.
    """
    match = SelectAssign(GridCentres(), Drop())
    return Recipe(Step(Stage.BLOCK, Once(at), match, Identity()), keep=keep)


@register_recipe
def pool(*, keep: int | float = 0.25, at: int | float = 0.34) -> Recipe:
    """Average the tokens of each cell of a coarser grid, once.

    Formula:
        y_c = sum over j in cell c of m_j x_j / sum over j in cell c of m_j

    Args:
        keep: patch tokens to keep: a count or a fraction.
        at: the block after whose attention it happens, as an index or a fraction of the depth.
    """
    match = SelectAssign(GridCentres(), SameCell())
    return Recipe(Step(Stage.BLOCK, Once(at), match, WeightedMean()), keep=keep)


@register_recipe
def downsample(*, keep: int | float = 0.25) -> Recipe:
    """Show the model a smaller image: bilinear, antialiased, the positions interpolated.

    On bare tensors, where there is no image, the features are averaged over the same cells.

    Formula:
        image of (rows, columns) patches -> image of (rows', columns') patches,  rows' * columns' = keep

    Args:
        keep: patch tokens of the smaller image: a count or a fraction. It must be a product rows x
            columns near the image's own shape.
    """
    match = SelectAssign(GridCentres(), SameCell())
    return Recipe(Step(Stage.IMAGE, Once(), match, WeightedMean()), keep=keep)


@register_recipe
def every_kth_frame(*, keep: int | float = 0.25) -> Recipe:
    """Keep whole frames of a clip, evenly spaced, and drop the others.

    Formula:
        kept = the middle frame of each of k equal parts of the clip; of the last one, evenly spaced tokens,
               if keep is no whole number of frames

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction.
    """
    match = SelectAssign(WholeFrames(), Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), match, Identity()), keep=keep)


CONTROLS = tuple(one.__name__ for one in (random, uniform, pool, downsample))
"""Their names."""

CONTROLS_OF_CLIPS = (every_kth_frame.__name__,)
"""Those that need the frames of a clip, and have no place on images."""
