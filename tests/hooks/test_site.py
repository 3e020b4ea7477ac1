"""The splice: three hooks in a block do what a forward written out would do, or they refuse."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import timm.layers
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
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import AttachError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.hooks.reduction import Options
from tokenzoo.hooks.site import Site
from tokenzoo.hooks.state import PassSteps, ReductionState, get_state, set_state
from tokenzoo.layouts import BatchedLayout


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


# ------------------------------------------------------ a forward written out, and ToMe with loops


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


@pytest.mark.parametrize("case", [VIT, DEIT3, DINO_REG, SIGLIP], ids=lambda case: case.name)
@pytest.mark.parametrize("proportional", [False, True])
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


# ------------------------------------------------------------------------------- the proof refuses


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


@pytest.mark.parametrize("kind", STRANGE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["evoprune", "uniform"])
def test_blocks_with_another_forward_are_refused(
    kind: type[TimmBlock], dtype: torch.dtype, name: str
) -> None:
    model = VIT.build(depth=4).to(dtype)
    # The adapter goes by the name of the class, and believes it to be timm's.
    impostor = type("Block", (kind,), {})
    for block in model.blocks:
        block.__class__ = impostor
    x = images(model).to(dtype)
    bare = run(model, x)
    zoo = tokenzoo.build(name)
    with pytest.raises(AttachError, match="in the order that the adapter describes"):
        zoo.attach(model)
    assert traces(model) == []
    assert torch.equal(run(model, x), bare)


def test_one_strange_block_among_others_is_found_and_named() -> None:
    model = VIT.build(depth=4)
    model.blocks[2].__class__ = type("Block", (Halved,), {})
    with pytest.raises(AttachError, match=r"blocks\.2 \(block 2\) differs from itself by .*e-"):
        tokenzoo.build("evoprune").attach(model)
    assert traces(model) == []


def test_a_block_with_two_attentions_is_no_block_for_us() -> None:
    """It is equal to itself, row by row: only what is seen of the attention can tell."""
    model = VIT.build(depth=4)
    for block in model.blocks:
        block.__class__ = type("Block", (Twice,), {})
    with pytest.raises(AttachError, match="2 fused attention calls were seen in"):
        tokenzoo.build("evoprune").attach(model)
    assert traces(model) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_honest_blocks_pass_the_proof_in_every_dtype(dtype: torch.dtype) -> None:
    for case in (VIT, DEIT3, DINO_REG, RES_POST):
        model = case.build(depth=4).to(dtype)
        attached = tokenzoo.build("evoprune", keep=60).attach(model)
        out = run(model, images(model).to(dtype))
        assert out.dtype == dtype
        assert out.isfinite().all()
        assert attached.counts[-1] == 60
        assert attached.mass.dtype == torch.float32


def test_the_proof_leaves_training_mode_alone() -> None:
    model = VIT.build(depth=4, drop_path_rate=0.5).train()
    model.blocks[1].mlp.eval()
    before = [module.training for module in model.modules()]
    tokenzoo.build("evoprune").attach(model)
    assert [module.training for module in model.modules()] == before
    assert True in before
    assert False in before


# ----------------------------------------------------------------------- the state rides along


def test_a_hook_that_returns_a_new_tensor_between_blocks_is_refused() -> None:
    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build("evoprune").attach(model)
    handle = model.blocks[2].register_forward_hook(lambda module, args, out: out * 1.0)
    with pytest.raises(AttachError, match=r"blocks\.3 do not carry the state.*hook or wrapper"):
        run(model, x)
    handle.remove()
    assert gap(run(model, x), bare) > 1e-3
    attached.detach()
    assert torch.equal(run(model, x), bare)


def test_a_hook_that_returns_a_new_tensor_before_attaching_is_refused() -> None:
    model = VIT.build()
    model.blocks[2].register_forward_hook(lambda module, args, out: out * 2.0)
    with pytest.raises(AttachError, match=r"a hook on blocks\.2 \(block 2\).*a new tensor"):
        tokenzoo.build("evoprune").attach(model)


def test_hooks_that_look_or_change_in_place_see_the_real_output() -> None:
    """Also those that were there before."""
    model = VIT.build()
    before: list[Tensor] = []
    after: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: before.append(out))
    attached = tokenzoo.build("evoprune").attach(model)
    before.clear()
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: after.append(out))
    x = images(model)
    out = run(model, x)
    assert [y.shape[1] for y in before] == [count + 1 for count in attached.counts]
    assert all(y is z for y, z in zip(before, after, strict=True))

    def double(module: nn.Module, args: Any, y: Tensor) -> None:
        y.mul_(2)

    handle = model.blocks[2].register_forward_hook(double)
    assert gap(run(model, x), out) > 1e-3
    handle.remove()
    assert torch.equal(run(model, x), out)


def test_an_attention_mask_is_refused() -> None:
    model = VIT.build()
    x = images(model)
    tokenzoo.build("evoprune").attach(model)
    expected = run(model, x)
    mask = torch.zeros(197, 197)
    for options in ({"attn_mask": mask}, {"is_causal": True}):
        if not options.keys() <= signature(model.forward).parameters.keys():
            continue  # timm before 1.0.26 has no is_causal
        with pytest.raises(AttachError, match="a block was called with an attention mask"):
            model(x, **options)
    assert torch.equal(run(model, x), expected)


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


# -------------------------------------------------------------------------------- exceptions


def explode(*args: Any) -> None:
    raise ArithmeticError("in the middle")


def _on_attention(block: Any) -> Any:
    return block.attn.register_forward_hook(explode)


def _on_attention_first(block: Any) -> Any:
    return block.attn.register_forward_hook(explode, prepend=True)


def _on_attention_input(block: Any) -> Any:
    return block.attn.register_forward_pre_hook(explode)


def _in_attention(block: Any) -> Any:
    return block.attn.qkv.register_forward_hook(explode)


def _after_attention(block: Any) -> Any:
    return block.attn.proj.register_forward_hook(explode)


def _in_mlp(block: Any) -> Any:
    return block.mlp.register_forward_hook(explode)


def _in_norm(block: Any) -> Any:
    return block.norm2.register_forward_hook(explode)


def _after_block(block: Any) -> Any:
    return block.register_forward_hook(explode)


PLACES = (
    *(_on_attention, _on_attention_first, _on_attention_input, _in_attention),
    *(_after_attention, _in_mlp, _in_norm, _after_block),
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("name", ["evoprune", "tome"])
def test_after_an_exception_the_next_pass_is_right(place: Callable[[Any], Any], name: str) -> None:
    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build(name, keep=30).attach(model)
    expected = run(model, x)
    for index in (0, 3, 7):
        handle = place(model.blocks[index])
        with pytest.raises(ArithmeticError, match="in the middle"):
            run(model, x)
        assert _get_current_function_mode_stack() == []
        handle.remove()
        assert torch.equal(run(model, x), expected)
        assert attached.counts == attached.plan().blocks
    attached.detach()
    assert torch.equal(run(model, x), bare)
    assert traces(model) == []


# ------------------------------------------------------------------------------- training


def gradients(model: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    """Of several forwards and one backward."""
    model.zero_grad()
    outputs = [model(x) for x in batches]
    torch.stack([out.square().sum() for out in outputs]).sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("name", ["evoprune", "tome", "uniform"])
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    """Blocks run again after both passes are over, the second pass's first."""
    model = VIT.build(dynamic_img_size=name != "uniform").train()
    sizes = ((224, 224), (224, 224) if name == "uniform" else (160, 160))
    batches = [images(model, seed=i, size=size) for i, size in enumerate(sizes)]
    bare = gradients(model, *batches)
    tokenzoo.build(name, keep=0.2).attach(model)
    expected = gradients(model, *batches)
    model.set_grad_checkpointing()
    again = gradients(model, *batches)
    assert set(again) == set(expected) == set(bare) == {n for n, _ in model.named_parameters()}
    for parameter, value in expected.items():
        assert gap(again[parameter], value) <= 1e-6, parameter
    assert gap(expected["blocks.0.attn.qkv.weight"], bare["blocks.0.attn.qkv.weight"]) > 1e-2


@pytest.mark.parametrize("name", ["evoprune", "tome"])
def test_reentrant_checkpointing_is_refused(name: str) -> None:
    model = VIT.build(depth=4).train()
    tokenzoo.build(name, keep=50).attach(model)
    model.set_grad_checkpointing()
    timm.layers.set_reentrant_ckpt(True)
    try:
        with pytest.raises(AttachError, match="use_reentrant=False"):
            gradients(model, images(model).requires_grad_())
    finally:
        timm.layers.set_reentrant_ckpt(False)
    assert _get_current_function_mode_stack() == []
    assert "blocks.0.attn.qkv.weight" in gradients(model, images(model))


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
    x = images(model, batch=4)
    attached = tokenzoo.build("evoprune", keep=40).attach(model)
    torch.manual_seed(0)
    first = model(x)
    second = model(x)
    assert attached.counts == attached.plan().blocks
    assert gap(first, second) > 1e-3  # it is random
    first.sum().backward()
    assert all(
        parameter.grad.isfinite().all()
        for parameter in model.parameters()
        if parameter.grad is not None
    )
    torch.manual_seed(0)
    assert torch.equal(model(x), first)


def test_dropping_patches_in_training() -> None:
    model = VIT.build(patch_drop_rate=0.5).train()
    attached = tokenzoo.build("evoprune", keep=0.25).attach(model)
    model(images(model))
    assert attached.counts == attached.plan(98).blocks
    assert attached.counts[-1] == 25
