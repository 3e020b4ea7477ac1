"""What the options of `attach` open, and `paused()`: each pass gives what it should."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import tokenzoo
from tests.adapters.models import DINO_REG, REG_GAP, VIT, Case, gap, images, traces
from tests.hooks.running import gradients, run, same, tiny
from tokenzoo import Evidence, Matcher, Recipe, Stage, Step, TokenMap, mergers, schedules
from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.hooks.reduction import Event


@pytest.mark.parametrize(("name", "when"), [("evoprune", "eval"), ("downsample", "train")])
def test_paused_or_in_the_other_mode_it_is_the_bare_model_bit_for_bit(name: str, when: Any) -> None:
    model = VIT.build()
    x = images(model)
    bare, bare_gradients = run(model, x), gradients(model, x)
    with tokenzoo.build(name, keep=0.25).attach(model) as always:
        reduced, reduced_gradients = run(model, x), gradients(model, x)
        counts = always.counts
    assert gap(reduced, bare) > 1e-3
    assert set(reduced_gradients) == {name for name, _ in model.named_parameters()}
    attached = tokenzoo.build(name, keep=0.25).attach(model, when=when)

    def check(active: bool) -> None:
        assert attached.active == active
        assert torch.equal(run(model, x), reduced if active else bare)
        assert attached.counts == (counts if active else (196,) * 8)
        assert same(gradients(model, x), reduced_gradients if active else bare_gradients)

    for training in (True, False, True):
        model.train(training)
        check(active=training == (when == "train"))
        with attached.paused():
            with pytest.raises(ArithmeticError), attached.paused():
                raise ArithmeticError
            check(active=False)  # the outer one is not over
    with attached.paused():
        attached.detach()
        assert torch.equal(run(model, x), bare)
    assert traces(model) == []


def test_nothing_is_recorded_restored_or_told_while_paused() -> None:
    model = tiny()
    x = images(model)
    told: list[Event] = []
    attached = tokenzoo.build("tome", keep=5).attach(
        model, trace=True, restore=True, debug=True, on_reduce=told.append
    )
    with attached.paused():
        x[1, 0, 0, 0] = torch.nan  # debug looks where something is reduced
        run(model, x)
        for name in ("record", "mass"):
            with pytest.raises(AttachError, match="nothing was reduced"):
                getattr(attached, name)
        with torch.no_grad():
            _, (features,) = model.forward_intermediates(x, indices=[1])
        assert features.shape == (2, 48, 4, 4)
    assert told == []


def test_a_pass_that_has_begun_is_finished_as_it_began() -> None:
    model = VIT.build()
    x = images(model)
    attached = tokenzoo.build("tome", keep=50).attach(model)
    expected = run(model, x)
    paused = attached.paused()
    handle = model.blocks[3].register_forward_hook(lambda *_: paused.__enter__() and None)
    assert torch.equal(run(model, x), expected)
    assert not attached.active
    handle.remove()
    paused.__exit__(None, None, None)
    assert torch.equal(run(model, x), expected)


def test_paused_is_for_all_threads() -> None:
    """It is about the model, as `detach` is: a compiled model could not ask which thread it is in."""
    model = tiny()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build("tome", keep=5).attach(model)
    inside, done = threading.Event(), threading.Event()

    def pause() -> None:
        with attached.paused():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=pause)
    thread.start()
    inside.wait(10)
    seen = [run(model, x)]
    with attached.paused():
        done.set()
        thread.join()
        seen.append(run(model, x))  # whichever began first: as long as one lasts
    seen.append(run(model, x))
    assert [torch.equal(out, bare) for out in seen] == [True, True, False]


# ------------------------------ restore; that it changes no output: test_hooks_of_others.py


@dataclass(frozen=True)
class MergeAndDrop(Matcher):
    """Of the first n - keep tokens every second one is dropped, the others join the first that stays."""

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return 1

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        b, n = evidence.x.shape[:2]
        place = torch.arange(n).expand(b, n)
        gone = place[:, : n - keep]
        return TokenMap.from_slots(place[:, n - keep :], gone, torch.where(gone % 2 > 0, 0, -1), n)


BOTH = Recipe(Step(Stage.BLOCK, schedules.Mean(), MergeAndDrop(), mergers.WeightedMean()))


@pytest.mark.parametrize(
    ("recipe", "case"),
    [("evoprune", VIT), ("tome", REG_GAP), ("random", REG_GAP), (BOTH, VIT)],
    ids=["evoprune", "tome", "random", "merges and drops"],
)
def test_merged_tokens_share_features_and_dropped_ones_keep_theirs(recipe: Any, case: Case) -> None:
    """Each restored token is looked up by hand."""
    model, keep = case.build(), 100 if recipe is BOTH else 40
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    events: list[Event] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    zoo = tokenzoo.build(recipe, keep=keep)
    attached = zoo.attach(model, trace=True, restore=True, on_reduce=events.append)
    sizes: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: leaving.append(out))
        block.mlp.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    entering.clear()
    run(model, images(model))
    # The blocks themselves work on few tokens, and their counts are about those.
    assert sizes == [case.prefix + n for n in attached.counts]
    assert attached.counts == attached.plan().blocks

    record, expected = attached.record, leaving[-1].clone()
    merged = dropped = 0
    for image in range(2):
        for token in range(record.tokens):
            now = token
            for event in events:
                now = int(event.plan.dst[image, now])
                if now < 0:
                    expected[image, token] = entering[event.block][image, token]
                    dropped += 1
                    break
            else:
                home = int(record.keep[image, now])
                expected[image, token] = leaving[-1][image, home]
                merged += home != token
            assert now == int(record.dst[image, token])
    assert torch.equal(leaving[-1], expected)
    assert merged + dropped == 2 * (case.grid[0] * case.grid[1] - keep)
    assert (merged > 0) == (recipe != "random")
    # A token that is dropped takes its members with it.
    assert dropped > 2 * 48 if recipe is BOTH else dropped == 0 or not merged
    assert {tuple(t.shape) for t in (*entering, *leaving)} == {tuple(expected.shape)}
    assert all(not torch.equal(a, b) for a, b in zip(entering, leaving, strict=True))


def test_without_restore_maps_are_refused_in_every_form() -> None:
    """A quarter of the tokens has just the numbers of a grid with a quarter of the channels."""
    model = DINO_REG.build()
    x = images(model)
    attached = tokenzoo.build("tome", keep=49).attach(model)
    with torch.no_grad():
        _, features = model.forward_intermediates(x, indices=[0, 7], output_fmt="NLC")
        assert [y.shape[1] for y in features] == [attached.counts[0], 49]
        for options in ({}, {"output_dict": True}, {"return_prefix_tokens": True}):
            with pytest.raises(AttachError, match=r"restore=True, or use output_fmt='NLC'"):
                model.forward_intermediates(x, indices=[7], **options)


# Without `restore`, of every model: tests/conformance/test_training.py.


def test_checkpointing_recomputes_the_restored_tokens_and_changes_no_gradient() -> None:
    """Two forwards, then one backward: the blocks run again when both passes are over."""
    model = VIT.build(depth=4, dynamic_img_size=True).train()
    batches = [images(model), images(model, seed=1, size=(160, 160))]
    zoo = tokenzoo.build("evoprune", keep=60)
    with zoo.attach(model):
        expected = gradients(model, *batches)
    attached = zoo.attach(model, restore=True, trace=True)
    assert same(gradients(model, *batches), expected, 1e-5)
    record, calls = attached.record, Counter[int]()
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_pre_hook(lambda *_, index=index: calls.update([index]))
    model.set_grad_checkpointing()
    assert same(gradients(model, *batches), expected, 1e-5)
    assert calls == dict.fromkeys(range(4), 4)
    assert torch.equal(attached.record.dst, record.dst)
    assert attached.counts == attached.plan(100).blocks


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused_with_all_tokens_restored() -> None:
    model = VIT.build(depth=4).train()
    x = images(model)
    tokenzoo.build("evoprune", keep=60).attach(model, restore=True)
    expected = gradients(model, x)
    model.set_grad_checkpointing()
    timm.layers.set_reentrant_ckpt(True)
    try:
        with pytest.raises(AttachError, match=r"use_reentrant=True \(use use_reentrant=False\)"):
            gradients(model, x.clone().requires_grad_())
        assert _get_current_function_mode_stack() == []
        # Without gradients it checkpoints nothing, and need not be tested.
        assert run(model, x).shape == (2, 10)
    finally:
        timm.layers.set_reentrant_ckpt(False)
    assert same(gradients(model, x), expected, 1e-5)


def test_debug_names_block_image_and_token() -> None:
    model = VIT.build()
    x = images(model)
    bad = x.clone()
    bad[1, 0, 3, 3] = torch.nan  # the attention spreads it over the whole image
    zoo = tokenzoo.build("evoprune", keep=40)
    with zoo.attach(model):  # without debug they never raise
        expected = run(model, x)
        assert run(model, bad)[1].isnan().all()
    attached = zoo.attach(model, debug=True)
    assert torch.equal(run(model, x), expected)
    with pytest.raises(AttachError) as caught:
        run(model, bad)
    for word in ("197 tokens with NaN or infinite", "reach", "blocks.1;", "token 0 of image 1"):
        assert word in str(caught.value)
    assert _get_current_function_mode_stack() == []

    def one_token(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[1, 23, 0] = torch.inf
        return output

    handle = model.blocks[5].attn.register_forward_hook(one_token)
    with pytest.raises(AttachError, match=r"1 tokens.* blocks\.5; .*token 23 of image 1"):
        run(model, x)
    handle.remove()
    assert torch.equal(run(model, x), expected)
    with attached.paused():
        assert run(model, bad)[1].isnan().all()


@dataclass(frozen=True)
class Wrong(Matcher):
    """Says something that cannot be: a token kept twice, or one that there is not."""

    how: str

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return 1

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        b, n = evidence.x.shape[:2]
        place = torch.arange(n).expand(b, n)
        gone = torch.zeros_like(place[:, keep:])
        plan = TokenMap.from_slots(place[:, :keep], place[:, keep:], gone, n)
        if self.how == "twice":
            return TokenMap(plan.keep.clamp(max=keep - 2), plan.dst)
        return TokenMap(plan.keep, torch.where(plan.dst == 0, keep, plan.dst))


@pytest.mark.parametrize(
    ("how", "words"), [("twice", "not in its own slot"), ("outside", "indices outside -1")]
)
def test_debug_finds_plans_that_contradict_themselves(how: str, words: str) -> None:
    model = tiny()
    step = Step(Stage.BLOCK, schedules.Skip(), Wrong(how), mergers.WeightedMean())
    tokenzoo.build(Recipe(step, keep=5)).attach(model, debug=True)
    with pytest.raises(BadArgumentError, match=words):
        run(model, images(model))


@pytest.mark.parametrize(("name", "restore"), [("evoprune", False), ("random", True)])
def test_every_reduction_is_told(name: str, restore: bool) -> None:
    model = REG_GAP.build()
    x = images(model)
    events: list[Event] = []
    attached = tokenzoo.build(name, keep=30).attach(
        model, trace=True, restore=restore, on_reduce=events.append
    )
    assert events == []  # the proof is no pass
    run(model, x)
    planned = attached.plan().blocks
    before = (256, *planned[:-1])
    reducing = [i for i in range(8) if planned[i] < before[i]]
    assert [event.block for event in events] == reducing
    mass = torch.ones(2, 260)
    for event in events:
        n, m = 4 + before[event.block], 4 + planned[event.block]
        assert event.before.x.shape == (2, n, 48)
        assert event.after.x.shape == (2, m, 48)
        assert (event.plan.tokens, event.plan.kept) == (n, m)
        event.plan.check()
        assert torch.equal(event.before.mass, mass)
        mass = event.plan.sum(mass)
        assert torch.equal(event.after.mass, mass)
        assert torch.equal(event.after.x[:, :4], event.before.x[:, :4])
    record = reduce(TokenMap.then, [event.plan for event in events])
    assert torch.equal(mass, attached.mass)
    assert torch.equal(record.keep, attached.record.keep)
    assert torch.equal(record.dst, attached.record.dst)
    run(model, x)
    assert len(events) == 2 * len(reducing)


def test_an_error_in_on_reduce_is_the_callers_own() -> None:
    model, wrong = tiny(), [True]

    def told(event: Event) -> None:
        if wrong:
            raise ArithmeticError(wrong.pop())

    attached = tokenzoo.build("evoprune", keep=9, start=0).attach(model, on_reduce=told)
    with pytest.raises(ArithmeticError):
        run(model, images(model))
    assert _get_current_function_mode_stack() == []
    run(model, images(model))
    assert attached.counts == attached.plan().blocks


def test_a_summary_says_what_is_attached_and_what_is_not_the_default() -> None:
    model = VIT.build()
    attached = tokenzoo.build("evoprune", keep=50).attach(model)
    before = attached.summary().splitlines()
    assert before == [
        "model       VisionTransformer, by TimmViT",
        f"step        {attached.recipe.steps[0]!r}",
        "keep        50",
        "attention   proportional",
        "needs       received_attention, x",
        *str(attached.plan()).splitlines(),
    ]
    run(model, images(model))
    last = f"last pass   {', '.join(map(str, attached.counts))}"
    assert attached.summary().splitlines() == [*before, last]
    assert "image       100 patch tokens" in attached.summary(100)
    attached.detach()
    assert attached.summary().splitlines()[0].endswith("by TimmViT (detached)")
    attached = tokenzoo.build("tome", flops=0.75).attach(
        model, when="train", trace=True, restore=True, debug=True, on_reduce=print
    )
    lines = attached.summary().splitlines()
    names = {line.split()[0] for line in lines}
    assert names >= {"when", "trace", "restore", "debug", "on_reduce"}
    assert {"when        'train'", "flops       0.75"} <= set(lines)
    assert f"keep        {attached.plan().features}" in lines
