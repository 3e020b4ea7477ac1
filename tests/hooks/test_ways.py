"""The ways of running that the options of `attach` and `build` open: each equals what it should be."""

from __future__ import annotations

import copy
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torchvision.models import VisionTransformer

import tokenzoo
from tests.adapters.models import (
    GAP,
    REG_GAP,
    SIGLIP,
    VIT,
    Case,
    gap,
    images,
    randomise,
    traces,
)
from tests.adapters.models import one_thread as one_thread
from tokenzoo import (
    Evidence,
    Matcher,
    Recipe,
    Stage,
    Step,
    TokenMap,
    matchers,
    mergers,
    schedules,
    scorers,
)
from tokenzoo.errors import AttachError, BadArgumentError, BudgetError
from tokenzoo.hooks.reduction import Event


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def gradients(model: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    """Of several forwards and one backward."""
    model.zero_grad()
    outputs = [model(x) for x in batches]
    torch.stack([out.square().sum() for out in outputs]).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return one.keys() == other.keys() and all(gap(one[k], other[k]) <= tolerance for k in one)


@contextmanager
def compiler() -> Iterator[Callable[..., Any]]:
    """torch.compile, with nothing of others in its caches, and nothing left in them."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        yield lambda model, backend="eager", **options: torch.compile(
            model, backend=backend, **{"fullgraph": True, **options}
        )
    finally:
        torch._dynamo.reset()


def tiny(case: Case = VIT, **options: Any) -> Any:
    """Two blocks and 16 patches: quick to compile."""
    return case.build(**{"depth": 2, "img_size": 64, **options})


# ------------------------------------------------------------------------------------ paused


@pytest.mark.parametrize("case", [VIT, GAP, SIGLIP], ids=lambda case: case.pooling)
@pytest.mark.parametrize("name", ["evoprune", "tome", "downsample"])
def test_paused_is_the_bare_model_bit_for_bit(case: Case, name: str) -> None:
    model = case.build()
    x = images(model)
    bare = run(model, x)
    whole = (case.grid[0] * case.grid[1],) * 8
    attached = tokenzoo.build(name, keep=0.16 if case is GAP else 0.25).attach(model)
    reduced = run(model, x)
    counts = attached.counts
    assert attached.active
    assert gap(reduced, bare) > 1e-3
    with attached.paused():
        assert not attached.active
        assert torch.equal(run(model, x), bare)
        assert attached.counts == whole
        with attached.paused():
            assert torch.equal(run(model, x), bare)
        assert not attached.active  # the outer one is not over
        assert torch.equal(run(model, x), bare)
    assert attached.active
    assert torch.equal(run(model, x), reduced)
    assert attached.counts == counts

    with pytest.raises(ArithmeticError), attached.paused():
        raise ArithmeticError
    assert attached.active
    assert torch.equal(run(model, x), reduced)
    with attached.paused():
        attached.detach()
        assert torch.equal(run(model, x), bare)
    assert traces(model) == []
    assert torch.equal(run(model, x), bare)


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


@pytest.mark.parametrize(("name", "options"), [("evoprune", {"start": 0}), ("downsample", {})])
def test_a_compiled_model_can_be_paused(name: str, options: dict[str, Any]) -> None:
    """No stale graph: each state has its own, and the first is found again."""
    model = tiny()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build(name, keep=8, **options).attach(model)
    reduced = run(model, x)
    assert gap(reduced, bare) > 1e-3
    with compiler() as compiled:
        fast = compiled(model, "aot_eager")
        for _ in range(2):
            assert gap(run(fast, x), reduced) <= 1e-5
            assert attached.counts == (8, 8)
            with attached.paused():
                assert gap(run(fast, x), bare) <= 1e-5
                assert attached.counts == (16, 16)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_paused_is_for_all_threads() -> None:
    """It is about the model, as `detach` is: a compiled model could not ask which thread it is in."""
    model = tiny()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build("tome", keep=5).attach(model)
    reduced = run(model, x)
    seen: list[Tensor] = []
    inside, done = threading.Event(), threading.Event()

    def pause() -> None:
        with attached.paused():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=pause)
    thread.start()
    inside.wait(10)
    seen.append(run(model, x))
    with attached.paused():
        done.set()
        thread.join()
        seen.append(run(model, x))  # whichever began first: as long as one lasts
    seen.append(run(model, x))
    assert [torch.equal(out, bare) for out in seen] == [True, True, False]
    assert torch.equal(seen[2], reduced)


# -------------------------------------------------------------------------------------- when


@pytest.mark.parametrize("name", ["evoprune", "tome", "downsample"])
@pytest.mark.parametrize("when", ["eval", "train"])
def test_only_in_one_mode(name: str, when: str) -> None:
    model = VIT.build()
    x = images(model)
    bare, bare_gradients = run(model, x), gradients(model, x)
    always = tokenzoo.build(name).attach(model)
    reduced, reduced_gradients = run(model, x), gradients(model, x)
    always.detach()

    attached = tokenzoo.build(name).attach(model, when=when)
    assert set(reduced_gradients) == {name for name, _ in model.named_parameters()}
    for training in (True, False, True):
        model.train(training)
        works = training == (when == "train")
        assert attached.active == works
        assert torch.equal(run(model, x), reduced if works else bare)
        assert attached.counts == (attached.plan().blocks if works else (196,) * 8)
        assert same(gradients(model, x), reduced_gradients if works else bare_gradients)
        with attached.paused():
            assert not attached.active
            assert torch.equal(run(model, x), bare)
    attached.detach()
    assert traces(model) == []


@pytest.mark.parametrize("name", ["tome", "downsample"])
def test_a_compiled_model_follows_its_mode(name: str) -> None:
    model = tiny()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build(name, keep=4).attach(model, when="eval")
    reduced = run(model, x)
    with compiler() as compiled:
        fast = compiled(model)
        for training in (False, True, False, True):
            model.train(training)
            out = run(fast, x)
            assert gap(out, bare if training else reduced) <= 1e-5
            assert attached.counts[-1] == (16 if training else 4)


@pytest.mark.parametrize("bad", ["never", "Train", None, True, ["eval"]])
def test_modes_that_there_are_not(bad: Any) -> None:
    model = tiny()
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.build("tome").attach(model, when=bad)
    assert f"when={bad!r}; it must be 'always', 'eval' or 'train'" in str(caught.value)
    assert traces(model) == []


# ----------------------------------------------------------------------------------- restore

RESTORED = (VIT, GAP, SIGLIP, REG_GAP)


@pytest.mark.parametrize("case", RESTORED, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["evoprune", "tome", "random", "uniform"])
def test_restored_features_change_no_logit(case: Case, name: str) -> None:
    model = case.build()
    x = images(model)
    bare = run(model, x)
    zoo = tokenzoo.build(name, keep=0.2)
    with zoo.attach(model):
        expected = run(model, x)
    assert gap(expected, bare) > 1e-3
    sizes: list[tuple[int, int]] = []
    with zoo.attach(model, restore=True) as attached:
        for block in model.blocks:
            block.attn.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
            block.mlp.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
        assert gap(run(model, x), expected) <= 1e-5
        # The blocks themselves have worked on few tokens, and their counts are about those.
        counts = attached.plan().blocks
        assert attached.counts == counts
        whole = case.grid[0] * case.grid[1]
        steps = [n for pair in zip((whole, *counts), counts, strict=False) for n in pair]
        assert sizes == [case.prefix + n for n in steps]
        with torch.no_grad():
            assert model.forward_features(x).shape == (2, case.prefix + whole, 48)
    assert torch.equal(run(model, x), bare)


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


def whole_features(zoo: tokenzoo.zoo.Method, case: Case) -> tuple[int, int]:
    """Check the restored tokens one by one; returns how many were merged, and how many dropped."""
    model = case.build()
    x = images(model)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    events: list[Event] = []
    attached = zoo.attach(model, trace=True, restore=True, on_reduce=events.append)
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: leaving.append(out))
    entering.clear()
    run(model, x)
    assert {tuple(t.shape) for t in (*entering, *leaving)} == {tuple(entering[0].shape)}

    record = attached.record
    assert record.tokens == entering[0].shape[1]
    expected = leaving[-1].clone()
    now = torch.arange(record.tokens).repeat(2, 1)  # which of the tokens that are left each one is
    merged = dropped = 0
    for event in events:
        for image in range(2):
            for token in range(record.tokens):
                at = int(now[image, token])
                if at >= 0:
                    now[image, token] = event.plan.dst[image, at]
                    if int(now[image, token]) < 0:
                        expected[image, token] = entering[event.block][image, token]
                        dropped += 1
    assert torch.equal(now, record.dst)
    for image in range(2):
        for token in range(record.tokens):
            slot = int(record.dst[image, token])
            if slot >= 0:
                home = int(record.keep[image, slot])
                expected[image, token] = leaving[-1][image, home]
                merged += home != token
    assert torch.equal(leaving[-1], expected)
    # What was dropped stays as it was, and what was kept does not.
    assert all(not torch.equal(a, b) for a, b in zip(entering, leaving, strict=True))
    return merged, dropped


@pytest.mark.parametrize("case", [VIT, REG_GAP], ids=lambda case: case.name)
def test_merged_tokens_share_features_and_dropped_ones_keep_theirs(case: Case) -> None:
    total = 2 * (case.grid[0] * case.grid[1] - 40)
    assert whole_features(tokenzoo.build("evoprune", keep=40), case) == (total, 0)
    assert whole_features(tokenzoo.build("tome", keep=40), case) == (total, 0)
    assert whole_features(tokenzoo.build("random", keep=40), case) == (0, total)


def test_a_token_that_is_dropped_takes_its_members_with_it() -> None:
    step = Step(Stage.BLOCK, schedules.Mean(), MergeAndDrop(), mergers.WeightedMean())
    merged, dropped = whole_features(tokenzoo.build(Recipe(step, keep=100)), VIT)
    assert merged > 0
    assert dropped > 2 * 48  # more than those that were dropped by themselves
    assert merged + dropped == 2 * 96


@pytest.mark.parametrize("case", [VIT, REG_GAP], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["evoprune", "random"])
def test_dense_features_have_the_shapes_of_the_bare_model(case: Case, name: str) -> None:
    model = case.build()
    x = images(model)
    rows, columns = case.grid
    leaving: list[Tensor] = []
    attached = tokenzoo.build(name, keep=40).attach(model, restore=True)
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: leaving.append(out))

    def ask(**options: Any) -> Any:
        leaving.clear()
        with torch.no_grad():
            return model.forward_intermediates(x, indices=[1, 5, 7], **options)

    def patches(tokens: Tensor) -> Tensor:
        return tokens[:, case.prefix :]

    def maps(tokens: Tensor) -> Tensor:
        return patches(tokens).transpose(1, 2).reshape(2, 48, rows, columns)

    last, features = ask()
    assert all(torch.equal(y, maps(leaving[i])) for i, y in zip((1, 5, 7), features, strict=True))
    assert last.shape == (2, case.prefix + rows * columns, 48)
    features = ask(output_fmt="NLC", intermediates_only=True)
    assert [torch.equal(y, patches(leaving[i])) for y, i in zip(features, (1, 5, 7), strict=True)]
    features = ask(norm=True, intermediates_only=True)
    with torch.no_grad():
        for y, i in zip(features, (1, 5, 7), strict=True):
            assert torch.equal(y, maps(nn.Module.__call__(copy.deepcopy(model.norm), leaving[i])))
    features = ask(return_prefix_tokens=True, intermediates_only=True)
    for (y, prefix), i in zip(features, (1, 5, 7), strict=True):
        assert torch.equal(y, maps(leaving[i]))
        assert torch.equal(prefix, leaving[i][:, : case.prefix])
    found = ask(output_dict=True)
    assert [y.shape for y in found["image_intermediates"]] == [(2, 48, rows, columns)] * 3
    with torch.no_grad():
        layers = model.get_intermediate_layers(x, n=[0, 7], reshape=True, norm=True)
    assert [y.shape for y in layers] == [(2, 48, rows, columns)] * 2
    attached.detach()
    with torch.no_grad():
        bare = model.forward_intermediates(x, indices=[0, 7], intermediates_only=True)
    # The first block reduces nothing, so what it gives is exact.
    assert gap(ask(intermediates_only=True, norm=False)[0], bare[0]) > 0
    attached = tokenzoo.build(name, keep=40).attach(model, restore=True)
    with torch.no_grad():
        again = model.forward_intermediates(x, indices=[0, 7], intermediates_only=True)
    assert torch.equal(again[0], bare[0])
    assert gap(again[1], bare[1]) > 1e-3


@pytest.mark.parametrize("name", ["evoprune", "random"])
def test_a_compiled_model_restores(name: str) -> None:
    model = tiny()
    x = images(model)
    tokenzoo.build(name, keep=9, start=0).attach(model, restore=True)
    with torch.no_grad(), compiler() as compiled:
        expected = model.forward_features(x)
        assert gap(compiled(model.forward_features)(x), expected) <= 1e-5


# ------------------------------------------------------------------------ gradient checkpointing


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("name", ["evoprune", "random"])
def test_checkpointing_recomputes_and_changes_no_gradient(name: str, restore: bool) -> None:
    """Two forwards, then one backward: the blocks run again when both passes are over."""
    model = VIT.build(depth=4).train()
    batches = [images(model, seed=i) for i in range(2)]
    calls: Counter[int] = Counter()
    zoo = tokenzoo.build(name, keep=60)
    with zoo.attach(model):
        expected = gradients(model, *batches)
    attached = zoo.attach(model, restore=restore, trace=True)
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_pre_hook(lambda *_, index=index: calls.update([index]))
    assert same(gradients(model, *batches), expected, 1e-5)
    assert set(calls.values()) == {2}
    calls.clear()
    record = attached.record
    model.set_grad_checkpointing()
    outputs = [model(x) for x in batches]
    assert set(calls.values()) == {2}
    torch.stack([out.square().sum() for out in outputs]).sum().backward()
    assert calls == dict.fromkeys(range(4), 4)
    assert torch.equal(attached.record.dst, record.dst)
    assert attached.counts == attached.plan().blocks
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert same(found, expected, 1e-5)
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused(restore: bool) -> None:
    model = VIT.build(depth=4).train()
    x = images(model)
    tokenzoo.build("evoprune", keep=60).attach(model, restore=restore)
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


# -------------------------------------------------------------------------------------- debug


def test_debug_names_block_image_and_token() -> None:
    model = VIT.build()
    x = images(model)
    expected = None
    for debug in (False, True):
        with tokenzoo.build("evoprune", keep=40).attach(model, debug=debug):
            out = run(model, x)
            expected = out if expected is None else expected
            assert torch.equal(out, expected)
    attached = tokenzoo.build("evoprune", keep=40).attach(model, debug=True)

    bad = x.clone()
    bad[1, 0, 3, 3] = torch.nan  # the attention spreads it over the whole image
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
    attached.detach()
    with tokenzoo.build("evoprune", keep=40).attach(model):  # without debug they never raise
        assert run(model, bad)[1].isnan().all()


@dataclass(frozen=True)
class Wrong(Matcher):
    """Says something that cannot be: a token kept twice, or one that there is not."""

    how: str

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return 1

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        b, n = evidence.x.shape[:2]
        plan = TokenMap.from_slots(
            torch.arange(keep).expand(b, keep),
            torch.arange(keep, n).expand(b, n - keep),
            torch.zeros(b, n - keep, dtype=torch.int64),
            n,
        )
        if self.how == "twice":
            return TokenMap(plan.keep.clamp(max=keep - 2), plan.dst)
        return TokenMap(plan.keep, torch.where(plan.dst == 0, keep, plan.dst))


@pytest.mark.parametrize(
    ("how", "words"), [("twice", "not in its own slot"), ("outside", "indices outside -1")]
)
def test_debug_finds_plans_that_contradict_themselves(how: str, words: str) -> None:
    model = tiny()
    step = Step(Stage.BLOCK, schedules.Skip(), Wrong(how), mergers.WeightedMean())
    attached = tokenzoo.build(Recipe(step, keep=5)).attach(model, debug=True)
    with pytest.raises(BadArgumentError, match=words):
        run(model, images(model))
    with attached.paused():
        run(model, images(model))


def test_debug_cannot_be_compiled_without_graph_breaks() -> None:
    """It looks at values: an error with fullgraph=True, a graph break without, and never silence."""
    model = tiny()
    x = images(model)
    tokenzoo.build("pool", keep=4).attach(model, debug=True)
    expected = run(model, x)
    bad = x.clone()
    bad[1, 0, 0, 0] = torch.nan
    with compiler() as compiled:
        with pytest.raises(Exception, match="cannot be compiled with fullgraph=True: attach"):
            run(compiled(model), x)
        broken = compiled(model, fullgraph=False)
        assert gap(run(broken, x), expected) <= 1e-5
        with pytest.raises(AttachError, match=r"blocks\.1; .*token 0 of image 1"):
            run(broken, bad)
    assert _get_current_function_mode_stack() == []


# ----------------------------------------------------------------------------------- on_reduce


@pytest.mark.parametrize("name", ["evoprune", "tome", "random"])
@pytest.mark.parametrize("restore", [False, True])
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
    record = events[0].plan
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
        record = record if event is events[0] else record.then(event.plan)
    assert torch.equal(mass, attached.mass)
    assert torch.equal(record.keep, attached.record.keep)
    assert torch.equal(record.dst, attached.record.dst)
    run(model, x)
    assert len(events) == 2 * len(reducing)


def test_an_error_in_on_reduce_is_the_callers_own() -> None:
    model = VIT.build()
    x = images(model)
    fail = [True]

    def told(event: Event) -> None:
        if fail[0] and event.block == 3:
            raise ArithmeticError("mine")

    with tokenzoo.build("evoprune", keep=30).attach(model):
        expected = run(model, x)
    attached = tokenzoo.build("evoprune", keep=30).attach(model, on_reduce=told)
    with pytest.raises(ArithmeticError, match="mine"):
        run(model, x)
    assert _get_current_function_mode_stack() == []
    fail.clear()
    fail.append(False)
    assert torch.equal(run(model, x), expected)
    assert attached.counts == attached.plan().blocks
    attached.detach()
    assert traces(model) == []


# ------------------------------------------------------------------------------------ summary


def test_a_summary_says_what_is_attached_and_what_it_does() -> None:
    model = VIT.build()
    attached = tokenzoo.build("evoprune", keep=50).attach(model)
    before = attached.summary().splitlines()
    assert before[0] == "model       VisionTransformer, by TimmViT"
    assert before[1] == f"step        {attached.recipe.steps[0]!r}"
    for line in (
        "keep        50",
        "attention   proportional",
        "needs       received_attention, x",
        "image       196 patch tokens, 196 + 1 prefix enter the first block",
        "features    50",
    ):
        assert line in before, line
    flops = attached.plan().flops
    assert f"operations  {flops:.3f} of the unreduced tower's" in before
    for word in ("when", "trace", "restore", "debug", "on_reduce", "flops", "last pass"):
        assert not any(line.startswith(word) for line in before), word
    run(model, images(model))
    after = attached.summary().splitlines()
    assert after == [*before, f"last pass   {', '.join(map(str, attached.counts))}"]
    assert "image       100 patch tokens" in attached.summary(100)
    attached.detach()
    assert attached.summary().splitlines()[0].endswith("by TimmViT (detached)")


def test_a_summary_says_what_is_not_the_default() -> None:
    model = VIT.build(dynamic_img_size=True)
    attached = tokenzoo.build("tome", flops=0.75).attach(
        model, when="train", trace=True, restore=True, debug=True, on_reduce=print
    )
    lines = attached.summary().splitlines()
    for name in ("when", "trace", "restore", "debug", "on_reduce"):
        assert any(line.startswith(f"{name:<12}") for line in lines), name
    assert "when        'train'" in lines
    assert "flops       0.75" in lines
    assert f"keep        {attached.plan().features}" in lines


# -------------------------------------------------------------------------------------- flops


def by_force(name: str, flops: float, tokens: int, depth: int, **tower: int) -> int | None:
    """The largest keep that costs no more, tried one after the other."""
    best = None
    for keep in range(1, tokens + 1):
        try:
            budget = tokenzoo.build(name, keep=keep).plan(tokens, depth, **tower)
        except BudgetError:
            continue
        if budget.flops <= flops:
            best = keep
    return best


@pytest.mark.parametrize("name", ["evoprune", "tome", "uniform", "pool", "random"])
@pytest.mark.parametrize(
    "tower",
    [
        {"tokens": 196, "depth": 12, "prefix": 1, "width": 384},
        {"tokens": 49, "depth": 5, "prefix": 0, "width": 48, "hidden": 100},
        {"tokens": 1, "depth": 3},
    ],
    ids=["196", "49", "1"],
)
def test_flops_keep_as_many_as_they_pay_for(name: str, tower: dict[str, int]) -> None:
    reached = 0
    for flops in (0.3, 0.5, 0.6, 0.85, 1.0):
        best = by_force(name, flops, **tower)
        zoo = tokenzoo.build(name, flops=flops)
        if best is None:
            with pytest.raises(BudgetError, match=rf"flops={flops} is out of reach.* are left"):
                zoo.plan(**tower)
            continue
        reached += 1
        budget = zoo.plan(**tower)
        assert budget.features == best
        assert budget.flops <= flops
        assert budget == tokenzoo.build(name, keep=best).plan(**tower)
        if best < tower["tokens"]:
            assert tokenzoo.build(name, keep=best + 1).plan(**tower).flops > flops
    assert reached >= 1


def test_flops_out_of_reach_name_the_cheapest() -> None:
    fewest = min(
        tokenzoo.build("evoprune", keep=keep).plan(196, 12).flops for keep in range(4, 197)
    )
    with pytest.raises(BudgetError) as caught:
        tokenzoo.build("evoprune", flops=0.1).plan(196, 12)
    assert f"{fewest:.3f} of the operations" in str(caught.value)
    assert "196 patch tokens and 12 blocks" in str(caught.value)
    exact = tokenzoo.build("evoprune", flops=fewest).plan(196, 12)
    assert exact.flops == fewest


def test_flops_on_a_model_are_its_plan_and_its_counts() -> None:
    for case in (VIT, SIGLIP, REG_GAP):
        model = case.build()
        with tokenzoo.build("evoprune", flops=0.6).attach(model) as attached:
            run(model, images(model))
            assert attached.counts == attached.plan().blocks
            assert 0.58 < attached.plan().flops <= 0.6
        more = tokenzoo.build("evoprune", keep=attached.plan().features + 1)
        with more.attach(model) as attached:
            assert attached.plan().flops > 0.6
    model = VIT.build(dynamic_img_size=True)
    with tokenzoo.build("tome", flops=0.7).attach(model) as attached:
        for size in ((224, 224), (160, 96)):
            run(model, images(model, size=size))
            assert attached.counts == attached.plan(size[0] * size[1] // 256).blocks


@pytest.mark.parametrize("flops", [0, 0.0, -0.5, 1.5, True, "half", float("nan")])
def test_flops_that_are_no_share(flops: Any) -> None:
    with pytest.raises(BadArgumentError, match=r"flops=.*a number in \(0, 1\]"):
        tokenzoo.build("evoprune", flops=flops)


def test_flops_stand_alone() -> None:
    for recipe in ("evoprune", tokenzoo.build("evoprune").recipe):
        with pytest.raises(BadArgumentError, match=r"flops=0\.5 and keep=9; pass one of them"):
            tokenzoo.build(recipe, flops=0.5, keep=9)
    with pytest.raises(BadArgumentError, match="fixes its removals itself"):
        tokenzoo.build("tome", flops=0.5, r=8)
    with pytest.raises(BadArgumentError, match=r"flops=0\.5 .*pass keep="):
        tokenzoo.build("evoprune", flops=0.5).reduce(torch.randn(1, 16, 4))


def test_flops_are_saved_and_shown(tmp_path: Path) -> None:
    by_name = tokenzoo.build("random", flops=0.6, seed=3)
    assert repr(by_name) == "tokenzoo.build('random', flops=0.6, seed=3)"
    by_parts = tokenzoo.build(by_name.recipe)
    again = tokenzoo.build(tokenzoo.build("random", keep=9, seed=3).recipe, flops=0.6)
    assert again.recipe == by_parts.recipe == by_name.recipe
    assert by_name.recipe.flops == 0.6
    for zoo in (by_name, by_parts):
        zoo.save(tmp_path / "recipe.json")
        loaded = tokenzoo.load(tmp_path / "recipe.json")
        assert loaded.recipe == zoo.recipe
        assert loaded.plan(196, 12) == zoo.plan(196, 12)
        names = {**vars(matchers), **vars(mergers), **vars(schedules), **vars(scorers)}
        names |= {"tokenzoo": tokenzoo, "Recipe": Recipe, "Step": Step, "Stage": Stage}
        assert eval(repr(zoo), names).recipe == zoo.recipe  # the repr is code


def test_flops_of_smaller_images() -> None:
    """Only counts that make a rectangle can be had: another is refused, and the nearest are named."""
    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build("downsample", flops=0.3).attach(model)
    assert attached.plan().features == 77  # 11 x 7
    assert attached.plan().flops <= 0.3
    run(model, x)
    assert attached.counts == (77,) * 8
    attached.detach()
    with pytest.raises(BudgetError, match=r"resized to 116.* 112 and 117"):
        tokenzoo.build("downsample", flops=0.5).attach(model)
    assert traces(model) == []
    assert torch.equal(run(model, x), bare)
    with tokenzoo.build("downsample", keep=112).attach(model) as attached:
        assert attached.plan().flops <= 0.5
    with tokenzoo.build("downsample", keep=117).attach(model) as attached:
        assert attached.plan().flops > 0.5


# --------------------------------------------------------------------- replicas and processes


def replica(model: nn.Module, weights: dict[str, Tensor]) -> Any:
    """What nn.DataParallel runs in each of its threads: the same hooks, weights of its own."""
    found = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for path, module in model.named_modules():
        mine = found[module]
        for name, child in module._modules.items():
            mine._modules[name] = None if child is None else found[child]
        for name, parameter in module._parameters.items():
            own = None if parameter is None else weights[f"{path}.{name}".lstrip(".")]
            setattr(mine, name, own)
        mine._former_parameters = OrderedDict()
    return found[model]


def torchvision_vit(seed: int = 0, depth: int = 2) -> Any:
    model = VisionTransformer(64, 16, depth, 2, 48, 96, num_classes=10)
    return randomise(model, seed).eval()


@pytest.mark.parametrize("case", [VIT, GAP, None], ids=["token", "avg", "torchvision"])
@pytest.mark.parametrize("name", ["evoprune", "tome"])
def test_replicas_run_their_own_weights(case: Case | None, name: str) -> None:
    zoo = tokenzoo.build(name, keep=0.3)

    def make(seed: int) -> Any:
        return torchvision_vit(seed, 4) if case is None else randomise(case.build(depth=4), seed)

    model = make(0)
    zoo.attach(model)
    weights = [{k: p.detach() for k, p in make(s).named_parameters()} for s in range(3)]
    replicas = [replica(model, own) for own in weights]
    batches = [images(model, seed=i) for i in range(3)]
    expected: list[Tensor] = []
    for seed, x in enumerate(batches):
        fresh = make(seed)
        zoo.attach(fresh)
        expected.append(run(fresh, x))
    assert gap(expected[0], expected[1]) > 1e-2
    wrong: list[Any] = []
    start = threading.Barrier(3)

    def work(index: int) -> None:
        start.wait()
        for _ in range(3):
            try:
                error = gap(run(replicas[index], batches[index]), expected[index])
                if not error <= 1e-5:
                    wrong.append((index, error))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """One process by itself."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("case", [VIT, REG_GAP], ids=lambda case: case.pooling)
@pytest.mark.parametrize("first", ["attach", "wrap"])
def test_distributed_data_parallel(case: Case, first: str) -> None:
    alone, model = case.build(depth=4), case.build(depth=4)
    x = images(model)
    zoo = tokenzoo.build("evoprune", keep=0.3)
    zoo.attach(alone)
    expected, expected_gradients = run(alone, x), gradients(alone, x)
    if first == "attach":
        attached = zoo.attach(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        wrapped = nn.parallel.DistributedDataParallel(model)
        attached = zoo.attach(wrapped)
    assert attached.model is model
    assert torch.equal(run(wrapped, x), expected)
    assert attached.counts == attached.plan().blocks
    found = gradients(wrapped, x)
    assert same({k.removeprefix("module."): g for k, g in found.items()}, expected_gradients, 1e-6)
    with pytest.raises(AttachError, match="attached already"):
        zoo.attach(wrapped)
    attached.detach()
    assert traces(model) == []


# ------------------------------------------------------------------------- compiled models


def test_a_compiled_pass_is_a_pass() -> None:
    """Its counts, masses and record are told, in every thread, and are not those of an earlier pass."""
    model = tiny()
    batches = [images(model, seed=i) for i in range(2)]
    attached = tokenzoo.build("tome", keep=6).attach(model, trace=True)
    expected: list[tuple[Any, ...]] = []
    for x in batches:
        out = run(model, x)
        expected.append((out, attached.counts, attached.mass, attached.record.dst))
    assert not torch.equal(expected[0][2], expected[1][2])
    attached.detach()
    attached = tokenzoo.build("tome", keep=6).attach(model, trace=True)
    wrong: list[Any] = []
    with compiler() as compiled:
        fast = compiled(model)

        def check() -> None:
            try:
                for x, (out, counts, mass, dst) in zip(batches, expected, strict=True):
                    assert gap(run(fast, x), out) <= 1e-5
                    assert attached.counts == counts
                    assert torch.equal(attached.mass, mass)
                    assert torch.equal(attached.record.dst, dst)
            except BaseException as error:
                wrong.append(error)

        check()
        thread = threading.Thread(target=check)
        thread.start()
        thread.join()
        assert wrong == []
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_graph_breaks_change_nothing() -> None:
    """Somebody's hooks look at values, and torch compiles what is before, between and after them."""
    model = tiny(GAP)
    x = images(model)
    attached = tokenzoo.build("tome", keep=6).attach(model)
    expected, counts = run(model, x), attached.counts
    seen: list[float] = []
    for place in ("blocks.0", "blocks.0.mlp", "blocks.1.attn.proj"):
        model.get_submodule(place).register_forward_hook(
            lambda module, args, out: seen.append(float(out.sum()))
        )
    with compiler() as compiled:
        assert gap(run(compiled(model, fullgraph=False), x), expected) <= 1e-5
    assert len(seen) == 3
    assert attached.counts == counts
    assert _get_current_function_mode_stack() == []


def test_what_was_compiled_bare_is_compiled_anew() -> None:
    """torch does not look whether hooks came or went since."""
    model = tiny()
    x = images(model)
    bare = run(model, x)
    first = torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)  # as before the first attach
    with compiler() as compiled, first:
        early = compiled(model)
        assert gap(run(early, x), bare) <= 1e-5
        attached = tokenzoo.build("tome", keep=5).attach(model)
        reduced = run(model, x)
        assert gap(reduced, bare) > 1e-2
        late = compiled(copy.deepcopy(model))
        assert gap(run(late, x), reduced) <= 1e-5
        assert gap(run(early, x), reduced) <= 1e-5
        attached.detach()
        assert gap(run(early, x), bare) <= 1e-5
        assert gap(run(late, x), reduced) <= 1e-5  # the copy is still attached


def test_a_bare_model_is_compiled_after_an_attached_one() -> None:
    """As in every comparison of the two: neither may run what was compiled for the other."""
    bare, reduced = torchvision_vit(), torchvision_vit()
    x = images(bare)
    expected = run(bare, x)
    tokenzoo.build("tome", keep=5).attach(reduced)
    wanted = run(reduced, x)
    assert gap(wanted, expected) > 1e-2
    with compiler() as compiled:
        assert gap(run(compiled(reduced), x), wanted) <= 1e-5
        assert gap(run(compiled(bare), x), expected) <= 1e-5
