"""Recipes on timm's vision transformers: nothing changes that should not, and counts are exact."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import tokenzoo_adapters.timm.plugin as adapter_module
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

import tokenzoo
from tests.adapters.models import (
    CLIP,
    DEIT3,
    DINO_REG,
    DISTILLED,
    GAP,
    REFUSED,
    REG_GAP,
    RES_POST,
    SIGLIP,
    TEN,
    VIT,
    Case,
    gap,
    images,
    small,
    traces,
)
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import AttachError, BudgetError, UnsupportedModelError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.matchers import Drop, GridCentres, SameCell, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Last, Once
from tokenzoo.scorers import FeatureNorm

IDENTITY = 1e-5
CASES = pytest.mark.parametrize("case", [*TEN, RES_POST], ids=lambda case: case.name)


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def pooled_at_the_end(keep: int, *, proportional: bool = False) -> tokenzoo.Recipe:
    """Merge the cells of a coarser grid in the last block: masses that everybody can count."""
    step = Step(Stage.BLOCK, Last(1), SelectAssign(GridCentres(), SameCell()), WeightedMean())
    return Recipe(step, keep=keep, proportional_attention=proportional)


# -------------------------------------------------------------------------------- the ten models


@CASES
def test_adapter_reads_the_model(case: Case) -> None:
    model = case.build()
    adapter = find_adapter(model)
    rows, columns = case.grid
    assert (adapter.prefix, adapter.tokens()) == (case.prefix, rows * columns)
    assert adapter.grid(rows * columns) == case.grid
    assert adapter.grid(rows * columns - 1) is None
    assert (adapter.width, adapter.mlp_dim) == (48, model.blocks[0].mlp.fc1.out_features)
    assert [path.name for path in adapter.blocks()] == [f"blocks.{i}" for i in range(8)]
    assert ("cls_attention" in adapter.provides) == (model.cls_token is not None)


@CASES
def test_models_are_worth_testing_on(case: Case) -> None:
    """Images differ, and every block, every token and every LayerScale matters."""
    model = case.build()
    x = images(model)
    out = run(model, x)
    assert out.isfinite().all()
    assert gap(out[:1], out[1:]) > 0.1
    gammas = [value.detach() for name, value in model.named_parameters() if name.endswith("gamma")]
    assert all(0.4 < float(gamma.min()) < float(gamma.max()) < 1.6 for gamma in gammas)
    for block in model.blocks:
        handle = block.attn.register_forward_hook(lambda m, a, y: y + 0.1 * y.flip(-1))
        assert gap(run(model, x), out) > 1e-3
        handle.remove()


def test_layerscale_is_among_them() -> None:
    scaled = [case.name for case in TEN if hasattr(case.build().blocks[0].ls1, "gamma")]
    assert len(scaled) >= 4, scaled


@pytest.mark.parametrize("case", [VIT, CLIP, SIGLIP, REG_GAP], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["random", "uniform", "pool"])
def test_controls_too(case: Case, name: str) -> None:
    model = case.build()
    x = images(model)
    bare = run(model, x)
    for keep in (1.0, 0.5, 0.25, 16):
        with tokenzoo.build(name, keep=keep).attach(model) as attached:
            reduced = run(model, x)
            assert attached.counts == attached.plan().blocks
            assert attached.counts[-1] == attached.recipe.wanted(case.grid[0] * case.grid[1])
            assert gap(reduced, bare) <= IDENTITY if keep == 1.0 else gap(reduced, bare) > 1e-3
        assert torch.equal(run(model, x), bare)
    assert traces(model) == []


def test_the_line_of_the_readme() -> None:
    vit = VIT.build()
    x = images(vit)
    bare = run(vit, x)
    tokenzoo.build("evoprune", ctr=0.25).attach(vit)
    out = vit(x)
    assert out.shape == (2, 10)
    assert gap(out, bare) > 1e-3
    assert vit._tokenzoo_attached.counts[-1] == 49


def test_zoo_plan_says_the_same_as_the_attached_model() -> None:
    zoo = tokenzoo.build("evoprune", keep=64)
    attached = zoo.attach(DINO_REG.build())
    assert attached.plan() == zoo.plan(196, 8, prefix=5, width=48, hidden=192)
    assert attached.plan(100).blocks == zoo.plan(100, 8).blocks


# -------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("case", [GAP, REG_GAP, RES_POST], ids=lambda case: case.name)
@pytest.mark.parametrize("pool", ["avg", "avgmax"])
@pytest.mark.parametrize("include_prefix", [False, True])
def test_a_mean_is_taken_by_mass(case: Case, pool: str, include_prefix: bool) -> None:
    model = case.build(global_pool=pool, pool_include_prefix=include_prefix)
    x = images(model)
    attached = tokenzoo.build(pooled_at_the_end(60)).attach(model, trace=True)
    with torch.no_grad():
        tokens = model.forward_features(x)
        pooled = model.pool(tokens)

    # The masses, counted by hand from where every patch went.
    p = case.prefix
    count = torch.zeros(2, p + 60)
    for image in range(2):
        for slot in attached.record.dst[image].tolist():
            count[image, slot] += 1
    assert torch.equal(attached.mass, count)
    assert count[:, p:].unique().numel() > 1
    assert torch.equal(count[:, :p], torch.ones(2, p))

    first = 0 if include_prefix else p
    weight = count[:, first:, None]
    mean = (tokens[:, first:] * weight).sum(1) / weight.sum(1)
    most = tokens[:, first:].max(1).values
    expected = mean if pool == "avg" else 0.5 * (mean + most)
    assert gap(pooled, expected) <= 1e-6
    plain = tokens[:, first:].mean(1)
    assert gap(pooled, plain if pool == "avg" else 0.5 * (plain + most)) > 1e-3
    with torch.no_grad():
        logits = model.head(model.fc_norm(expected))
    assert gap(run(model, x), logits) <= 1e-5


def attention_pool(pool: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """timm's AttentionPoolLatent with one latent, written out: `tokens [b, n, c]`, `bias [b, n]`."""
    b, n, c = tokens.shape
    h = pool.num_heads
    query = pool.q(pool.latent).view(1, 1, h, c // h).transpose(1, 2)  # [1, h, 1, d]
    key, value = pool.kv(tokens).view(b, n, 2, h, c // h).permute(2, 0, 3, 1, 4)
    logits = (query * (c // h) ** -0.5) @ key.mT  # [b, h, 1, n]
    if bias is not None:
        logits = logits + bias[:, None, None]
    out = (logits.softmax(-1) @ value).transpose(1, 2).reshape(b, c)
    out = pool.proj(out)
    return out + pool.mlp(pool.norm(out))


@pytest.mark.parametrize("proportional", [False, True])
def test_an_attention_that_pools_sees_log_mass_where_proportional(proportional: bool) -> None:
    model = SIGLIP.build()
    x = images(model)
    attached = tokenzoo.build(pooled_at_the_end(60, proportional=proportional)).attach(model)
    with torch.no_grad():
        tokens = model.forward_features(x)
        log_mass = attached.mass.log()
        with_bias = attention_pool(model.attn_pool, tokens, log_mass)
        without = attention_pool(model.attn_pool, tokens, None)
        pooled = model.pool(tokens)
    assert gap(with_bias, without) > 1e-3
    assert gap(pooled, with_bias if proportional else without) <= 1e-5


@pytest.mark.parametrize("case", [VIT, DINO_REG, DISTILLED], ids=lambda case: case.name)
def test_reading_the_cls_token_is_left_alone(case: Case) -> None:
    model = case.build()
    tokenzoo.build("tome", keep=50).attach(model)
    with torch.no_grad():
        tokens = model.forward_features(images(model))
        assert torch.equal(model.pool(tokens), tokens[:, 0])


@CASES
def test_features_then_head_is_the_forward(case: Case) -> None:
    model = case.build()
    x = images(model)
    tokenzoo.build("evoprune", keep=50).attach(model)
    with torch.no_grad():
        tokens = model.forward_features(x)
        assert tokens.shape == (2, case.prefix + 50, 48)
        assert torch.equal(model.forward_head(tokens), model(x))


@pytest.mark.parametrize("case", [VIT, GAP, SIGLIP, RES_POST], ids=lambda case: case.name)
def test_features_that_lost_their_masses_are_refused(case: Case) -> None:
    model = case.build()
    tokenzoo.build("evoprune", keep=50).attach(model)
    with torch.no_grad():
        tokens = model.forward_features(images(model))
        with pytest.raises(AttachError, match=r"the pooling do not carry the state.*forward_head"):
            model.forward_head(tokens.clone())


# ----------------------------------------------------------------------------------- image sizes


def test_images_of_two_sizes() -> None:
    model = VIT.build(dynamic_img_size=True)
    attached = tokenzoo.build("evoprune", keep=0.25).attach(model)
    for size, total in (((224, 224), 196), ((160, 192), 120), ((224, 224), 196)):
        x = images(model, size=size)
        attached.detach()
        bare = run(model, x)
        attached = tokenzoo.build("evoprune", keep=0.25).attach(model)
        reduced = run(model, x)
        assert attached.counts == attached.plan(total).blocks
        assert attached.counts[-1] == total // 4
        assert gap(reduced, bare) > 1e-3


def test_a_thumbnail_is_left_whole() -> None:
    model = VIT.build(dynamic_img_size=True)
    thumbnail = images(model, size=(96, 96))
    bare = run(model, thumbnail)
    attached = tokenzoo.build("tome", keep=64).attach(model)
    assert gap(run(model, thumbnail), bare) <= IDENTITY
    assert attached.counts == (36,) * 8
    run(model, images(model))
    assert attached.counts[-1] == 64


def test_a_model_without_an_image_size_asks_for_it() -> None:
    model = VIT.build(dynamic_img_size=True)
    model.patch_embed.img_size = model.patch_embed.grid_size = None
    attached = tokenzoo.build("evoprune").attach(model)
    with pytest.raises(AttachError, match=r"plan\(196\)"):
        attached.plan()
    assert attached.plan(100).features == 25
    with pytest.raises(tokenzoo.TokenzooError, match="grid"):
        tokenzoo.build("uniform").attach(model, replace=True)


# ------------------------------------------------------------------------------------ downsample


@pytest.mark.parametrize(
    ("case", "keep", "grid"),
    [
        (VIT, 0.25, (7, 7)),
        (VIT, 100, (10, 10)),
        (GAP, 144, (12, 12)),
        (DEIT3, 0.25, (7, 7)),
        (DISTILLED, 0.25, (7, 7)),
        (DINO_REG, 64, (8, 8)),
        (CLIP, 42, (6, 7)),
        (SIGLIP, 0.25, (7, 7)),
        (REG_GAP, 64, (8, 8)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_downsample_is_the_model_of_a_smaller_image(
    case: Case, keep: int | float, grid: tuple[int, int]
) -> None:
    model = case.build()
    x = images(model)
    bare = run(model, x)

    patch = model.patch_embed.patch_size
    size = (grid[0] * patch[0], grid[1] * patch[1])
    other = case.build(img_size=size)
    weights = dict(model.state_dict())
    weights["pos_embed"] = resample_abs_pos_embed(
        model.pos_embed.detach(),
        new_size=list(grid),
        old_size=list(case.grid),
        num_prefix_tokens=0 if model.no_embed_class else case.prefix,
    )
    other.load_state_dict(weights)
    resized = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
    expected = run(other, resized)

    attached = tokenzoo.build("downsample", keep=keep).attach(model)
    assert gap(run(model, x), expected) <= 1e-5
    assert attached.counts == attached.plan().blocks == (grid[0] * grid[1],) * 8
    assert attached.plan().entering == grid[0] * grid[1]
    assert gap(expected, bare) > 1e-3

    attached.detach()
    assert torch.equal(run(model, x), bare)
    assert traces(model) == []
    assert not model.dynamic_img_size
    fresh = case.build()
    for name in ("strict_img_size", "flatten", "output_fmt"):
        assert getattr(model.patch_embed, name) == getattr(fresh.patch_embed, name)


def test_downsample_to_the_whole_image_is_the_identity() -> None:
    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    with tokenzoo.build("downsample", keep=1.0).attach(model):
        assert gap(run(model, x), bare) <= IDENTITY


@pytest.mark.parametrize(
    ("case", "keep", "nearest"),
    [(VIT, 97, "96 and 98"), (VIT, 13, "12 and 15"), (CLIP, 43, "42 and 45")],
    ids=lambda value: getattr(value, "name", None),
)
def test_downsample_to_no_rectangle_names_the_nearest(case: Case, keep: int, nearest: str) -> None:
    model = case.build()
    x = images(model)
    bare = run(model, x)
    with pytest.raises(BudgetError, match=f"no rectangle.*the nearest counts are {nearest}"):
        tokenzoo.build("downsample", keep=keep).attach(model)
    assert traces(model) == []
    assert model.patch_embed.strict_img_size
    assert torch.equal(run(model, x), bare)


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_other_families_are_refused_by_name(name: str, reason: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        tokenzoo.build("evoprune").attach(model)
    assert f"timm's {type(model).__name__}" in str(caught.value)
    assert "DINOv2" in str(caught.value)
    assert "zoo.reduce(features)" in str(caught.value)
    assert traces(model) == []


def test_reasons_name_families_that_timm_has() -> None:
    families = [name for names in adapter_module.REFUSED.values() for name in names.split()]
    assert len(families) == len(set(families)) > 40
    missing = {family for family in families if not hasattr(timm.models, family)}
    later = {"iformer", "lowformer", "qwen3_vit", "gemma4_vit", "deepseek_vit"}  # than timm 1.0.26
    assert missing in (set(), later)


def test_blocks_without_a_place_between_attention_and_mlp_are_refused() -> None:
    model = VIT.build(block_fn=ParallelScalingBlock)
    with pytest.raises(UnsupportedModelError, match=r"ParallelScalingBlock.*between attention and"):
        tokenzoo.build("evoprune").attach(model)
    assert traces(model) == []


def test_other_attentions_are_refused() -> None:
    model = VIT.build(attn_layer="diff")
    with pytest.raises(UnsupportedModelError, match="has attention DiffAttention"):
        tokenzoo.build("evoprune").attach(model)
    assert traces(model) == []


def test_a_pool_with_positions_is_refused() -> None:
    model = SIGLIP.build()
    model.attn_pool.pos_embed = nn.Parameter(torch.zeros(196, 48))
    with pytest.raises(UnsupportedModelError, match="AttentionPoolLatent and positions of its own"):
        tokenzoo.build("evoprune").attach(model)
    assert traces(model) == []


def test_a_pool_of_another_kind_is_refused() -> None:
    class AttentionPoolPrr(nn.Module):  # timm has one of this name, from 1.0.26 on
        pass

    model = SIGLIP.build()
    model.attn_pool = AttentionPoolPrr()
    with pytest.raises(UnsupportedModelError, match="pools with AttentionPoolPrr"):
        tokenzoo.build("evoprune").attach(model)
    assert traces(model) == []


def test_a_subclass_of_the_users_is_welcome() -> None:
    class Mine(timm.models.vision_transformer.VisionTransformer):
        pass

    model = small("vit_tiny_patch16_224")
    model.__class__ = Mine
    attached = tokenzoo.build("evoprune", keep=16).attach(model)
    run(model, images(model))
    assert attached.counts[-1] == 16


def test_selection_by_any_score_works() -> None:
    model = VIT.build()
    step = Step(Stage.BLOCK, Once(4), SelectAssign(TopK(FeatureNorm()), Drop()), Identity())
    attached = tokenzoo.build(Recipe(step, keep=3)).attach(model)
    run(model, images(model))
    assert attached.counts == (196,) * 4 + (3,) * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["evoprune", "tome", "pool", "downsample"])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    model = VIT.build().to(dtype)
    with tokenzoo.build(name).attach(model) as attached, torch.no_grad():
        output = model(images(model).to(dtype))
    assert output.dtype == dtype
    assert bool(output.isfinite().all())
    assert attached.counts[-1] == 49
