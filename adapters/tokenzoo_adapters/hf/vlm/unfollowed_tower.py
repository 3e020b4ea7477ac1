"""A vision tower that is not followed: its tokens are reduced after the projector alone.

What the projector returns is made one sequence of rows, image after image, tile after tile: a hook takes
the rows out of its output before the step of the stage "projected", another one puts what is left of them
back after it. A spec says how (`ProjectedRows`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter, Attachment, BlockPath, computed
from tokenzoo.errors import AttachError
from tokenzoo.hooks import PerThread, get_state, hook_first, thread_local, undo_all
from tokenzoo.layouts import PackedLayout

Grids = tuple[tuple[int, int], ...]


class ProjectorPass(PerThread):
    """The call of a projector that runs in this thread.

    Attributes:
        grids: rows and columns of the tokens of each image, tile or frame.
        output: what the projector returned, without what is left of its rows.
        sizes: the model's own sizes of images, where it splits rows by them after the projector.
        frames: of each video, if videos are encoded.
    """

    grids: Grids | None = thread_local("grids")
    output: Any = thread_local("output")
    sizes: Tensor | None = thread_local("sizes")
    frames: tuple[int, ...] | None = thread_local("frames")


@dataclass(frozen=True)
class ProjectedRows:
    """What the projector of a model returns, as rows.

    Attributes:
        take: of the base, the pass, the projector's arguments and its output: rows `[r, c]`, and the grid
            of each image, tile or frame.
        put: of the pass, the projector's output and the rows that are left of each `[m, c]`: its output
            with these.
    """

    take: Callable[[Any, ProjectorPass, tuple[Any, ...], Any], tuple[Tensor, Grids]]
    put: Callable[[ProjectorPass, Any, tuple[Tensor, ...]], Any]


@dataclass(frozen=True, eq=False)
class UnfollowedTower(Adapter):
    """A vision tower of which nothing is known but what its projector makes.

    Args:
        base: the bare model.
        path: of the projector in it.
        rows: of the projector's output.
        state: of a pass.
    """

    base: Any
    path: str
    rows: ProjectedRows
    state: ProjectorPass = field(default_factory=ProjectorPass, repr=False)

    layout_class = PackedLayout
    dynamic_size = True
    stages = frozenset({"projected"})
    provides = frozenset({"x", "mass", "grid"})

    @computed
    def no_other_stage(self) -> str:
        """Its tower, by name."""
        tower = type(self.base.vision_tower).__name__
        return f", not inside its vision tower, {tower}, which is not followed"

    @computed
    def width(self) -> int:
        """Channels of a patch."""
        return int(self.base.config.vision_config.hidden_size)

    def blocks(self) -> tuple[BlockPath, ...]:
        """None that could be reduced."""
        return ()

    def layout(self, x: Tensor) -> PackedLayout:
        """The images, tiles and frames of this pass, one after the other."""
        del x
        if self.state.grids is None:
            raise AttachError(
                "the projector was called on its own: call the model, or its get_image_features"
            )
        return PackedLayout.of(self.state.grids)

    def connect(self, attached: Attachment) -> Callable[[], None]:
        """Take the rows out of the projector's output before a step, and put them back after it."""
        del attached
        projector = self.base.get_submodule(self.path)
        handles = [
            hook_first(projector, partial(_take, self)),
            projector.register_forward_hook(partial(_put, self)),
        ]
        return partial(undo_all, [handle.remove for handle in handles])


def _take(
    tower: UnfollowedTower, projector: nn.Module, args: tuple[Any, ...], output: Any
) -> Tensor:
    """The first hook of the projector."""
    del projector
    state = tower.state
    rows, state.grids = tower.rows.take(tower.base, state, args, output)
    state.output = output
    wanted = sum(height * width for height, width in state.grids)
    if rows.shape[0] != wanted:
        raise AttachError(
            f"the projector made {rows.shape[0]} tokens, and images of the grids {state.grids} have "
            f"{wanted}: pass pixels and sizes as the processor returns them"
        )
    return rows


def _put(tower: UnfollowedTower, projector: nn.Module, args: tuple[Any, ...], rows: Tensor) -> Any:
    """The last hook of the projector."""
    del projector
    state, reduced = tower.state, get_state(args[0])
    counts = [height * width for height, width in state.grids or ()]
    if reduced is not None:
        for bucket in reduced.layout.buckets:
            for image in bucket.images:
                counts[image] = bucket.tokens
    output, state.output, state.grids = state.output, None, None
    return tower.rows.put(state, output, torch.split(rows, counts))
