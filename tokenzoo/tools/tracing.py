"""Trace the patches of images through a model, for pictures after every block that reduces.

trace = trace_tokens(tokenzoo.build("tome"), vit, images)
pictures = [trace.picture(images[0], 0, block) for block in trace.plans]        # each [3, H, W]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.hooks.reduction import Event
from tokenzoo.recipe import Stage
from tokenzoo.token_map import TokenMap
from tokenzoo.tools.viz import merged_groups, shrunk_image
from tokenzoo.zoo import Method


@dataclass(frozen=True)
class Trace:
    """The token maps of images through a model.

    Attributes:
        output: output of the model.
        before: patch tokens of an input image.
        grid: (rows, columns) of the patches that entered the first block.
        prefix: number of prefix tokens.
        plans: maps each block that reduced to the token map from the first tokens to those after it.
        small: the images that the recipe made smaller; None: it did not.
    """

    output: Any
    before: int
    grid: tuple[int, int]
    prefix: int
    plans: dict[int, TokenMap]
    small: Tensor | None = None

    def tokens(self, block: int | None = None) -> int:
        """Return the patch tokens after this block, or after the last."""
        if not self.plans:
            return self.grid[0] * self.grid[1]
        return self.plans[max(self.plans) if block is None else block].kept - self.prefix

    def picture(
        self, image: Tensor, index: int, block: int | None = None, *, see_through: float = 0.0
    ) -> Tensor:
        """Draw the tokens of one image: `[3, H, W]` in 0..1.

        Args:
            image: `[3, h, w]` in 0..1; the small image if there are `small` ones.
            index: index of the image among those that were traced.
            block: draw the tokens after this block; None: the last ones.
            see_through: see `merged_groups`.
        """
        if self.small is not None:
            return shrunk_image(image, self.grid)
        count = self.prefix + self.grid[0] * self.grid[1]
        plan = TokenMap.identity(index + 1, count)
        if self.plans:
            plan = self.plans[max(self.plans) if block is None else block]
        return merged_groups(
            image, plan, self.grid, self.prefix, index=index, see_through=see_through
        )


def trace_tokens(zoo: Method, model: Any, images: Tensor) -> Trace:
    """Run a model with a recipe on images, and record the token map of every block; then detach.

    Args:
        zoo: the recipe.
        model: a model in eval mode.
        images: `[b, 3, h, w]`, preprocessed.

    Raises:
        UnsupportedModelError: no adapter supports this model.
        AttachError: the recipe and the model do not go together.
        BadArgumentError: the patch tokens of this model do not form a grid.
    """
    plans: dict[int, TokenMap] = {}
    shown: list[Tensor] = []

    def note(event: Event) -> None:
        last = next(reversed(plans.values()), None)
        plans[event.block] = event.plan if last is None else last.then(event.plan)

    def look(module: Any, args: tuple[Tensor, ...]) -> None:
        del module
        shown.append(args[0])

    with zoo.attach(model, on_reduce=note) as attached, torch.inference_mode():
        handle = None
        if zoo.recipe.step_at(Stage.IMAGE) is not None:
            # Registered after the recipe's own hook, so that it sees the smaller image.
            handle = model.patch_embed.register_forward_pre_hook(look)
        try:
            output = model(images)
        finally:
            if handle is not None:
                handle.remove()
        prefix = attached.adapter.prefix
        tokens = next(iter(plans.values())).tokens - prefix if plans else attached.counts[0]
    small = shown[0] if shown and shown[0].shape != images.shape else None
    size = (images if small is None else small).shape[2:]
    grid = attached.adapter.grid(tokens) or grid_of(tokens, size)
    # Patches have one size, so their number is proportional to the size of the image.
    before = tokens if small is None else tokens * images[0].numel() // small[0].numel()
    return Trace(output, before, grid, prefix, plans, small)


def grid_of(tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of square patches of an image of this size.

    Raises:
        BadArgumentError: the image is not a grid of this many square patches.
    """
    height, width = size
    rows = round((tokens * height / width) ** 0.5)
    if rows < 1 or tokens % rows or rows * width != tokens // rows * height:
        raise BadArgumentError(
            f"{tokens} patch tokens of an image of {height} x {width} are not a grid of square patches: "
            "use merged_groups with the grid of this model"
        )
    return rows, tokens // rows
