"""transformers' vision towers: what their calls take and return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tokenzoo
from tests.adapters.hf.models import PREFIX, TOWERS, made, pixels, randomise, tower, tower_sizes
from tests.adapters.models import gap
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.matchers import GridCentres, SameCell, SelectAssign
from tokenzoo.mergers import WeightedMean
from tokenzoo.schedules import Last

EACH = pytest.mark.parametrize("name", TOWERS)
BASES = pytest.mark.parametrize("base", ["sdpa", "eager"])


def run(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **options)


@pytest.mark.parametrize(
    "name", [name for name in TOWERS if PREFIX.get(name, 1) and name != "radio"]
)
@BASES
def test_recipes_after_the_blocks(name: str, base: str) -> None:
    """The rows of the bare model that CLS attends to, by the eager model's own map."""
    model = tower(name, attn_implementation=base)
    x, p = pixels(model), PREFIX.get(name, 1)
    bare = run(model, x)
    with tokenzoo.build("visionzip", keep=16).attach(model):
        assert gap(run(model, x).pooler_output, bare.pooler_output) <= 1e-5  # CLS has seen them all
    with tokenzoo.build("fastervlm", keep=16).attach(model, trace=True) as attached:
        out = run(model, x)
        assert (attached.counts, attached.features) == ((64,) * 5, 16)
        keep = attached.record.keep
    assert gap(out.pooler_output, bare.pooler_output) <= 1e-5
    rows = bare.last_hidden_state.gather(1, keep[..., None].expand(-1, -1, 48))
    assert gap(out.last_hidden_state, rows) <= 1e-5
    maps = run(tower(name, attn_implementation="eager"), x, output_attentions=True).attentions
    paid = maps[-1][:, :, 0, p:].mean(1)
    assert torch.equal(keep[:, p:] - p, paid.topk(16).indices.sort().values)


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


@EACH
@BASES
def test_outputs_on_request(name: str, base: str) -> None:
    model = tower(name, attn_implementation=base)
    x, prefix = pixels(model), PREFIX.get(name, 1)
    with tokenzoo.build("evoprune", keep=16).attach(model) as attached:
        out = run(model, x, output_hidden_states=True, output_attentions=base == "eager")
        lengths = [prefix + n for n in (64, *attached.counts)]
        assert [state.shape[1] for state in out.hidden_states] == lengths
        plain = run(model, x).last_hidden_state
        assert torch.equal(out.last_hidden_state, plain)
        if name != "radio":  # its tuple begins with the summary
            assert torch.equal(run(model, x, return_dict=False)[0], plain)
        if base == "eager":
            assert [a.shape[-1] for a in out.attentions] == lengths[:-1]
            assert all(torch.allclose(a.sum(-1), torch.ones(1)) for a in out.attentions)


def test_hidden_states_by_index() -> None:
    if transformers.__version__ < "5.23":
        pytest.skip("a list of hidden states can be asked for since 5.23")
    model = tower("siglip")
    with tokenzoo.build("evoprune", keep=16).attach(model) as attached:
        out = run(model, pixels(model), output_hidden_states=[-2])
        assert out.hidden_states[-2].shape[1] == attached.counts[-2]


@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit", "vit"])
def test_masked_patches(name: str) -> None:
    model = tower(name)
    if name == "vit":
        model = randomise(type(model)(model.config, use_mask_token=True)).eval()
    x = pixels(model)
    masked = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    bare = run(model, x, bool_masked_pos=masked).last_hidden_state
    assert gap(bare, run(model, x).last_hidden_state) > 1e-3
    with tokenzoo.build("tome", keep=1.0).attach(model):
        assert gap(run(model, x, bool_masked_pos=masked).last_hidden_state, bare) <= 1e-5
    with tokenzoo.build("tome", keep=16).attach(model) as attached:
        run(model, x, bool_masked_pos=masked)
        assert attached.counts[-1] == 16


MASK = torch.ones(2, 65, dtype=torch.int64)
MASK[:, -3:] = 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"attention_mask": MASK}) for name in ("dinov2", "vit")),
        *((name, {"is_causal": True}) for name in ("clip", "dinov3_vit")),
    ],
)
def test_a_mask_of_the_callers_is_refused(name: str, options: dict[str, Any]) -> None:
    model = tower(name)
    tokenzoo.build("tome", keep=16).attach(model)
    with pytest.raises(AttachError, match="attention mask"):
        run(model, pixels(model), **options)


@BASES
def test_siglip2_images_must_fill_their_patches(base: str) -> None:
    model = tower("siglip2", attn_implementation=base)
    x = pixels(model)
    tokenzoo.build("tome", keep=16).attach(model)
    run(model, x)
    x["pixel_attention_mask"][1, 60:] = 0
    for rows in (slice(None), slice(1, None)):
        with pytest.raises(AttachError, match="does not fill its patches"):
            run(model, {name: value[rows] for name, value in x.items()})
    run(model, {name: value[:1] for name, value in x.items()})


def test_siglip2_images_of_two_shapes_have_no_grid() -> None:
    model = tower("siglip2")
    x = pixels(model)
    x["spatial_shapes"] = torch.tensor([[8, 8], [4, 16]])
    with tokenzoo.build("evoprune", keep=16).attach(model) as attached:
        run(model, x)
        assert attached.counts[-1] == 16
        assert attached.adapter.grid(64) is None
    with tokenzoo.build("uniform", keep=16).attach(model) as attached:
        run(model, {name: value[1:] for name, value in x.items()})
        assert attached.adapter.grid(64) == (4, 16)


@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit", "vit"])
def test_dropout_and_drop_path_act_on_both_branches(name: str) -> None:
    """In training: what one module does in both branches is done to the reduced tokens, too."""
    rate = {"hidden_dropout_prob": 0.5} if name == "vit" else {"drop_path_rate": 0.5}
    model = tower(name, **rate).train()
    if name == "dinov3_vit":  # its positions shift at random in training
        model.config.pos_embed_rescale = None
    tokenzoo.build("uniform", keep=16).attach(model)
    layer = model.get_submodule(find_adapter(model).blocks()[2].name)
    shared = layer.dropout if name == "vit" else layer.drop_path
    norm2 = layer.layernorm_after if name == "vit" else layer.norm2
    calls: list[Tensor] = []
    outs: list[Tensor] = []
    kept: list[Tensor] = []
    shared.register_forward_hook(lambda module, args, out: calls.append(out), prepend=True)
    layer.register_forward_hook(lambda module, args, out: outs.append(out))
    layer.register_forward_pre_hook(lambda module, args: calls.clear())
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
    """EvoPrune watches the attention of the first block and biases that of the second."""
    model = tower(name, num_hidden_layers=2)
    x, y = pixels(model), pixels(model, seed=1)
    options = {"start": 0} if recipe == "evoprune" else {}
    tokenzoo.build(recipe, keep=32, **options).attach(model)
    wanted = [run(model, one) for one in (x, y)]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(model, (), x).module()
    for one, expected in zip((x, y), wanted, strict=True):
        for found in (run(compiled, one), run(exported, one)):
            assert gap(found.last_hidden_state, expected.last_hidden_state) <= 1e-5
            assert gap(found.pooler_output, expected.pooler_output) <= 1e-5
    if name == "siglip2":
        x["pixel_attention_mask"][1, 60:] = 0
        for unfilled in (compiled, exported):
            with pytest.raises(RuntimeError, match="does not fill its patches"):
                run(unfilled, x)
    torch.compiler.reset()


def test_compiled_with_an_eager_attention() -> None:
    model = tower("clip", attn_implementation="eager", num_hidden_layers=2)
    x = pixels(model)
    tokenzoo.build("tome", keep=32).attach(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    reduced = run(model, x).last_hidden_state
    assert gap(run(compiled, x).last_hidden_state, reduced) <= 1e-5
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("kind", "options", "output"),
    [
        ("CLIPVisionModelWithProjection", {"projection_dim": 16}, "image_embeds"),
        ("ViTForImageClassification", {"num_labels": 7}, "logits"),
    ],
)
def test_models_that_read_cls_alone(kind: str, options: dict[str, int], output: str) -> None:
    model = made(kind, **tower_sizes(**options))
    x = pixels(model)
    bare = run(model, x)[output]
    with tokenzoo.build("evoprune", keep=1.0).attach(model):
        assert gap(run(model, x)[output], bare) <= 1e-5
    with tokenzoo.build("evoprune", keep=16).attach(model) as attached:
        assert gap(run(model, x)[output], bare) > 1e-3
        assert attached.counts[-1] == 16
    assert torch.equal(run(model, x)[output], bare)
