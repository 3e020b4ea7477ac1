"""What of transformers' towers lies before and behind the blocks: smaller images, and SigLIP's pooling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.hooks.state import reduced_tokens
from tokenzoo_adapters.common.image_size import resized, smaller_grid
from tokenzoo_adapters.common.pooling import state_of


def install(attention: nn.MultiheadAttention, proportional: bool) -> Any:
    """Make the attention that pools all tokens read those that are left, with log mass if `proportional`.

    Returns:
        The handle of the hook.
    """
    hook = partial(_few, proportional=proportional)
    return attention.register_forward_pre_hook(hook, with_kwargs=True)


def _few(
    attention: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any], *, proportional: bool
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """A pre-hook of `attention(probe, x, x)`."""
    del attention
    probe, x = args[:2]
    state = state_of(x)
    if state.mass is None:
        return args, options
    x = reduced_tokens(x, state)
    if proportional:
        # A padding mask of floats is added to the logits of its keys.
        options = {**options, "key_padding_mask": state.mass.log().to(x.dtype)}
    return (probe, x, x), options


@dataclass(frozen=True)
class _Shrink:
    """A pre-hook of a tower: resize its images so that they have the wanted patches."""

    patches: Callable[[int, int], tuple[int, int]]
    wanted: Callable[[int], int]
    asks: bool

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        image: Tensor = args[0] if args else options["pixel_values"]  # [b, 3, height, width]
        height, width = image.shape[-2:]
        grid = self.patches(height, width)
        small = smaller_grid(grid, self.wanted(grid[0] * grid[1]))
        if small == grid:
            return args, options
        if options.get("bool_masked_pos") is not None or len(args) > 1:
            raise AttachError(
                "a model whose images are shrunk takes pixel_values alone, and other arguments by name; "
                "bool_masked_pos is made for all patches"
            )
        height, width = small[0] * (height // grid[0]), small[1] * (width // grid[1])
        asked = {"interpolate_pos_encoding": True} if self.asks else {}
        return (), {**options, **asked, "pixel_values": resized(image, height, width)}


def shrink(
    model: nn.Module,
    grid: tuple[int, int],
    patches: Callable[[int, int], tuple[int, int]],
    wanted: Callable[[int], int],
    *,
    asks: bool,
) -> Callable[[], None]:
    """Resize the images of a tower to fewer patches.

    Args:
        model: the tower.
        grid: rows and columns of the patches of an image of its own size.
        patches: maps height and width of an image to those.
        wanted: maps an image's patch tokens to those to keep.
        asks: whether the tower must be asked to interpolate its positions.

    Returns:
        The function that undoes it.

    Raises:
        BudgetError: no image near the shape of its own has so many patches.
    """
    smaller_grid(grid, wanted(grid[0] * grid[1]))
    hook = _Shrink(patches, wanted, asks)
    return model.register_forward_pre_hook(hook, with_kwargs=True).remove
