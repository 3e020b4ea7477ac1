"""The splice: three hooks in a block do what a forward written out would do, or they refuse."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import tokenzoo
from tests.adapters.models import (
    DEIT3,
    DINO_REG,
    RES_POST,
    SIGLIP,
    VIT,
    Case,
    gap,
    images,
    traces,
)
from tests.hooks.running import run
from tokenzoo.errors import AttachError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.hooks.reduction import Options
from tokenzoo.hooks.site import Site
from tokenzoo.hooks.state import PassSteps, ReductionState, get_state, set_state
from tokenzoo.layouts import BatchedLayout
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Skip
from tokenzoo.scorers import FeatureNorm


def tome_by_hand(
    x: Tensor, metric: Tensor, mass: Tensor, prefix: int, r: int
) -> tuple[Tensor, Tensor]:
    """ToMe (arXiv 2210.09461), one image and one token at a time.

    Args:
        x: `[b, n, c]`, prefix first.
        metric: `[b, n, d]`, the keys' mean over heads.
        mass: `[b, n]`.
        prefix: tokens at the front that take no part.
        r: merges.
    """
    outputs, masses = [], []
    for tokens, keys, counts in zip(x, metric, mass, strict=True):
        n = tokens.shape[0]
        keys = [key / key.norm() for key in keys]
        # Parity is that of the whole sequence, CLS included.
        sources = [i for i in range(prefix, n) if i % 2 == 0]
        targets = [i for i in range(prefix, n) if i % 2 == 1]
        best: dict[int, tuple[float, int]] = {}
        for i in sources:
            scores = [float((keys[i] @ keys[j]).detach()) for j in targets]
            best[i] = (max(scores), targets[scores.index(max(scores))])
        ranked = sorted(sources, key=lambda i: -best[i][0])
        leaving, staying = ranked[:r], ranked[r:]
        if prefix:
            staying = sorted(staying)
        sums = {i: tokens[i] * counts[i] for i in range(n)}
        total = {i: counts[i].clone() for i in range(n)}
        for i in leaving:
            j = best[i][1]
            sums[j] = sums[j] + sums[i]
            total[j] = total[j] + total[i]
        order = [*range(prefix), *staying, *targets]
        outputs.append(torch.stack([sums[i] / total[i] for i in order]))
        masses.append(torch.stack([total[i] for i in order]))
    return torch.stack(outputs), torch.stack(masses)


def forward_by_hand(
    model: Any, image: Tensor, removals: tuple[int, ...], *, proportional: bool
) -> tuple[Tensor, Tensor]:
    """Features `[b, m, c]` and masses `[b, m]` of a pre-norm ViT that merges in its blocks."""
    x = model.patch_embed(image)
    x = model.norm_pre(model._pos_embed(x))
    b, n, c = x.shape
    prefix = model.num_prefix_tokens
    mass = torch.ones(b, n)
    for block, r in zip(model.blocks, removals, strict=True):
        attention = block.attn
        h = attention.num_heads
        d = c // h
        query, key, value = attention.qkv(block.norm1(x)).chunk(3, -1)
        query, key, value = (t.view(b, -1, h, d).transpose(1, 2) for t in (query, key, value))
        logits = query @ key.transpose(-2, -1) / d**0.5  # [b, h, n, n]
        if proportional:
            logits = logits + mass.log()[:, None, None]
        out = (logits.softmax(-1) @ value).transpose(1, 2).reshape(b, -1, c)
        x = x + block.ls1(attention.proj(out))
        if r:
            x, mass = tome_by_hand(x, key.mean(1), mass, prefix, r)
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.norm(x), mass


@pytest.mark.parametrize(
    ("case", "proportional"),
    [(VIT, True), (VIT, False), (DEIT3, True), (DINO_REG, True), (SIGLIP, False)],
    ids=lambda value: getattr(value, "name", value),
)
def test_merging_in_mid_network_is_the_forward_written_out(case: Case, proportional: bool) -> None:
    model = case.build(depth=5)
    x = images(model)
    removals = (30, 0, 60, 25, 11)
    with torch.no_grad():
        expected, mass = forward_by_hand(model, x, removals, proportional=proportional)
        nothing, _ = forward_by_hand(model, x, (0,) * 5, proportional=proportional)
        bare = model.forward_features(x)
        zoo = tokenzoo.build("tome", r=removals, proportional_attention=proportional)
        attached = zoo.attach(model)
        features = model.forward_features(x)

    assert gap(nothing, bare) <= 1e-5  # the reference is one
    assert torch.equal(attached.mass, mass)
    assert float(mass.max()) >= 4
    assert gap(features, expected) <= 1e-5
    if case.pooling == "token":
        head = model.head(model.fc_norm(expected[:, 0]))
        assert gap(run(model, x), head) <= 1e-5
        attached.detach()
        assert gap(run(model, x), head) > 1e-3


def test_post_norm_blocks_are_spliced_as_well() -> None:
    """timm's ResPostBlock, dropping a strided grid in block 2: the rest by hand."""
    model = RES_POST.build(depth=4)
    image = images(model)
    attached = tokenzoo.build("uniform", keep=49, at=2).attach(model, trace=True)
    with torch.no_grad():
        features = model.forward_features(image)
        kept = attached.record.keep  # [b, 49]
        attached.detach()

        x = model.norm_pre(model._pos_embed(model.patch_embed(image)))
        for index, block in enumerate(model.blocks):
            x = x + block.norm1(block.attn(x))
            if index == 2:
                x = torch.stack([tokens[row] for tokens, row in zip(x, kept, strict=True)])
            x = x + block.norm2(block.mlp(x))
        expected = model.norm(x)
    assert attached.counts == (196, 196, 49, 49)
    assert gap(features, expected) <= 1e-5


def test_a_site_shows_the_tokens_after_its_attention() -> None:
    """A selection whose outcome is known: the largest of them, in their order."""
    model = VIT.build(depth=2)
    step = Step(Stage.BLOCK, Skip(), SelectAssign(TopK(FeatureNorm()), Drop()), Identity())
    attached = tokenzoo.build(Recipe(step, keep=10)).attach(model, trace=True)
    branches: list[Tensor] = []
    block = model.blocks[1]
    block.register_forward_pre_hook(lambda module, args: branches.append(args[0]))
    block.attn.register_forward_hook(lambda module, args, out: branches.append(out))
    run(model, images(model))
    norms = (branches[0] + branches[1])[:, 1:].norm(dim=-1)
    largest = norms.topk(10).indices.sort().values
    assert torch.equal(attached.record.keep[:, 1:] - 1, largest)


class Parallel(TimmBlock):
    """Both branches read the block's input."""

    def forward(self, x, attn_mask=None, is_causal=False):
        y = self.ls1(self.attn(self.norm1(x)))
        return x + y + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class Halved(TimmBlock):
    """The second branch is scaled after its last module."""

    def forward(self, x, attn_mask=None, is_causal=False):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + 0.5 * self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class Skipping(TimmBlock):
    """The second addition is to the block's input."""

    def forward(self, x, attn_mask=None, is_causal=False):
        y = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(y))))


class MlpFirst(TimmBlock):
    """The branches the other way round."""

    def forward(self, x, attn_mask=None, is_causal=False):
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x + self.ls1(self.attn(self.norm1(x)))


class Twice(TimmBlock):
    """Two attentions in one block."""

    def forward(self, x, attn_mask=None, is_causal=False):
        x = x + self.ls1(self.attn(self.norm1(x)))
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class WithoutLast(TimmBlock):
    """The module that the second branch should end with is never called."""

    def forward(self, x, attn_mask=None, is_causal=False):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


STRANGE = (Parallel, Halved, Skipping, MlpFirst, WithoutLast)


def impostor(kind: type[TimmBlock]) -> type[TimmBlock]:
    """The adapter goes by the name of the class, and believes it to be timm's."""
    return type("Block", (kind,), {})


@pytest.mark.parametrize("kind", STRANGE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "uniform"), (torch.bfloat16, "evoprune")], ids=str
)
def test_blocks_with_another_forward_are_refused(
    kind: type[TimmBlock], dtype: torch.dtype, name: str
) -> None:
    model = VIT.build(depth=4).to(dtype)
    for block in model.blocks:
        block.__class__ = impostor(kind)
    x = images(model).to(dtype)
    bare = run(model, x)
    with pytest.raises(AttachError, match="in the order that the adapter describes"):
        tokenzoo.build(name).attach(model)
    assert traces(model) == []
    assert torch.equal(run(model, x), bare)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Halved, r"blocks\.2 \(block 2\) differs from itself by .*e-"),
        # It is equal to itself, row by row: only what is seen of the attention can tell.
        (Twice, "2 fused attention calls were seen in"),
    ],
)
def test_one_strange_block_among_others_is_found(kind: type[TimmBlock], words: str) -> None:
    model = VIT.build(depth=4)
    model.blocks[2].__class__ = impostor(kind)
    with pytest.raises(AttachError, match=words):
        tokenzoo.build("tome").attach(model)
    assert traces(model) == []


def test_hooks_that_were_there_before_see_the_real_output() -> None:
    """What later ones see and change: test_hooks_of_others.py."""
    model = VIT.build()
    seen: list[Tensor] = []
    handle = model.blocks[2].register_forward_hook(lambda module, args, out: seen.append(out))
    attached = tokenzoo.build("tome").attach(model)
    seen.clear()
    model.blocks[2].register_forward_hook(lambda module, args, out: seen.append(out))
    run(model, images(model))
    assert seen[0] is seen[1]
    assert seen[0].shape[1] == attached.counts[2] + 1
    attached.detach()
    handle.remove()
    model.blocks[2].register_forward_hook(lambda module, args, out: out * 2.0)
    with pytest.raises(AttachError, match=r"a hook on blocks\.2 \(block 2\).*a new tensor"):
        tokenzoo.build("tome").attach(model)


@pytest.mark.parametrize("options", [{"attn_mask": torch.zeros(197, 197)}, {"is_causal": True}])
def test_an_attention_mask_is_refused(options: dict[str, Any]) -> None:
    model = VIT.build()
    if not options.keys() <= signature(model.forward).parameters.keys():
        pytest.skip("timm before 1.0.26 has no is_causal")
    tokenzoo.build("evoprune").attach(model)
    with pytest.raises(AttachError, match="a block was called with an attention mask"):
        model(images(model), **options)


def test_skipped_and_repeated_blocks_are_found() -> None:
    model = VIT.build()
    x = images(model)
    attached = tokenzoo.build("evoprune").attach(model)
    blocks = model.blocks
    model.blocks = nn.Sequential(*blocks[:3], *blocks[4:])
    with pytest.raises(AttachError, match="a block was skipped, run twice or replaced"):
        run(model, x)
    model.blocks = nn.Sequential(*blocks[:4], *blocks[3:])
    with pytest.raises(AttachError, match="a block was skipped, run twice or replaced"):
        run(model, x)
    model.blocks = blocks
    run(model, x)
    assert attached.counts == attached.plan().blocks


def test_the_callers_own_tensor_is_never_tagged() -> None:
    """A block that hands its input on (all of it dropped in training) makes no tagged input."""
    model = VIT.build(depth=1)
    adapter = find_adapter(model)
    site = Site(
        0, adapter.blocks()[0], adapter, start=None, finish=None, idle=bool, options=Options()
    )
    x = torch.randn(1, 197, 48)
    y = set_state(x.clone(), ReductionState(PassSteps(), BatchedLayout.of(196, prefix=1)))
    site.enter(model.blocks[0], (y,), {})
    out = site.leave(model.blocks[0], (y,), y)
    assert out is not y
    assert get_state(out).fired == ((196,),)
    assert get_state(y).fired == ()
    assert torch.equal(out, x)


# In other places, of all models: tests/conformance/test_ways.py; anywhere: test_interrupts.py.
@pytest.mark.parametrize("place", ["attn", "attn.qkv", "norm2"])
@pytest.mark.parametrize("how", ["before", "after", "first after"])
def test_after_an_exception_the_next_pass_is_right(place: str, how: str) -> None:
    model = VIT.build(depth=4)
    x = images(model)
    attached = tokenzoo.build("evoprune", keep=60).attach(model)
    expected = run(model, x)

    def explode(*args: Any) -> None:
        raise ArithmeticError("in the middle")

    module = model.blocks[3].get_submodule(place)
    if how == "before":
        handle = module.register_forward_pre_hook(explode)
    else:
        handle = module.register_forward_hook(explode, prepend=how == "first after")
    with pytest.raises(ArithmeticError, match="in the middle"):
        run(model, x)
    assert _get_current_function_mode_stack() == []
    handle.remove()
    assert torch.equal(run(model, x), expected)
    assert attached.counts == attached.plan().blocks


def test_gradients_are_those_of_the_forward_written_out() -> None:
    model = DEIT3.build(depth=3)
    x = images(model)

    def gradient(features: Tensor) -> Tensor:
        model.zero_grad()
        features[:, 0].square().sum().backward()
        return model.blocks[0].attn.qkv.weight.grad.clone()

    expected = gradient(forward_by_hand(model, x, (40, 40, 0), proportional=False)[0])
    plain = gradient(forward_by_hand(model, x, (0, 0, 0), proportional=False)[0])
    tokenzoo.build("tome", r=(40, 40, 0), proportional_attention=False).attach(model)
    assert gap(gradient(model.forward_features(x)), expected) <= 1e-4
    assert gap(plain, expected) > 1e-2


@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_training_with_stochastic_depth(rate: float) -> None:
    """Whole branches are dropped, image by image; the counts are those of the plan all the same."""
    model = VIT.build(drop_path_rate=rate, proj_drop_rate=0.1).train()
    model.blocks[1].mlp.eval()
    modes = [module.training for module in model.modules()]
    x = images(model, batch=4)
    attached = tokenzoo.build("evoprune", keep=40).attach(model)
    assert [module.training for module in model.modules()] == modes
    torch.manual_seed(0)
    first = model(x)
    second = model(x)
    assert attached.counts == attached.plan().blocks
    assert gap(first, second) > 1e-3  # it is random
    first.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) for grad in grads)
    torch.manual_seed(0)
    assert torch.equal(model(x), first)


def test_dropping_patches_in_training() -> None:
    model = VIT.build(patch_drop_rate=0.5).train()
    attached = tokenzoo.build("evoprune", keep=0.25).attach(model)
    model(images(model))
    assert attached.counts == attached.plan(98).blocks
    assert attached.counts[-1] == 25
