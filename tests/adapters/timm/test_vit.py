"""timm's vision transformers: their models here are worth testing on, and their pooling counts masses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters import models as of_timm
from tests.adapters.models import Case, gap, images, run
from tokenzoo.errors import AttachError
from tokenzoo.matchers import GridCentres, SameCell, SelectAssign
from tokenzoo.mergers import WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Last


def cases(*some: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", some, ids=lambda case: case.name)


def pooled_at_the_end(keep: int, *, proportional: bool = False) -> tokenzoo.Recipe:
    """Merge the cells of a coarser grid in the last block: masses that everybody can count."""
    step = Step(Stage.BLOCK, Last(1), SelectAssign(GridCentres(), SameCell()), WeightedMean())
    return Recipe(step, keep=keep, proportional_attention=proportional)


@cases(*of_timm.TEN, of_timm.RES_POST)
def test_models_are_worth_testing_on(case: Case) -> None:
    """Images differ, and every block, every token and every LayerScale matters."""
    model = case.build()
    x = images(model)
    out = run(model, x)
    assert out.isfinite().all()
    assert gap(out[:1], out[1:]) > 0.1
    gammas = [value.detach() for name, value in model.named_parameters() if name.endswith("gamma")]
    assert all(0.4 < float(gamma.min()) < float(gamma.max()) < 1.6 for gamma in gammas)
    assert gammas or case not in (of_timm.DEIT3, of_timm.DINO, of_timm.DINO_REG, of_timm.REG_GAP)
    for block in model.blocks:
        handle = block.attn.register_forward_hook(lambda m, a, y: y + 0.1 * y.flip(-1))
        assert gap(run(model, x), out) > 1e-3
        handle.remove()


def test_zoo_plan_says_the_same_as_the_attached_model() -> None:
    zoo = tokenzoo.build("evoprune", keep=64)
    attached = zoo.attach(of_timm.DINO_REG.build())
    assert attached.plan() == zoo.plan(196, 8, prefix=5, width=48, hidden=192)
    assert attached.plan(100).blocks == zoo.plan(100, 8).blocks


@cases(of_timm.GAP, of_timm.REG_GAP, of_timm.RES_POST)
@pytest.mark.parametrize("pool", ["avg", "avgmax"])
@pytest.mark.parametrize("include_prefix", [False, True])
def test_a_mean_is_taken_by_mass(case: Case, pool: str, include_prefix: bool) -> None:
    model = case.build(global_pool=pool, pool_include_prefix=include_prefix)
    attached = tokenzoo.build(pooled_at_the_end(60)).attach(model, trace=True)
    with torch.no_grad():
        tokens = model.forward_features(images(model))
        pooled = model.pool(tokens)
    # The masses, counted by where every patch went.
    p = case.prefix
    count = torch.stack([dst.bincount(minlength=p + 60) for dst in attached.record.dst]).float()
    assert torch.equal(attached.mass, count)
    assert count[:, p:].unique().numel() > 1
    assert torch.equal(count[:, :p], torch.ones(2, p))
    first = 0 if include_prefix else p
    weight = count[:, first:, None]
    mean = (tokens[:, first:] * weight).sum(1) / weight.sum(1)
    most = tokens[:, first:].max(1).values
    expected, plain = (
        one if pool == "avg" else 0.5 * (one + most) for one in (mean, tokens[:, first:].mean(1))
    )
    assert gap(pooled, expected) <= 1e-6
    assert gap(pooled, plain) > 1e-3
    with torch.no_grad():
        logits = model.head(model.fc_norm(expected))
    assert gap(run(model, images(model)), logits) <= 1e-5


def attention_pool(pool: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """timm's AttentionPoolLatent with one latent, written out: `tokens [b, n, c]`, `bias [b, n]`."""
    b, n, c = tokens.shape
    h = pool.num_heads
    query = pool.q(pool.latent).view(1, 1, h, c // h).transpose(1, 2)  # [1, h, 1, d]
    key, value = pool.kv(tokens).view(b, n, 2, h, c // h).permute(2, 0, 3, 1, 4)
    logits = (query * (c // h) ** -0.5) @ key.mT  # [b, h, 1, n]
    if bias is not None:
        logits = logits + bias[:, None, None]
    out = pool.proj((logits.softmax(-1) @ value).transpose(1, 2).reshape(b, c))
    return out + pool.mlp(pool.norm(out))


@pytest.mark.parametrize("proportional", [False, True])
def test_an_attention_that_pools_sees_log_mass_where_proportional(proportional: bool) -> None:
    model = of_timm.SIGLIP.build()
    recipe = pooled_at_the_end(60, proportional=proportional)
    attached = tokenzoo.build(recipe).attach(model)
    with torch.no_grad():
        tokens = model.forward_features(images(model))
        with_bias = attention_pool(model.attn_pool, tokens, attached.mass.log())
        without = attention_pool(model.attn_pool, tokens, None)
        pooled = model.pool(tokens)
    assert gap(with_bias, without) > 1e-3
    assert gap(pooled, with_bias if proportional else without) <= 1e-5


@cases(
    of_timm.VIT, of_timm.DINO_REG, of_timm.DISTILLED, of_timm.GAP, of_timm.SIGLIP, of_timm.RES_POST
)
def test_the_state_goes_from_the_features_to_the_pooling(case: Case) -> None:
    """The CLS token is read as it is; what pools refuses features that have lost their masses."""
    model = case.build()
    tokenzoo.build("evoprune", keep=50).attach(model)
    with torch.no_grad():
        tokens = model.forward_features(images(model))
        assert tokens.shape == (2, case.prefix + 50, 48)
        assert torch.equal(model.forward_head(tokens), model(images(model)))
        if case.pooling == "token":
            assert torch.equal(model.pool(tokens), tokens[:, 0])
        if case is not of_timm.DISTILLED:  # its head reads two tokens, and pools nothing
            with pytest.raises(AttachError, match=r"pooling do not carry the state.*forward_head"):
                model.forward_head(tokens.clone())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["evoprune", "tome", "pool", "downsample"])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    model = of_timm.VIT.build().to(dtype)
    with tokenzoo.build(name).attach(model) as attached:
        output = run(model, images(model).to(dtype))
    assert output.dtype == dtype
    assert bool(output.isfinite().all())
    assert attached.counts[-1] == 49
