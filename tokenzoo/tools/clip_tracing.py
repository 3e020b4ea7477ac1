"""Apply a recipe to the frames of a clip, and record which tokens share an output, for pictures.

trace = trace_clip(tokenzoo.build("holitom"), vit, frames)         # [f, 3, h, w], preprocessed
trace.plan                                                         # of all f * n tokens

A tower sees each frame alone. A recipe whose one step comes after the last block works on the tokens that
leave the tower, with the evidence of that block: over the whole clip if the step needs frames, otherwise in
each frame. Any other recipe works inside the tower, frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.layouts.videos import evidence_of_videos, map_of_videos, without_prefix
from tokenzoo.mergers import Identity
from tokenzoo.parts import Matcher, walk
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.reduce import check_needs, reduce_patches
from tokenzoo.schedules import Once
from tokenzoo.temporal import Segmenter
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens
from tokenzoo.tools.tracing import Trace, grid_of, trace_tokens
from tokenzoo.zoo import Method

LAST = ("features", "projected")
"""The stages after the last block."""


@dataclass(frozen=True)
class ClipTrace:
    """The token map of a clip.

    Attributes:
        plan: of one row: from the f * n tokens of all frames to those that are left.
        frames: f.
        grid: (rows, columns) of the n patches of a frame.
        small: the frames that the recipe made smaller; None: it did not.
        starts: the first frame of each segment into which the recipe cut the clip; (): it cut nothing.
    """

    plan: TokenMap
    frames: int
    grid: tuple[int, int]
    small: Tensor | None = None
    starts: tuple[int, ...] = ()

    @property
    def sizes(self) -> Tensor:
        """Tokens that are part of each output in each frame, `[m, f]`."""
        n = self.plan.tokens // self.frames
        slot = self.plan.dst[0].cpu()
        frame = torch.arange(self.plan.tokens) // n
        found = torch.zeros(self.plan.kept + 1, self.frames, dtype=torch.int64)
        found.index_put_((slot, frame), torch.ones_like(slot), accumulate=True)  # -1: the last
        return found[:-1]

    @property
    def tokens(self) -> int:
        """Tokens that are left of the clip."""
        lengths = self.plan.lengths
        return self.plan.kept if lengths is None else int(lengths[0])

    @property
    def of_frames(self) -> list[int]:
        """Tokens that are left in each frame: a token counts where it stands."""
        n = self.plan.tokens // self.frames
        keep = self.plan.keep[0].cpu()
        found: list[int] = [0] * self.frames
        for frame in (keep[keep >= 0] // n).unbind():
            found[int(frame)] += 1
        return found

    @property
    def shared(self) -> Tensor:
        """Whether each input token shares its output with other frames, bool `[f, n]`."""
        over = (self.sizes > 0).sum(1) > 1  # [m]
        dst = self.plan.dst[0].cpu()
        return (over[dst.clamp_min(0)] & (dst >= 0)).view(self.frames, -1)


def trace_clip(zoo: Method, model: Any, frames: Tensor) -> ClipTrace:
    """Apply a recipe to the frames of a clip; the model is left without it.

    A step over frames keeps f times what `keep` means for a frame, as in an attached model.

    Args:
        zoo: the recipe.
        model: a vision transformer in eval mode.
        frames: `[f, 3, h, w]`, preprocessed.

    Raises:
        UnsupportedModelError: no adapter supports this model.
        AttachError: the recipe and the model do not go together.
        MissingEvidenceError: the recipe needs what a tower does not show.
        BadArgumentError: the recipe has a step after the last block and others.
    """
    steps = zoo.recipe.steps
    if all(step.stage.name not in LAST for step in steps):
        return _inside(trace_tokens(zoo, model, frames), len(frames))
    if len(steps) > 1:
        raise BadArgumentError(
            f"this recipe has steps at {', '.join(repr(step.stage) for step in steps)}; of a tower alone "
            "one step after the last block can be shown, or steps inside: choose a recipe with one"
        )
    return _at_the_end(zoo.recipe, model, frames)


def _inside(trace: Trace, f: int) -> ClipTrace:
    """The token maps of the frames of a batch, put side by side."""
    n = trace.grid[0] * trace.grid[1]
    plan = TokenMap.identity(f, n)
    if trace.plans:
        plan = without_prefix(trace.plans[max(trace.plans)], trace.prefix)
    rows = torch.arange(f)[None]
    return ClipTrace(map_of_videos(plan, rows), f, trace.grid, trace.small)


def _at_the_end(recipe: Recipe, model: Any, frames: Tensor) -> ClipTrace:
    """The token map of a step after the last block."""
    (step,) = recipe.steps
    f = len(frames)
    each = _evidence(step.needs - {"frames"}, model, frames)
    n = each.x.shape[1]
    rows, keep = torch.arange(f)[None], recipe.wanted(n)
    if "frames" not in step.needs:
        check_needs(step, each)
        plan = reduce_patches(step, Tokens.of(each.x), each, keep)[1]
        plan = map_of_videos(plan, rows)
        starts: tuple[int, ...] = ()
    else:
        clip = evidence_of_videos(each, rows)
        check_needs(step, clip)
        plan = reduce_patches(step, Tokens.of(clip.x), clip, f * keep)[1]
        starts = segment_starts(step, clip)
    grid = each.grid if "grid" in each.provides else grid_of(n, frames.shape[2:])
    return ClipTrace(plan, f, grid, starts=starts)


def segment_starts(step: Step, evidence: Evidence) -> tuple[int, ...]:
    """Return the first frame of each segment into which the parts of a step cut a clip; (): they do not.

    Args:
        step: over frames.
        evidence: of one clip.
    """
    for part in walk(step.matcher):
        if isinstance(part, Segmenter):
            segment = part.segment(evidence)[0]  # [f]
            return tuple(f for f in range(len(segment)) if f == 0 or segment[f] != segment[f - 1])
    return ()


def _evidence(needs: frozenset[str], model: Any, images: Tensor) -> Evidence:
    """What the last block shows of images to a step after it that needs this."""
    watch = _Watch(needs | {"x"})
    recipe = Recipe(Step(Stage.FEATURES, Once(), watch, Identity()), keep=0.5)
    with Method(recipe).attach(model), torch.inference_mode():
        model(images)
    return watch.seen[0]


@dataclass(frozen=True)
class _Watch(Matcher):
    """Notes the evidence of a pass; which tokens stay does not matter."""

    needs: frozenset[str]
    seen: list[Evidence] = field(default_factory=list[Evidence])

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return 1

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        self.seen.append(evidence)
        b, n = evidence.x.shape[:2]
        index = torch.arange(n, device=evidence.x.device)
        return TokenMap(index[:keep].expand(b, -1), index.where(index < keep, -1).expand(b, -1))
