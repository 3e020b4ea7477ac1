"""What is planned for the images and videos of a model: how many tokens are left at every point."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenzoo.adapter import Adapter
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import BudgetError
from tokenzoo.recipe import Recipe, Step


class Budgets:
    """The budgets of one recipe on one model.

    Args:
        recipe: that is attached.
        adapter: of the model.
    """

    def __init__(self, recipe: Recipe, adapter: Adapter) -> None:
        self.recipe = recipe
        self.adapter = adapter
        self.frames = [step for step in recipe.steps if step.stage.name == "frames"]
        self.known: dict[tuple[int, int], TokenBudget] = {}

    def of(self, tokens: int, frames: int = 1) -> TokenBudget:
        """What is planned for an image, or a frame of a video, of so many patch tokens."""
        if (tokens, frames) not in self.known:
            made = self._budget(self.recipe, tokens)
            if self.frames and frames > 1:
                made = self._of_video(made, frames)
            self.known[tokens, frames] = replace(made, frames=frames)
        return self.known[tokens, frames]

    def _budget(self, recipe: Recipe, tokens: int) -> TokenBudget:
        adapter = self.adapter
        return recipe.budget(
            tokens,
            max(len(adapter.blocks()), 1),  # a tower whose blocks are not known counts as one
            prefix=adapter.prefix,
            width=adapter.width,
            hidden=adapter.mlp_dim,
            patches=adapter.group,
            reach=adapter.reach,
        )

    def _of_video(self, image: TokenBudget, frames: int) -> TokenBudget:
        """The budget of a frame where a video gets fewer frames.

        Those that are left keep so many more tokens in the tower that there are enough of them for what is
        to be left of the video.

        Args:
            image: the budget of an image of as many tokens.
            frames: of the video.

        Raises:
            BudgetError: frames are to be merged after some of their tokens.
        """
        n, wanted, left = image.tokens, image.visual, [frames]
        for step in self.frames:
            left.append(step.counts(left[-1], 1, left[-1])[0])
        more = min(n, -(-frames * wanted // left[-1]))
        options = {"proportional_attention": self.recipe.proportional_attention}
        made = self._budget(Recipe(*self.recipe.steps, keep=more, **options), n)
        last = max(block_of(step) for step in self.frames)
        if any(count < n for count in made.blocks[:last]):
            raise BudgetError(
                f"{self.frames[-1].stage!r} comes after blocks that leave {made.blocks[:last]} of {n} "
                f"tokens, and frames are merged whole: start the schedule of the blocks at block {last}"
            )
        there = made.features
        if there == n:  # the model may pool the frames then
            pooled = int(self.adapter.pool_frames(torch.empty(1, n, 1)).shape[1])
            if pooled != n:
                there, wanted = pooled, self.of(pooled).visual
        least = -(-frames * wanted // there)
        fewer = tuple(
            (block_of(step), max(count, least))
            for step, count in zip(self.frames, left[1:], strict=True)
        )
        return replace(made, projected=image.projected, fewer=fewer)


def block_of(step: Step) -> int:
    """The block before which a step at the stage "frames" is."""
    return step.stage.layer or 0
