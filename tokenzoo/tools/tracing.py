"""Following the patches of images through a model, for pictures after every block that reduces.

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
    """What became of the patches of some images on their way through a model.

    Attributes:
        output: of the model.
        before: patch tokens of an image as it was given.
        grid: (rows, columns) of the patches that entered the first block.
        prefix: tokens in front that are no patches.
        plans: by the index of each block that reduced: from the first tokens to those after it.
        small: the images as the model saw them, if the recipe made them smaller; otherwise None.
    """

    output: Any
    before: int
    grid: tuple[int, int]
    prefix: int
    plans: dict[int, TokenMap]
    small: Tensor | None = None

    def tokens(self, block: int | None = None) -> int:
        """Patch tokens after this block, or after the last."""
        if not self.plans:
            return self.grid[0] * self.grid[1]
        return self.plans[max(self.plans) if block is None else block].kept - self.prefix

    def picture(
        self, image: Tensor, index: int, block: int | None = None, *, see_through: float = 0.0
    ) -> Tensor:
        """Draw what became of one image: `[3, H, W]` in 0..1.

        Args:
            image: `[3, h, w]` in 0..1; where there are `small` ones, that of those.
            index: of the image among those that were followed.
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
    """Run a model with a recipe on images, and keep the plan of every block; nothing stays attached.

    Args:
        zoo: the recipe.
        model: in eval mode.
        images: `[b, 3, h, w]`, as the model wants them.

    Raises:
        UnsupportedModelError: no adapter can follow this model's tokens.
        AttachError: the recipe and the model do not go together.
        BadArgumentError: the patch tokens of this model are no grid.
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
            # After the recipe's own hook: the image that it shows is the one made smaller.
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
    grid = attached.adapter.grid(tokens) or _grid(tokens, size)
    # Patches have one size: as many more, as the image is larger.
    before = tokens if small is None else tokens * images[0].numel() // small[0].numel()
    return Trace(output, before, grid, prefix, plans, small)


def _grid(tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of square patches of an image of this size.

    Raises:
        BadArgumentError: so many square patches do not make up the image.
    """
    height, width = size
    rows = round((tokens * height / width) ** 0.5)
    if rows < 1 or tokens % rows or rows * width != tokens // rows * height:
        raise BadArgumentError(
            f"{tokens} patch tokens of an image of {height} x {width} are no grid of square patches: use "
            "merged_groups with the grid of this model"
        )
    return rows, tokens // rows
