"""transformers' vision towers: every one of them, by sdpa and by its own eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tokenzoo_adapters.hf.towers import find_tower
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf.models import TOWERS, pixels, randomise, tower
from tests.adapters.models import gap, traces
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, UnsupportedModelError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.matchers import Drop, GridCentres, SameCell, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.schedules import Last, Once
from tokenzoo.scorers import FeatureNorm, ReceivedAttention

EACH = pytest.mark.parametrize("name", TOWERS)
WITH_CLS = [name for name in TOWERS if "siglip" not in name]
BASES = pytest.mark.parametrize("base", ["sdpa", "eager"])
PREFIX = {"dinov2_with_registers": 4, "dinov3_vit": 4, "siglip": 0, "siglip2": 0}


def run(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **options)


def first(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:1] for name, value in inputs.items()}


def largest(block: int, keep: int) -> Recipe:
    """Keep the largest tokens of one block, and drop the others."""
    step = Step(Stage.BLOCK, Once(block), SelectAssign(TopK(FeatureNorm()), Drop()), Identity())
    return Recipe(step, keep=keep)


@EACH
def test_sdpa_and_eager_reduce_alike(name: str) -> None:
    outs: list[Tensor] = []
    for base in ("sdpa", "eager"):
        model = tower(name, attn_implementation=base)
        tokenzoo.build("tome", keep=16).attach(model)
        outs.append(run(model, pixels(model)).last_hidden_state)
    assert gap(outs[0], outs[1]) <= 1e-4


@EACH
def test_adapter_reads_the_model(name: str) -> None:
    model = tower(name)
    adapter = find_adapter(model)
    assert adapter.prefix == PREFIX.get(name, 1)
    assert (adapter.tokens(), adapter.width, adapter.mlp_dim) == (64, 48, 96)
    assert len(adapter.blocks()) == 5
    assert ("cls_attention" in adapter.provides) == (name in WITH_CLS)
    inside = find_tower(model, at="model.vision_tower.", depth=3)
    assert inside is not None
    paths = [path.name for path in inside.blocks()]
    assert paths == [f"model.vision_tower.{path.name}" for path in adapter.blocks()[:3]]
    assert all(path.startswith("model.vision_tower.") for path in inside.passthrough_modules())


@EACH
@BASES
def test_dropped_in_the_last_block_the_rest_are_the_rows_of_the_bare_model(
    name: str, base: str
) -> None:
    model = tower(name, attn_implementation=base)
    x = pixels(model)
    bare = run(model, x).last_hidden_state
    with tokenzoo.build(largest(4, 32)).attach(model, trace=True) as attached:
        out = run(model, x).last_hidden_state
        keep = attached.record.keep
    assert gap(out, bare.gather(1, keep[..., None].expand(-1, -1, 48))) <= 1e-5


@EACH
def test_positions_follow_the_tokens(name: str) -> None:
    """What is left in the middle sees what it would see if the others were masked."""
    model = tower(name, attn_implementation="eager")
    x = pixels(model)
    with tokenzoo.build(largest(1, 20)).attach(model, trace=True) as attached:
        out = run(model, x).last_hidden_state
        keep = attached.record.keep
    gone = torch.ones(2, keep.max() + 65, dtype=torch.bool).scatter(1, keep, False)
    layers = model.get_submodule(find_adapter(model).blocks()[0].name.rpartition(".")[0])

    def mask(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        n = args[0].shape[1]
        kwargs["attention_mask"] = torch.zeros(2, 1, 1, n).masked_fill(
            gone[:, None, None, :n], -1e9
        )
        return args[:1], kwargs

    for layer in layers[2:]:
        layer.register_forward_pre_hook(mask, with_kwargs=True)
    whole = run(model, x).last_hidden_state
    assert gap(out, whole.gather(1, keep[..., None].expand(-1, -1, 48))) <= 1e-5


@pytest.mark.parametrize("name", WITH_CLS)
@BASES
@pytest.mark.parametrize("recipe", ["fastervlm", "visionzip"])
def test_recipes_after_the_blocks(name: str, base: str, recipe: str) -> None:
    model = tower(name, attn_implementation=base)
    x = pixels(model)
    bare = run(model, x)
    with tokenzoo.build(recipe, keep=16).attach(model, trace=True) as attached:
        out = run(model, x)
        assert attached.counts == (64,) * 5
        assert attached.features == 16
        assert out.last_hidden_state.shape[1] == PREFIX.get(name, 1) + 16
        assert gap(out.pooler_output, bare.pooler_output) <= 1e-5  # CLS has seen all of them
        keep = attached.record.keep
    if recipe == "fastervlm":
        rows = bare.last_hidden_state.gather(1, keep[..., None].expand(-1, -1, 48))
        assert gap(out.last_hidden_state, rows) <= 1e-5
        weights = attentions(name, x)[-1][:, :, 0, PREFIX.get(name, 1) :].mean(1)
        chosen = weights.topk(16).indices.sort().values
        assert torch.equal(keep[:, PREFIX.get(name, 1) :] - PREFIX.get(name, 1), chosen)


def attentions(name: str, x: dict[str, Tensor]) -> Any:
    return run(tower(name, attn_implementation="eager"), x, output_attentions=True).attentions


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
@pytest.mark.parametrize("proportional", [False, True])
def test_the_attention_that_pools_counts_masses(name: str, proportional: bool) -> None:
    """Tokens that are merged in the last block, pooled as if every one were there as often as it counts."""
    model = tower(name)
    step = Step(Stage.BLOCK, Last(1), SelectAssign(GridCentres(), SameCell()), WeightedMean())
    recipe = Recipe(step, keep=9, proportional_attention=proportional)
    with tokenzoo.build(recipe).attach(model) as attached:
        out = run(model, pixels(model))
        mass = attached.mass
    assert len(mass.unique()) > 1
    repeated = [
        row.repeat_interleave(times.round().long() if proportional else 1, 0)[None]
        for row, times in zip(out.last_hidden_state, mass, strict=True)
    ]
    with torch.no_grad():
        expected = torch.cat([model.head(rows) for rows in repeated])
    assert gap(out.pooler_output, expected) <= 1e-5


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov3_vit"])
def test_restored_features_leave_the_pooled_output_alone(name: str) -> None:
    model = tower(name)
    x = pixels(model)
    for recipe in ("tome", "random"):
        with tokenzoo.build(recipe, keep=16).attach(model):
            short = run(model, x)
        with tokenzoo.build(recipe, keep=16).attach(model, restore=True):
            out = run(model, x, output_hidden_states=True)
        assert gap(out.pooler_output, short.pooler_output) <= 1e-5
        assert out.last_hidden_state.shape[1] == PREFIX.get(name, 1) + 64
        assert {state.shape[1] for state in out.hidden_states} == {PREFIX.get(name, 1) + 64}


@EACH
@BASES
def test_outputs_on_request(name: str, base: str) -> None:
    model = tower(name, attn_implementation=base)
    x, prefix = pixels(model), PREFIX.get(name, 1)
    with tokenzoo.build("evoprune", keep=16).attach(model) as attached:
        out = run(model, x, output_hidden_states=True, output_attentions=base == "eager")
        lengths = [prefix + n for n in (64, *attached.counts)]
        assert [state.shape[1] for state in out.hidden_states] == lengths
        plain = run(model, x)
        assert torch.equal(out.last_hidden_state, plain.last_hidden_state)
        if base == "eager":
            assert [a.shape[-1] for a in out.attentions] == lengths[:-1]
            assert all(torch.allclose(a.sum(-1), torch.ones(1)) for a in out.attentions)
        last = run(model, x, return_dict=False)[0]
        assert torch.equal(last, plain.last_hidden_state)


def test_hidden_states_by_index() -> None:
    if transformers.__version__ < "5.23":
        pytest.skip("a list of hidden states can be asked for since 5.23")
    model = tower("siglip")
    with tokenzoo.build("evoprune", keep=16).attach(model) as attached:
        out = run(model, pixels(model), output_hidden_states=[-2])
        assert out.hidden_states[-2].shape[1] == attached.counts[-2]


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "dinov2", "dinov3_vit"])
def test_images_of_another_size(name: str) -> None:
    model = tower(name)
    x = {"pixel_values": torch.randn(2, 3, 84, 42)}
    options = {} if "dino" in name else {"interpolate_pos_encoding": True}
    with tokenzoo.build("pool", keep=0.25).attach(model) as attached:
        out = run(model, x, **options)
        assert attached.counts == attached.plan(72).blocks
        assert out.last_hidden_state.shape[1] == PREFIX.get(name, 1) + 18
        run(model, pixels(model))
        assert attached.counts == attached.plan().blocks
    bare = run(model, x, **options).last_hidden_state
    with tokenzoo.build("evoprune", keep=1.0).attach(model):
        assert gap(run(model, x, **options).last_hidden_state, bare) <= 1e-5


@pytest.mark.parametrize("name", [name for name in TOWERS if name != "siglip2"])
def test_smaller_images(name: str) -> None:
    model = tower(name)
    x = pixels(model)
    with tokenzoo.build("downsample", keep=16).attach(model) as attached:
        out = run(model, x).last_hidden_state
        assert attached.counts == (16,) * 5
    small = nn.functional.interpolate(
        x["pixel_values"], size=(28, 28), mode="bilinear", antialias=True, align_corners=False
    )
    options = {} if "dino" in name else {"interpolate_pos_encoding": True}
    assert gap(out, run(model, {"pixel_values": small}, **options).last_hidden_state) <= 1e-5
    assert traces(model) == []


@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit", "vit"])
def test_masked_patches(name: str) -> None:
    model = tower(name)
    if name == "vit":
        model = randomise(type(model)(model.config, use_mask_token=True)).eval()
    x = pixels(model)
    masked = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    bare = run(model, x, bool_masked_pos=masked)
    assert gap(bare.last_hidden_state, run(model, x).last_hidden_state) > 1e-3
    with tokenzoo.build("tome", keep=1.0).attach(model):
        out = run(model, x, bool_masked_pos=masked)
        assert gap(out.last_hidden_state, bare.last_hidden_state) <= 1e-5
    with tokenzoo.build("tome", keep=16).attach(model) as attached:
        run(model, x, bool_masked_pos=masked)
        assert attached.counts[-1] == 16


@pytest.mark.parametrize("name", ["dinov2", "vit"])
def test_a_mask_of_the_callers_is_refused(name: str) -> None:
    model = tower(name)
    tokenzoo.build("tome", keep=16).attach(model)
    mask = torch.ones(2, 65, dtype=torch.int64)
    mask[:, -3:] = 0
    with pytest.raises(AttachError, match="attention mask"):
        run(model, pixels(model), attention_mask=mask)


@pytest.mark.parametrize("name", ["clip", "dinov3_vit"])
def test_a_causal_order_is_refused(name: str) -> None:
    model = tower(name)
    tokenzoo.build("tome", keep=16).attach(model)
    with pytest.raises(AttachError, match="attention mask"):
        run(model, pixels(model), is_causal=True)


@BASES
def test_siglip2_images_must_fill_their_patches(base: str) -> None:
    model = tower("siglip2", attn_implementation=base)
    x = pixels(model)
    tokenzoo.build("tome", keep=16).attach(model)
    run(model, x)
    x["pixel_attention_mask"][1, 60:] = 0
    with pytest.raises(AttachError, match="does not fill its patches"):
        run(model, x)
    with pytest.raises(AttachError, match="does not fill its patches"):
        run(model, {}, **{name: value[1:] for name, value in x.items()})
    run(model, first(x))


def test_siglip2_images_of_two_shapes_have_no_grid() -> None:
    model = tower("siglip2")
    x = pixels(model)
    x["spatial_shapes"] = torch.tensor([[8, 8], [4, 16]])
    with tokenzoo.build("evoprune", keep=16).attach(model) as attached:
        run(model, x)
        assert attached.counts[-1] == 16
    adapter = find_adapter(model)
    with tokenzoo.build("uniform", keep=16).attach(model, replace=True) as attached:
        run(model, {name: value[1:] for name, value in x.items()})
        assert attached.adapter.grid(64) == (4, 16)
    assert adapter.grid(64) is None


def training(name: str, **options: Any) -> Any:
    """A tower in training mode, without the random shifts of positions that DINOv3 has there."""
    model = tower(name, **options).train()
    if name == "dinov3_vit":
        model.config.pos_embed_rescale = None
    return model


def gradients(model: Any, *inputs: dict[str, Tensor]) -> list[Tensor]:
    """Of all forwards, then one backward."""
    model.zero_grad()
    outs = [model(**x) for x in inputs]
    sum(out.last_hidden_state.square().mean() + out.pooler_output.sum() for out in outs).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["clip", "dinov3_vit"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_are_refused(name: str) -> None:
    model = training(name)
    tokenzoo.build("tome", keep=16).attach(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(AttachError, match="use_reentrant"):
        gradients(model, pixels(model))


@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit", "vit"])
def test_dropout_and_drop_path_act_on_both_branches(name: str) -> None:
    """In training: what one module does in both branches is done to the reduced tokens, too."""
    rate = {"hidden_dropout_prob": 0.5} if name == "vit" else {"drop_path_rate": 0.5}
    model = training(name, **rate)
    tokenzoo.build("uniform", keep=16).attach(model)
    layer = model.get_submodule(find_adapter(model).blocks()[2].name)
    shared = layer.dropout if name == "vit" else layer.drop_path
    calls: list[Tensor] = []
    outs: list[Tensor] = []
    shared.register_forward_hook(lambda module, args, out: calls.append(out), prepend=True)
    layer.register_forward_hook(lambda module, args, out: outs.append(out))
    layer.register_forward_pre_hook(lambda module, args: calls.clear())
    kept: list[Tensor] = []
    norm2 = layer.layernorm_after if name == "vit" else layer.norm2
    norm2.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    model(**pixels(model))
    prefix = PREFIX.get(name, 1)
    assert [y.shape[1] for y in calls] == [prefix + 64, prefix + 16]
    assert torch.allclose(outs[-1], kept[-1] + calls[1])


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("siglip2", "evoprune"), ("clip", "fastervlm")],  # of all others: tests/conformance
)
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_compiled_and_exported_equal_eager(name: str, recipe: str) -> None:
    """Zero graph breaks: fullgraph=True would raise at the first. EvoPrune watches the attention of the
    first block and biases that of the second."""
    model = tower(name, num_hidden_layers=2)
    x, y = pixels(model), pixels(model, seed=1)
    options = {"start": 0} if recipe == "evoprune" else {}
    tokenzoo.build(recipe, keep=32, **options).attach(model)
    wanted = [run(model, one) for one in (x, y)]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(model, (), x)
    for one, expected in zip((x, y), wanted, strict=True):
        for found in (run(compiled, one), run(exported.module(), one)):
            assert gap(found.last_hidden_state, expected.last_hidden_state) <= 1e-5
            assert gap(found.pooler_output, expected.pooler_output) <= 1e-5
    if name == "siglip2":
        x["pixel_attention_mask"][1, 60:] = 0
        for unfilled in (compiled, exported.module()):
            with pytest.raises(RuntimeError, match="does not fill its patches"):
                run(unfilled, x)
    torch.compiler.reset()


@BASES
def test_compiled_with_an_attention_of_either_kind(base: str) -> None:
    model = tower("clip", attn_implementation=base, num_hidden_layers=2)
    x = pixels(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    bare = run(model, x).last_hidden_state
    assert gap(run(compiled, x).last_hidden_state, bare) <= 1e-5
    with tokenzoo.build("tome", keep=32).attach(model):
        reduced = run(model, x).last_hidden_state
        assert gap(run(compiled, x).last_hidden_state, reduced) <= 1e-5
    assert gap(run(compiled, x).last_hidden_state, bare) <= 1e-5
    torch.compiler.reset()


def vision(**options: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    return {**sizes, "intermediate_size": 96, "image_size": 56, "patch_size": 7, **options}


def test_models_that_read_cls_alone() -> None:
    projecting = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**vision(projection_dim=16))
    )
    classifying = transformers.ViTForImageClassification(
        transformers.ViTConfig(**vision(num_labels=7))
    )
    for model, output in ((projecting, "image_embeds"), (classifying, "logits")):
        randomise(model).eval()
        x = pixels(model)
        bare = run(model, x)[output]
        with tokenzoo.build("evoprune", keep=1.0).attach(model):
            assert gap(run(model, x)[output], bare) <= 1e-5
        with tokenzoo.build("evoprune", keep=16).attach(model) as attached:
            assert gap(run(model, x)[output], bare) > 1e-3
            assert attached.counts[-1] == 16
        assert torch.equal(run(model, x)[output], bare)


def whole(kind: str, **options: Any) -> Any:
    """A larger model with a tower in it, on the meta device."""
    config = getattr(transformers, kind).config_class
    with torch.device("meta"):
        return getattr(transformers, kind)(config(**options))


@pytest.mark.parametrize(
    ("kind", "options", "where", "why"),
    [
        ("CLIPModel", {"vision_config": vision()}, "vision_model", "only its vision tower"),
        ("SiglipModel", {"vision_config": vision()}, "vision_model", "only its vision tower"),
    ],
)
def test_larger_models_say_what_to_attach_to(
    kind: str, options: dict[str, Any], where: str, why: str
) -> None:
    model = whole(kind, **options)
    with pytest.raises(UnsupportedModelError, match=rf"{kind}: .*{why}.*model\.{where}\b"):
        tokenzoo.build("tome").attach(model)


@pytest.mark.parametrize("kind", ["Dinov2Backbone", "SwinModel", "BeitModel", "BertModel"])
def test_other_models_are_refused_with_what_is_followed(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{kind} is not supported.*SiglipVisionModel"):
        tokenzoo.build("tome").attach(whole(kind))


def test_the_tower_of_a_whole_clip() -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    config = transformers.CLIPConfig(
        vision_config=vision(), text_config={**text, "intermediate_size": 32}, projection_dim=16
    )
    clip = randomise(transformers.CLIPModel(config)).eval()
    x = pixels(clip.vision_model)
    with torch.no_grad():
        bare = clip.get_image_features(**x).pooler_output
        with tokenzoo.build("tome", keep=16).attach(clip.vision_model):
            assert gap(clip.get_image_features(**x).pooler_output, bare) > 1e-3
            assert clip.config.text_config._attn_implementation == "sdpa"
        assert torch.equal(clip.get_image_features(**x).pooler_output, bare)


def test_selection_by_received_attention_is_that_of_the_weights() -> None:
    model = tower("dinov3_vit")
    x = pixels(model)
    step = Step(Stage.BLOCK, Once(2), SelectAssign(TopK(ReceivedAttention()), Drop()), Identity())
    with tokenzoo.build(Recipe(step, keep=10)).attach(model, trace=True) as attached:
        run(model, x)
        keep = attached.record.keep[:, 4:] - 4
    weights = attentions("dinov3_vit", x)[2].mean((1, 2))[:, 4:]
    assert torch.equal(keep, weights.topk(10).indices.sort().values)
