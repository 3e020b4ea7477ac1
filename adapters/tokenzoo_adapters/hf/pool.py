"""Before and after the blocks of transformers' towers: smaller images, and SigLIP's attention pooling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.hooks import Tap, reduced_tokens
from tokenzoo_adapters.common.image_size import check_configured, resized, smaller_grid
from tokenzoo_adapters.common.pooling import state_of


def install_head(head: Any, proportional: bool) -> Any:
    """Make the pooling head of a tower count masses: SigLIP's, or one whose attention is its own (AIMv2).

    Returns:
        The handle of the hook.
    """
    if hasattr(head, "attention"):
        return install(head.attention, proportional)
    return head.register_forward_hook(partial(_pooled, proportional=proportional))


def install(attention: nn.MultiheadAttention, proportional: bool) -> Any:
    """Make attention pooling read the tokens that are left, with log mass if `proportional`.

    Returns:
        The handle of the hook.
    """
    hook = partial(_reduced, proportional=proportional)
    return attention.register_forward_pre_hook(hook, with_kwargs=True)


def _reduced(
    attention: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any], *, proportional: bool
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """A pre-hook of `attention(probe, x, x)`."""
    del attention
    probe, x = args[:2]
    state = state_of(x)
    bias = state.layout.log_mass(x.device)
    if bias is None:
        return args, options
    x = reduced_tokens(x, state)
    if proportional:
        # A padding mask of floats is added to the logits of its keys.
        options = {**options, "key_padding_mask": bias.to(x.dtype)}
    return (probe, x, x), options


def _pooled(
    head: nn.Module, args: tuple[Tensor, ...], output: Tensor, *, proportional: bool
) -> Tensor:
    """A hook of a head that calls the fused attention itself: pool again, by mass."""
    state = state_of(args[0])
    if state.mass is None:
        return output
    x, forward = reduced_tokens(args[0], state), cast("Any", type(head)).forward
    if not proportional:
        return forward(head, x)
    tap = Tap(0, state.mass.log())
    with tap:
        found = forward(head, x)
    if len(tap.seen) != 1:
        raise AttachError(f"{len(tap.seen)} fused attention calls in the pooling; one is expected")
    return found


@dataclass(frozen=True)
class _Shrink:
    """A pre-hook of a tower: resize its images to the wanted number of patches."""

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
                "a model with a step at stage 'image' takes pixel_values only, and other arguments by "
                "name; bool_masked_pos is not supported: it has one value for each patch of the whole image"
            )
        height, width = small[0] * (height // grid[0]), small[1] * (width // grid[1])
        more = {"interpolate_pos_encoding": True} if self.asks else {}
        return (), {**options, **more, "pixel_values": resized(image, height, width)}


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
        model: the tower, which takes images of several sizes.
        grid: (rows, columns) of the patches of an image of the configured size.
        patches: maps height and width of an image to (rows, columns) of its patches.
        wanted: maps the number of an image's patches to the number to keep.
        asks: whether the tower interpolates its positions only if an argument says so.

    Returns:
        An uninstaller.
    """
    check_configured(grid, wanted(grid[0] * grid[1]), dynamic_size=True)
    hook = _Shrink(patches, wanted, asks)
    return model.register_forward_pre_hook(hook, with_kwargs=True).remove
