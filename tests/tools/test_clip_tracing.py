"""Of a clip is recorded what a recipe does to the tokens of all its frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.models import VIT, images, traces
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.hooks.reduction import Event
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import ReceivedAttention
from tokenzoo.token_map import TokenMap
from tokenzoo.tools.clip_tracing import ClipTrace, trace_clip
from tokenzoo.tools.tracing import trace_tokens

N = 196


def attended(stage: Stage) -> tokenzoo.zoo.Method:
    """The most attended tokens of each frame."""
    match = SelectAssign(TopK(ReceivedAttention()), Drop())
    return tokenzoo.build(Recipe(Step(stage, Once(), match, Identity()), keep=0.25))


@pytest.fixture(scope="module")
def vit():
    return VIT.build()


@pytest.fixture(scope="module")
def clip(vit) -> Tensor:
    """Frames of two images, with noise."""
    x = images(vit)[[0, 0, 0, 1, 1]]
    return x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def leaving(vit, clip) -> list[Event]:
    """The reduction of the features that leave the tower."""
    events: list[Event] = []
    with attended(Stage.FEATURES).attach(vit, on_reduce=events.append), torch.inference_mode():
        vit(clip)
    return events


def test_a_step_over_frames_gets_the_features_of_the_whole_clip(vit, clip, leaving) -> None:
    x = leaving[0].before.x[:, 1:].flatten(0, 1)[None]  # [1, f * n, c]
    zoo = tokenzoo.build("prunevid", keep=49)
    wanted = tokenzoo.build("prunevid", keep=5 * 49).reduce(x, frames=5).plan
    found = trace_clip(zoo, vit, clip)
    assert torch.equal(found.plan.dst, wanted.dst)
    assert torch.equal(found.plan.keep, wanted.keep)
    assert (found.tokens, found.frames, found.grid) == (5 * 49, 5, (14, 14))
    assert traces(vit) == []


def test_a_step_after_the_projector_sees_the_attention_of_the_last_block(vit, clip, leaving):
    plan = leaving[0].plan
    found = trace_clip(attended(Stage.PROJECTED), vit, clip)
    kept = found.plan.dst[0].view(5, N) >= 0
    assert torch.equal(kept, plan.dst[:, 1:] >= 0)
    assert found.of_frames == [49] * 5


def test_a_recipe_inside_the_tower_works_frame_by_frame(vit, clip) -> None:
    zoo = tokenzoo.build("tome", keep=0.5)
    trace = trace_tokens(zoo, vit, clip)
    last = trace.plans[max(trace.plans)].dst[:, 1:] - 1  # [f, n]
    found = trace_clip(zoo, vit, clip)
    assert torch.equal(found.plan.dst[0].view(5, N), last + 98 * torch.arange(5)[:, None])
    assert found.of_frames == [98] * 5
    assert not found.shared.any()
    assert trace_clip(tokenzoo.build("downsample", keep=49), vit, clip).small is not None


def test_steps_in_the_blocks_come_before_one_over_frames(vit, clip) -> None:
    """What is merged within a frame stays together over time."""
    found = trace_clip(tokenzoo.build("evoprune_over_time", keep=49), vit, clip)
    inside = trace_tokens(tokenzoo.build("evoprune", keep=98, start=1, every=2), vit, clip)
    groups = inside.plans[max(inside.plans)].dst[:, 1:] - 1  # [f, n]
    assert found.tokens == 5 * 49
    for frame, dst in zip(groups, found.plan.dst[0].view(5, N), strict=True):
        assert len(torch.stack([frame, dst]).unique(dim=1)[0]) == 98


def test_segments_begin_where_the_recipe_cuts(vit, clip) -> None:
    zoo = tokenzoo.build("fastvid", keep=49, segments=2, threshold=-1)
    assert trace_clip(zoo, vit, clip).starts == (0, 3)


def test_the_counts_of_a_clip() -> None:
    """Two frames of three tokens: one is shared, one is merged within its frame, one is dropped."""
    plan = TokenMap(torch.tensor([[0, 2, 3, -1]]), torch.tensor([[0, -1, 1, 2, 2, 0]]))
    trace = ClipTrace(plan, 2, (1, 3))
    assert trace.sizes.tolist() == [[1, 1], [1, 0], [0, 2], [0, 0]]
    assert trace.shared.tolist() == [[True, False, False], [False, False, True]]
    assert (trace.of_frames, trace.tokens) == ([2, 1], 4)


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("holitom", {"layer": 2}, BadArgumentError, r"steps at Stage\.PROJECTED, Stage\.LLM\(2\)"),
        ("fastv", {}, AttachError, r"works at Stage\.LLM"),
    ],
)
def test_what_a_tower_alone_cannot_show(vit, clip, name, options, error, text) -> None:
    with pytest.raises(error, match=text):
        trace_clip(tokenzoo.build(name, **options), vit, clip)
