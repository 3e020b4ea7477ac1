"""What whole models refuse, with our error and what it says; and that they are as before."""

from __future__ import annotations

import copy
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm.calls import (
    CACHE,
    FILMS,
    FLOWER,
    KINDS,
    PADDED,
    SINGLE,
    TEMPLE,
    TWO,
    Batch,
    answer,
    cache_of,
    logits,
    remains,
    whole,
)
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import (
    AttachError,
    BadArgumentError,
    BudgetError,
    MissingEvidenceError,
    TokenzooError,
    UnsupportedModelError,
)
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm, TextRelevance

EACH = pytest.mark.parametrize("kind", KINDS)
BOTH = Batch((TWO,), ((TEMPLE, FLOWER),))


def refused(model: Any, recipe: Any, error: type[TokenzooError], says: str, **options: Any) -> None:
    """Attaching is an error that says so, and leaves nothing."""
    with pytest.raises(error, match=says):
        tokenzoo.build(recipe, **options).attach(model)
    assert remains(model) == []


@contextmanager
def still_works(model: Any, given: Any, recipe: str, **options: Any) -> Generator[Any]:
    """A recipe on a model that answers afterwards what it answered before."""
    with tokenzoo.build(recipe, **{"keep": 21, **options}).attach(model) as attached:
        before = answer(model, given)
        yield attached
        assert torch.equal(answer(model, given), before)
    assert remains(model) == []


def in_each_call(model: Any, given: Any, error: type[TokenzooError], says: str) -> None:
    """Forward and generate say the same."""
    with pytest.raises(error, match=says):
        logits(model, given)
    with pytest.raises(error, match=says):
        model.generate(**given, max_new_tokens=2)


# --- placeholders ---


def test_the_processor_of_another_model() -> None:
    model, other = whole("llava"), hf.llava(vision={"patch_size": 14})
    says = (
        r"input_ids have 16 placeholders \(id 4; by row: 16\)\. For 1 images or videos the model's "
        r"processor writes 64 \(64\), and 21 are planned \(21\)\. Is this the processor of this model"
    )
    with still_works(model, SINGLE.given(model), "evoprune") as attached:
        given = SINGLE.given(other)
        in_each_call(model, given, BadArgumentError, says)
        with pytest.raises(BadArgumentError, match=says):
            attached.shorten(given)


def test_the_processor_of_another_family() -> None:
    model = whole("llava_next")
    with still_works(model, SINGLE.given(model), "evoprune"):
        given = SINGLE.given(whole("llava_onevision"))
        says = r"have 184 placeholders .* writes 234 \(234\), and 107 are planned \(107\)"
        in_each_call(model, given, BadArgumentError, says)


@EACH
def test_an_image_too_few_or_too_many(kind: str) -> None:
    model = whole(kind)
    given = BOTH.given(model)
    per_image = ("pixel_values", "image_sizes")
    with still_works(model, given, "evoprune"):
        few = {
            k: v[:1] if k in per_image else v for k, v in given.items() if k != "batch_num_images"
        }
        many = {k: torch.cat([v, v[:1]]) if k in per_image else v for k, v in given.items()}
        many.pop("batch_num_images", None)
        in_each_call(model, few, BadArgumentError, r"placeholders .* For 1 images .* Is this the")
        in_each_call(model, many, BadArgumentError, r"placeholders .* For 3 images .* Is this the")


def test_images_in_another_order_than_the_prompts() -> None:
    """Two wide and two tall images: as many placeholders in all, and not in each row."""
    model = whole("llava_next")
    given = PADDED.given(model)
    turned = {**given, "image_sizes": given["image_sizes"].roll(1, 0)}
    turned["pixel_values"] = given["pixel_values"].roll(1, 0)
    with still_works(model, given, "evoprune"):
        in_each_call(model, turned, BadArgumentError, r"row 0 of input_ids ends within image")


def test_placeholders_that_were_cut_off() -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    with still_works(model, given, "evoprune"):
        cut = {**given, "input_ids": given["input_ids"][:, :30]}
        cut["attention_mask"] = given["attention_mask"][:, :30]
        in_each_call(model, cut, BadArgumentError, r"input_ids have 27 placeholders")


# --- other arguments of a call ---


@EACH
def test_other_features_than_were_planned_on(kind: str) -> None:
    model = whole(kind)
    given = SINGLE.given(model)
    layer = model.config.vision_feature_layer
    with still_works(model, given, "evoprune"):
        assert torch.equal(
            logits(model, given, vision_feature_layer=layer), logits(model, given)
        )  # what is in the configuration may be said
        with pytest.raises(
            AttachError, match=rf"layer=-4 in a call, but .* planned on {layer}: set"
        ):
            logits(model, given, vision_feature_layer=-4)
        strategy = model.config.vision_feature_select_strategy
        other = "full" if strategy == "default" else "default"
        with pytest.raises(AttachError, match=rf"strategy='{other}' in a call, .* on '{strategy}'"):
            logits(model, given, vision_feature_select_strategy=other)


@EACH
@pytest.mark.parametrize("recipe", ["evoprune", "fastv"])
def test_a_mask_of_four_dimensions(kind: str, recipe: str) -> None:
    model = whole(kind)
    given = SINGLE.given(model)
    n = given["input_ids"].shape[1]
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    with (
        still_works(model, given, recipe),
        pytest.raises(AttachError, match=rf"attention_mask is \(1, 1, {n}, {n}\)"),
    ):
        logits(model, {**given, "attention_mask": mask})


def test_a_mask_of_another_length() -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    n = given["input_ids"].shape[1]
    with still_works(model, given, "evoprune"):
        wrong = {**given, "attention_mask": given["attention_mask"][:, 1:]}
        says = rf"attention_mask is \(1, {n - 1}\); with input_ids \(1, {n}\)"
        in_each_call(model, wrong, AttachError, says)


@EACH
@pytest.mark.parametrize("recipe", ["evoprune", "divprune"])
def test_embeddings_instead_of_ids(kind: str, recipe: str) -> None:
    model = whole(kind)
    given = SINGLE.given(model)
    rest = {name: value for name, value in given.items() if name != "input_ids"}
    rest["inputs_embeds"] = model.get_input_embeddings()(given["input_ids"]).detach()
    with still_works(model, given, recipe):
        in_each_call(model, rest, AttachError, r"no input_ids.* Pass\s+input_ids, as the processor")


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_images_without_their_sizes(kind: str) -> None:
    model = whole(kind)
    given = SINGLE.given(model)
    rest = {name: value for name, value in given.items() if name != "image_sizes"}
    with still_works(model, given, "evoprune"):
        in_each_call(model, rest, AttachError, "pixel_values without image_sizes: the processor")


# --- caches ---


@EACH
def test_a_static_cache_after_a_step_in_the_language_model(kind: str) -> None:
    model = whole(kind)
    given = SINGLE.given(model)
    says = r"with a recipe that works in the language model \(layer 2\): it has one length"
    with still_works(model, given, "fastv"):
        with pytest.raises(AttachError, match=rf"cache_implementation='static' {says}"):
            answer(model, given, cache_implementation="static")
        config = transformers.GenerationConfig(cache_implementation="static", max_new_tokens=2)
        with pytest.raises(AttachError, match=rf"cache_implementation='static' {says}"):
            model.generate(**given, generation_config=config)
        text = model.config.get_text_config()
        cache = transformers.StaticCache(config=text, max_cache_len=400)
        with pytest.raises(AttachError, match=rf"a static cache {says}"):
            logits(model, given, **{CACHE: cache}, use_cache=True)
        with pytest.raises(AttachError, match=rf"a static cache {says}"):
            answer(model, given, **{CACHE: cache})


@pytest.mark.parametrize(
    "options",
    [{"assistant_model": None}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 8}],
    ids=lambda options: next(iter(options)),
)
def test_decoding_that_cuts_the_cache(options: dict[str, Any]) -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    (name,) = options
    options = {name: model if options[name] is None else options[name]}
    with (
        still_works(model, given, "dart"),
        pytest.raises(
            AttachError, match=rf"generate\({name}=\.\.\.\) with a recipe .* \(layer 2\)"
        ),
    ):
        answer(model, given, **options)


@pytest.mark.parametrize("recipe", ["evoprune", "divprune"])
def test_a_cache_of_another_prompt(recipe: str) -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    with still_works(model, given, recipe):
        out = model.generate(**given, max_new_tokens=3, return_dict_in_generate=True)
        other = hf.inputs(model, "<image> " + "is the dog a dog ? " * 4, [[FLOWER]])
        assert other["input_ids"].shape[1] > out.sequences.shape[1]
        with pytest.raises(
            AttachError, match=r"made from another prompt: .* do not begin with the"
        ):
            answer(model, other, **{CACHE: cache_of(out)})


@pytest.mark.parametrize("recipe", ["fastv", "dart"])
def test_a_cache_that_was_cropped(recipe: str) -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    with still_works(model, given, recipe), torch.no_grad():
        out = model(**given, use_cache=True)
        cache = cache_of(out)
        cache.layers[3].keys = cache.layers[3].keys[:, :, :-2]
        cache.layers[3].values = cache.layers[3].values[:, :, :-2]
        mask = torch.cat([given["attention_mask"], torch.ones(1, 1, dtype=torch.int64)], 1)
        with pytest.raises(AttachError, match=r"cache holds \d+ tokens of layer 3, but \d+ were"):
            model(input_ids=out.logits[:, -1:].argmax(-1), attention_mask=mask, **{CACHE: cache})


# --- what cannot be attached ---


@pytest.mark.parametrize("recipe", ["evoprune", "tome", "fastervlm", "fastv"])
def test_an_attention_that_cannot_be_seen(recipe: str) -> None:
    model = hf.llava()
    model.set_attn_implementation("flex_attention")
    says = r"the attention of \w+ is 'flex_attention'; supported are sdpa, eager, .*\"sdpa\"\), then attach"
    refused(model, recipe, AttachError, says)


@EACH
def test_text_in_the_space_of_the_tower(kind: str) -> None:
    match = SelectAssign(TopK(TextRelevance()), Drop())
    recipe = Recipe(Step(Stage.FEATURES, Once(), match, Identity()), keep=4)
    says = (
        r"needs text at Stage\.FEATURES; \w+ provides .* one of these: text is .* Stage\.PROJECTED"
    )
    refused(whole(kind), recipe, MissingEvidenceError, says)


@pytest.mark.parametrize("recipe", ["fastervlm", "visionzip"])
def test_a_tower_without_a_class_token(recipe: str) -> None:
    says = r"needs cls_attention.* at Stage\.FEATURES; LlavaOnevision\w+ provides"
    refused(whole("llava_onevision"), recipe, MissingEvidenceError, says)


@EACH
@pytest.mark.parametrize("layer", [0, 4, 17, -1, None])
def test_a_layer_that_is_not_there(kind: str, layer: int | None) -> None:
    match = SelectAssign(TopK(FeatureNorm()), Drop())
    stage = Stage.LLM if layer is None else Stage.LLM(layer)
    recipe = Recipe(Step(stage, Once(), match, Identity()), keep=4)
    named = r"Stage\.LLM" if layer is None else rf"Stage\.LLM\({layer}\)"
    refused(whole(kind), recipe, AttachError, rf"{named}: .*of 4 layers .* layers 1 to 3")


@EACH
def test_stages_and_budgets_that_are_not_there(kind: str) -> None:
    refused(whole(kind), "downsample", AttachError, r"works at Stage\.IMAGE; .* at block, features")
    refused(whole(kind), "evoprune", BudgetError, r"keep=2 of 64 tokens is out of reach", keep=2)


def test_a_patch_that_would_be_cut_off_as_if_it_were_a_class_token() -> None:
    model = hf.llava_onevision(vision_feature_select_strategy="default")
    says = r"cuts one CLS token off, and its tower has 0 prefix tokens: set it to 'full'"
    for recipe in ("evoprune", "divprune", "fastv"):
        refused(model, recipe, UnsupportedModelError, says)


def test_a_class_token_that_would_be_packed_as_a_patch() -> None:
    model = hf.llava_next(vision_feature_select_strategy="full")
    says = r"strategy='full', with which a CLS token would be packed .* set it to 'default'"
    refused(model, "evoprune", UnsupportedModelError, says)


def test_states_of_the_tower_before_its_first_block() -> None:
    model = hf.llava(vision_feature_layer=0)
    says = r"reads the hidden states 0 of a vision tower of 6 blocks: there is no block"
    refused(model, "evoprune", UnsupportedModelError, says)


@pytest.mark.parametrize(
    "part", ["", "model.language_model", "model.vision_tower.encoder.layers.1"]
)
def test_a_compiled_model(part: str) -> None:
    model = hf.llava()
    model.get_submodule(part).compile(backend="eager")
    refused(
        model,
        "evoprune",
        AttachError,
        "is compiled, and torch silently ignores hooks that are added later",
    )


def test_a_compiled_wrapper() -> None:
    model = torch.compile(hf.llava(), backend="eager")
    with pytest.raises(
        AttachError, match=r"OptimizedModule is compiled, .* attach first, then comp"
    ):
        tokenzoo.build("fastv").attach(model)


def _vip() -> nn.Module:
    config = copy.deepcopy(whole("llava").config)
    vip = transformers.VipLlavaConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        vision_feature_layers=[-2, -3],
        image_token_index=hf.IMAGE,
    )
    return transformers.VipLlavaForConditionalGeneration(vip)


def _clip() -> nn.Module:
    vision = whole("llava").config.vision_config.to_dict()
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, projection_dim=48))


def _got_ocr() -> nn.Module:
    text = whole("llava_onevision").config.text_config.to_dict()
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    vision |= {
        "output_channels": 16,
        "image_size": 64,
        "window_size": 2,
        "global_attn_indexes": [0],
    }
    config = transformers.GotOcr2Config(vision_config=vision, text_config=text)
    return transformers.GotOcr2ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            _vip,
            r"VipLlava\w+: only its vision tower .* Attach to the tower inside it, model\.model\.vi",
        ),
        (
            _clip,
            r"CLIPModel: only its vision tower can be reduced\. Attach to the tower inside it, mo",
        ),
        (
            _got_ocr,
            r"GotOcr2ForConditionalGeneration is not supported\. Supported are .*zoo\.reduce",
        ),
    ],
)
def test_a_whole_model_that_is_not_followed(make: Any, says: str) -> None:
    refused(make(), "evoprune", UnsupportedModelError, says)


def test_the_tower_that_is_named_can_be_attached_to() -> None:
    model = _vip()
    with pytest.raises(UnsupportedModelError) as caught:
        tokenzoo.build("evoprune").attach(model)
    named = re.search(r"model\.(\S+),", str(caught.value))
    assert named is not None
    tower = model.get_submodule(named[1])
    with tokenzoo.build("evoprune", keep=20).attach(tower) as attached, torch.no_grad():
        tower(torch.randn(1, 3, 56, 56))
        assert attached.features == 20


# --- what is done afterwards ---


@pytest.mark.parametrize("recipe", ["evoprune", "fastervlm", "fastv", "dart"])
def test_another_attention_after_attach(recipe: str) -> None:
    model = hf.llava()
    given = SINGLE.given(model)
    bare = logits(model, given)
    with tokenzoo.build(recipe, keep=21).attach(model):
        model.set_attn_implementation("eager")
        with pytest.raises(AttachError, match=r"set_attn_implementation.* call it before attach"):
            logits(model, given)
    assert remains(model) == []
    model.set_attn_implementation("sdpa")
    assert torch.equal(logits(model, given), bare)


@pytest.mark.parametrize("recipe", ["fastv", "dart"])
def test_a_hook_of_the_callers_between_the_layers(recipe: str) -> None:
    model = whole("llava")
    given = SINGLE.given(model)

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * 1.0

    with still_works(model, given, recipe):
        handle = model.model.language_model.layers[1].register_forward_hook(hook)
        with pytest.raises(
            AttachError, match=r"layer 2 of the language model do not carry the state"
        ):
            logits(model, given)
        handle.remove()


def test_a_second_recipe() -> None:
    model = whole("llava")
    with still_works(model, SINGLE.given(model), "evoprune"):
        with pytest.raises(AttachError, match="a recipe is attached already"):
            tokenzoo.build("fastv").attach(model)
        with pytest.raises(AttachError, match="a recipe is attached already"):
            tokenzoo.build("fastv").attach(model)


def test_shortening_without_prompts() -> None:
    with (
        tokenzoo.build("evoprune", keep=20).attach(hf.tower("clip")) as attached,
        pytest.raises(AttachError, match="prompt"),
    ):
        attached.shorten({"pixel_values": torch.zeros(1, 3, 56, 56)})


def test_videos_and_their_placeholders() -> None:
    model = whole("llava_onevision")
    given = FILMS.given(model)
    with still_works(model, given, "evoprune"):
        few = {**given, "pixel_values_videos": given["pixel_values_videos"][:1]}
        in_each_call(
            model, few, BadArgumentError, rf"placeholders \(id {hf.VIDEO}; .* For 1 images"
        )


@EACH
def test_restoring_what_a_projector_reads(kind: str) -> None:
    model = whole(kind)
    with pytest.raises(AttachError, match=r"restore=True: the projector of Llava\w+ reads"):
        tokenzoo.build("evoprune", keep=20).attach(model, restore=True)
    assert remains(model) == []


def test_a_window_in_all_layers_of_the_language_model() -> None:
    config = whole("llava").config
    windowed = transformers.MistralConfig(
        **{name: getattr(config.text_config, name) for name in ("hidden_size", "vocab_size")},
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        sliding_window=8,
    )
    both = transformers.LlavaConfig(
        vision_config=copy.deepcopy(config.vision_config),
        text_config=windowed,
        image_token_id=hf.IMAGE,
    )
    model = transformers.LlavaForConditionalGeneration(both).eval()
    with pytest.raises(AttachError, match="layers with sliding_attention"):
        tokenzoo.build("fastv").attach(model)
    assert remains(model) == []
    tokenzoo.build("evoprune", keep=20).attach(model).detach()
