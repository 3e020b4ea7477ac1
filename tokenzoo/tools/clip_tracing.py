"""Apply a recipe to the frames of a clip, and record which tokens share an output, for pictures.

trace = trace_clip(tokenzoo.build("holitom"), vit, frames)         # [f, 3, h, w], preprocessed
trace.plan                                                         # of all f * n tokens

A tower sees each frame alone. Steps in its blocks work frame by frame. A step after the last block works on
the tokens that leave the tower, with the evidence of that block: over the whole clip if it needs frames,
otherwise in each frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.reduction import Event
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
        BadArgumentError: the recipe has steps elsewhere, or several after the last block.
    """
    stages = [step.stage for step in zoo.recipe.steps]
    if all(stage.name not in LAST for stage in stages):
        return _inside(trace_tokens(zoo, model, frames), len(frames))
    if stages[-1].name not in LAST or any(stage.name != "block" for stage in stages[:-1]):
        raise BadArgumentError(
            f"this recipe has steps at {', '.join(map(repr, stages))}; of a tower alone can be shown steps "
            "in its blocks, and one after them: choose a recipe of such"
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
    """The token map of a step after the last block, and of those in the blocks before it."""
    step, f, rows = recipe.steps[-1], len(frames), torch.arange(len(frames))[None]
    seen = _features(recipe, model, frames)
    n = seen.inside.tokens
    keep, starts = recipe.wanted(n), ()
    if "frames" not in step.needs:
        plan = map_of_videos(_plan(step, seen.evidence, keep), rows)
    else:
        clip = evidence_of_videos(seen.evidence, rows)
        plan, starts = _plan(step, clip, f * keep), segment_starts(step, clip)
    plan = map_of_videos(seen.inside, rows).then(plan)
    return ClipTrace(plan, f, seen.grid or grid_of(n, frames.shape[2:]), starts=starts)


def _plan(step: Step, evidence: Evidence, keep: int) -> TokenMap:
    """The token map of a step, checked for what it needs."""
    check_needs(step, evidence)
    tokens = Tokens.of(evidence.x, mass=evidence.mass)
    return reduce_patches(step, tokens, evidence, min(keep, evidence.x.shape[1]))[1]


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


@dataclass(frozen=True)
class _Features:
    """What leaves the tower: evidence of its tokens, the token map of the blocks, and the first grid."""

    evidence: Evidence
    inside: TokenMap
    grid: tuple[int, int] | None


def _features(recipe: Recipe, model: Any, images: Tensor) -> _Features:
    """Run a tower with the steps of a recipe before the last, and note what that one would get."""
    *inner, last = recipe.steps
    watch = _Watch((last.needs - {"frames"}) | {"x"})
    noting = Step(Stage.FEATURES, Once(keep=0.5), watch, Identity())
    keep = 1.0 if recipe.keep is None else recipe.keep
    probe = Recipe(*inner, noting, keep=keep, proportional_attention=recipe.proportional_attention)
    plans: list[TokenMap] = []

    def note(event: Event) -> None:
        if event.stage == "block":
            plans.append(event.plan if not plans else plans.pop().then(event.plan))

    with Method(probe).attach(model, on_reduce=note) as attached, torch.inference_mode():
        model(images)
        prefix, grid_of_tokens = attached.adapter.prefix, attached.adapter.grid
    (evidence,) = watch.seen
    b, n = evidence.x.shape[:2]
    inside = TokenMap.identity(b, n)
    if plans:
        inside = without_prefix(plans[0], prefix)
    return _Features(evidence, inside, grid_of_tokens(inside.tokens))


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
