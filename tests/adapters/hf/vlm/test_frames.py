"""Fewer frames inside the tower: what is left of them is what these frames are in the bare model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import NONE, Batch, answer, entering, logits, remains
from tests.adapters.hf.vlm.over_frames import over_frames
from tests.adapters.models import gap
from tests.conformance.chats import FLOWER, whole
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, BudgetError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.reduction import Event
from tokenzoo.matchers import Bipartite, Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.parts import Scorer
from tokenzoo.schedules import Share, Skip
from tokenzoo.scorers import Similarity

FILMS = Batch(
    ("user: <video> what is this ?", NONE, "see <video> .", "<image> ?"),
    ((), (), (), (FLOWER,)),
    (hf.video(4), hf.video(4, of=1)),
)


@dataclass(frozen=True)
class Odd(Scorer):
    """Frames 1, 3, 5, ... first."""

    needs = frozenset({"x"})

    def score(self, evidence: Evidence) -> Tensor:
        """Return 0, 1, 0, 1, ... `[b, n]`."""
        b, n = evidence.x.shape[:2]
        return (torch.arange(n) % 2.0).expand(b, n)


DROP = Step(Stage.FRAMES(2), Share(0.5), SelectAssign(TopK(Odd()), Drop()), Identity())
MERGE = Step(Stage.FRAMES(1), Share(0.5), Bipartite(Similarity("x")), WeightedMean())
AGAIN = Step(Stage.FRAMES(3), Share(0.5), Bipartite(Similarity("x")), WeightedMean())
(LAST,) = over_frames(0.25).steps
(INSIDE,) = tokenzoo.build("evoprune", start=1).recipe.steps


def tokens(model: Any, given: Any) -> Tensor:
    """What the language model reads in place of the video of the first row."""
    with entering(model) as calls:
        logits(model, given)
    return calls[0]["inputs_embeds"][0]


def test_frames_that_stay_are_those_of_the_bare_model() -> None:
    """Half of the frames with all their tokens: as many as a half of each frame."""
    model = whole("llava_onevision")
    given = Batch(FILMS.prompts[:1], ((),), FILMS.videos[:1]).given(model)
    (last,) = over_frames(0.5).steps
    bare = tokens(model, given)
    with tokenzoo.build(Recipe(DROP, last, keep=0.5)).attach(model):
        found = tokens(model, given)
    places = (given["input_ids"][0] == hf.VIDEO).nonzero()[:, 0]
    stays = torch.ones(len(bare), dtype=torch.bool)
    for frame in (0, 2):
        stays[places[frame * 16 : (frame + 1) * 16]] = False
    assert found.shape == bare[stays].shape
    assert gap(found, bare[stays]) <= 1e-5


@pytest.mark.parametrize("steps", [(MERGE, LAST), (MERGE, INSIDE, LAST), (MERGE, AGAIN, LAST)])
def test_videos_get_as_many_tokens_as_planned(steps: tuple[Step, ...]) -> None:
    """In a batch as alone, with an image too, in `generate`; detached, the model is bare."""
    model = whole("llava_onevision")
    given, events = FILMS.given(model), list[Event]()
    bare = logits(model, given)
    method = tokenzoo.build(Recipe(*steps, keep=0.25))
    with method.attach(model, on_reduce=events.append) as attached:
        found = logits(model, given)
        merged = [event for event in events if event.stage == "frames"]
        counts = [(event.before.x.shape[1], event.after.x.shape[1]) for event in merged]
        assert counts == [(4, 2), (2, 1)][: len(steps) - 1 - (INSIDE in steps)]
        plan = attached.plan(64, frames=4)
        assert plan.frames_left == counts[-1][1]
        assert plan.flops < attached.plan(64).flops
        short = attached.shorten(dict(given))["input_ids"]
        each = 4 * (16 if INSIDE in steps else 4) + 1  # of 64 tokens, or 16 that are pooled
        assert (short == hf.VIDEO).sum(1).tolist() == [each, 0, each, 0]
        alone = torch.stack([logits(model, row)[0, -1] for row in FILMS.rows(model)])
        assert gap(found[:, -1], alone) <= 1e-4
        assert torch.equal(
            answer(model, given), torch.cat([answer(model, row) for row in FILMS.rows(model)])
        )
    assert torch.equal(logits(model, given), bare)
    assert remains(model) == []


def test_all_tokens_are_the_bare_model() -> None:
    """As many tokens as there are need all frames."""
    model = whole("llava_onevision")
    given = FILMS.given(model)
    bare = logits(model, given)
    with tokenzoo.build(Recipe(MERGE, LAST, keep=1.0)).attach(model):
        assert torch.equal(logits(model, given), bare)


@pytest.mark.parametrize(
    ("steps", "kind", "text"),
    [
        ((MERGE,), "llava_onevision", "no step over frames comes after the projector"),
        ((MERGE, LAST), "qwen2_vl", "can be reduced at"),
        (
            (Step(Stage.FRAMES, Share(), MERGE.matcher, MERGE.merger), LAST),
            "llava_onevision",
            "names the block before which it is",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    steps: tuple[Step, ...], kind: str, text: str
) -> None:
    with pytest.raises(AttachError, match=text):
        tokenzoo.build(Recipe(*steps, keep=0.5)).attach(whole(kind))


def test_frames_are_merged_before_their_tokens() -> None:
    early = replace(INSIDE, schedule=Skip(0, 1))
    with pytest.raises(BudgetError, match="start the schedule of the blocks at block 1"):
        tokenzoo.build(Recipe(MERGE, early, LAST, keep=0.25)).attach(whole("llava_onevision"))
