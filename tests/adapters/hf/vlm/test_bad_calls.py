"""What whole models refuse, with our error and the value that is wrong; and that they are as before."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import internvl, qwen
from tests.adapters.hf.vlm.calls import (
    CACHE,
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
from tests.conformance import chats
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import (
    AttachError,
    BadArgumentError,
    BudgetError,
    MissingEvidenceError,
    UnsupportedModelError,
)
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm, LastTokenAttention, Random, TextRelevance

OF_TWO = Batch((TWO,), ((TEMPLE, FLOWER),))


@contextmanager
def still_works(model: Any, given: Any, recipe: str, **options: Any) -> Generator[Any]:
    """A recipe on a model that answers afterwards what it answered before."""
    with tokenzoo.build(recipe, **{"keep": 21, **options}).attach(model) as attached:
        before = answer(model, given)
        yield attached
        assert torch.equal(answer(model, given), before)
    assert remains(model) == []


def images(times: int, model: Any, given: Any) -> dict[str, Any]:
    """A prompt for two images with so many."""
    more = {**OF_TWO.given(model), "batch_num_images": None}
    for name in {"pixel_values", "image_sizes"} & more.keys():
        more[name] = torch.cat([more[name], more[name]])[:times]
    return more


def of_patches(model: Any, given: Any) -> dict[str, Any]:
    return SINGLE.given(hf.llava(vision={"patch_size": 14}))


def of_onevision(model: Any, given: Any) -> dict[str, Any]:
    return SINGLE.given(whole("llava_onevision"))


def turned(model: Any, given: Any) -> dict[str, Any]:
    """Two wide and two tall images: as many placeholders in all, and not in each row."""
    padded = PADDED.given(model)
    return {**padded, **{k: padded[k].roll(1, 0) for k in ("pixel_values", "image_sizes")}}


def cut(begin: int, end: int, *names: str) -> Callable[[Any, Any], dict[str, Any]]:
    return lambda model, given: {name: given[name][:, begin:end] for name in names}


def of_four_dimensions(model: Any, given: Any) -> dict[str, Any]:
    n = given["input_ids"].shape[1]
    return {"attention_mask": torch.ones(1, 1, n, n, dtype=torch.bool).tril()}


def embedded(model: Any, given: Any) -> dict[str, Any]:
    embeds = model.get_input_embeddings()(given["input_ids"]).detach()
    return {"input_ids": None, "inputs_embeds": embeds}


def with_static_cache(model: Any, given: Any) -> dict[str, Any]:
    text = model.config.get_text_config()
    return {CACHE: transformers.StaticCache(config=text, max_cache_len=400), "use_cache": True}


def film(model: Any, given: Any) -> dict[str, Any]:
    return {**qwen.batch(model), "video_grid_thw": None}


def few_patches(model: Any, given: Any) -> dict[str, Any]:
    return {"pixel_values": given["pixel_values"][:-4]}


def few_frames(model: Any, given: Any) -> dict[str, Any]:
    films = chats.FILMS.given(model)
    return {**films, "pixel_values_videos": films["pixel_values_videos"][:1]}


LLAVAS, QWENS = " ".join(KINDS), "qwen2_vl qwen2_5_vl"
LAYERS, STRATEGY = "vision_feature_layer", "vision_feature_select_strategy"
IDS, MASK, TYPES = "input_ids", "attention_mask", "mm_token_type_ids"
Change = dict[str, Any] | Callable[[Any, Any], dict[str, Any]]
# In forward and in generate: models, what is other than in a good call, and what the error says.
WRONG: list[tuple[str, Change, str]] = [
    ("llava", of_patches, r"have 16 placeholders \(id 4; by row: 16"),
    ("llava_next", of_onevision, r"have 184 placeholders .* 234 \(234\), and 107"),
    (LLAVAS, partial(images, 1), "placeholders .* For 1 images .* Is this the"),
    (LLAVAS, partial(images, 3), "placeholders .* For 3 images .* Is this the"),
    ("llava_next", turned, "row 0 of input_ids ends within image"),
    ("llava", cut(0, 30, IDS, MASK), "have 28 placeholders"),
    (QWENS, cut(4, 99, IDS, MASK, TYPES), r"have \d+ placeholders"),
    ("llava_onevision", few_frames, rf"placeholders \(id {hf.VIDEO}; .* For 1 images"),
]
REFUSED: list[tuple[str, Change, str]] = [
    (LLAVAS, {LAYERS: -4}, "layer=-4 in a call, but .* planned on -[12]: set"),
    ("llava llava_next", {STRATEGY: "full"}, "'full' in a call, .* on 'default'"),
    ("llava_onevision", {STRATEGY: "default"}, "'default' in a call, .* on 'full'"),
    (f"{LLAVAS} {QWENS}", of_four_dimensions, r"attention_mask is \(1, 1, \d+, \d+\)"),
    ("llava", cut(1, 99, MASK), r"attention_mask is \(1, \d+\); with input_ids \(1"),
    (f"{LLAVAS} {QWENS}", embedded, "no input_ids.* not inputs_embeds"),
    (QWENS, {IDS: None}, "no input_ids"),
    ("llava_next llava_onevision", {"image_sizes": None}, "without image_sizes"),
    (QWENS, {"image_grid_thw": None}, "pixel_values without image_grid_thw"),
    (QWENS, few_patches, "patches were passed, but images"),
    (QWENS, film, "pixel_values_videos without video_grid_thw"),
    ("llava_onevision", {"batch_num_images": torch.tensor([1, 2])}, "counts 3 images, and 1 were"),
]
AFTER_LLM: list[tuple[str, Change, str]] = [  # with a recipe that works in the language model
    (LLAVAS, with_static_cache, r"a static cache .*\(layer 2\)"),
]
ENCODED = "mm_encoder_outputs"
if ENCODED in signature(transformers.LlavaForConditionalGeneration.forward).parameters:
    AFTER_LLM.append(("llava qwen2_vl", {ENCODED: {"image": 1}}, ENCODED))


@pytest.mark.parametrize(
    ("kind", "recipe", "change", "error", "says"),
    [
        (kind, recipe, change, error, says)
        for recipe, error, table in (
            ("evoprune", BadArgumentError, WRONG),
            ("evoprune", AttachError, REFUSED),
            ("fastv", AttachError, AFTER_LLM),
        )
        for kinds, change, says in table
        for kind in kinds.split()
    ],
)
def test_a_bad_call_is_refused(
    kind: str, recipe: str, change: Change, error: type[Exception], says: str
) -> None:
    model = chats.whole(kind)
    given = chats.CHATS[kind].single(model)
    with still_works(model, given, recipe, keep=21 if kind in KINDS else 0.33) as attached:
        wrong = {**given, **(change if isinstance(change, dict) else change(model, given))}
        wrong = {name: value for name, value in wrong.items() if value is not None}
        for call in (model, model.generate):
            with pytest.raises(error, match=says):
                call(**wrong)
        if "placeholders" in says:
            with pytest.raises(error, match=says):
                attached.shorten(wrong)


def test_a_mask_of_four_dimensions_after_a_step_in_the_language_model() -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    with (
        still_works(model, given, "fastv"),
        pytest.raises(AttachError, match=r"attention_mask is \(1, 1, \d+, \d+\)"),
    ):
        model(**{**given, **of_four_dimensions(model, given)})


STATIC = {"cache_implementation": "static"}
CONFIG = transformers.GenerationConfig(**STATIC, max_new_tokens=2)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "options",
    [
        STATIC,
        {"generation_config": CONFIG, "max_new_tokens": None, "do_sample": None},
        {"assistant_model": None},
        {"prompt_lookup_num_tokens": 2},
        {"prefill_chunk_size": 8},
    ],
    ids=lambda options: next(iter(options)),
)
def test_decoding_that_needs_one_length_of_the_cache(kind: str, options: dict[str, Any]) -> None:
    model = chats.whole(kind)
    given = chats.CHATS[kind].single(model)
    name = next(iter(options))
    told = "cache_implementation" if name == "generation_config" else name
    if name == "assistant_model":
        options = {name: model}
    with (
        still_works(model, given, "fastv", keep=0.33),
        pytest.raises(AttachError, match=rf"{told}=.* \(layer 2\)"),
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
        with pytest.raises(AttachError, match=r"made from another prompt: .* do not begin with"):
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


def test_what_the_configuration_says_may_be_said() -> None:
    model = whole("llava")
    given = SINGLE.given(model)
    with tokenzoo.build("evoprune", keep=21).attach(model):
        layer = model.config.vision_feature_layer
        assert torch.equal(logits(model, given, vision_feature_layer=layer), logits(model, given))


# What cannot be attached.


def flex() -> Any:
    model = hf.llava()
    model.set_attn_implementation("flex_attention")
    return model


def compiled(part: str) -> Any:
    model = hf.llava()
    model.get_submodule(part).compile(backend="eager")
    return model


def onevision() -> Any:
    return hf.llava_onevision(**{STRATEGY: "default"})


def vip() -> nn.Module:
    config = copy.deepcopy(whole("llava").config)
    both = {"vision_config": config.vision_config, "text_config": config.text_config}
    made = transformers.VipLlavaConfig(
        **both, vision_feature_layers=[-2, -3], image_token_index=hf.IMAGE
    )
    return transformers.VipLlavaForConditionalGeneration(made)


def clip() -> nn.Module:
    vision = whole("llava").config.vision_config.to_dict()
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, projection_dim=48))


def got_ocr() -> nn.Module:
    text = whole("llava_onevision").config.text_config.to_dict()
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    vision |= {"output_channels": 16, "image_size": 64, "window_size": 2}
    vision |= {"global_attn_indexes": [0]}
    config = transformers.GotOcr2Config(vision_config=vision, text_config=text)
    return transformers.GotOcr2ForConditionalGeneration(config)


def mistral() -> nn.Module:
    """A LLaVA whose language model has a window in all layers."""
    config = whole("llava").config
    text = transformers.MistralConfig(
        **{name: getattr(config.text_config, name) for name in ("hidden_size", "vocab_size")},
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        sliding_window=8,
    )
    vision = copy.deepcopy(config.vision_config)
    both = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=hf.IMAGE)
    return transformers.LlavaForConditionalGeneration(both).eval()


def windowed(kind: str) -> Any:
    """A Qwen with a window in half of the layers of its language model."""
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    return getattr(qwen, kind)(text=windows)


WINDOWED = (mistral, partial(windowed, "qwen2_vl"), partial(windowed, "qwen2_5_vl"))


def at(stage: Stage, scorer: Any = None, **options: Any) -> Recipe:
    chosen = SelectAssign(TopK(scorer or FeatureNorm()), Drop())
    return Recipe(Step(stage, Once(), chosen, Identity(), **options), keep=4)


RENUMBERED = Recipe(
    *at(Stage.LLM(1), Random()).steps,
    *at(Stage.LLM(2), LastTokenAttention(), positions="compact").steps,
    keep=0.2,
)
PARTS = ("", "model.language_model", "model.vision_tower.encoder.layers.1")
Made = str | Callable[[], Any]
UNSUPPORTED: list[tuple[Made, Any, str]] = [  # models, recipes, and what the error says
    (onevision, ("evoprune", "divprune", "fastv"), "has 0 prefix tokens: set it to 'full'"),
    (partial(hf.llava_next, **{STRATEGY: "full"}), "evoprune", "'full', .* set it to 'default'"),
    (partial(hf.llava, **{LAYERS: 0}), "evoprune", "hidden states 0 of a vision tower of 6"),
    (vip, "evoprune", r"VipLlava\w+ is not .* no spec .*attach\(model\.model\.vi"),
    (clip, "evoprune", "CLIPModel: only its vision tower .* tower inside it, mo"),
    (got_ocr, "evoprune", r"GotOcr2\w+ is not supported: .*windows.*zoo\.reduce"),
    (partial(internvl.internvl, **{LAYERS: -2}), "divprune", "layer=-2; .* set it to -1"),
    (partial(internvl.internvl, **{STRATEGY: "full"}), "divprune", "='full': set it to 'default'"),
]
UNATTACHED: list[tuple[Made, Any, str]] = [
    (flex, ("evoprune", "fastv"), "is 'flex_attention'; supported are sdpa, eager"),
    ("llava", at(Stage.LLM), r"Stage\.LLM: .*of 4 layers .* layers 1 to 3"),
    ("llava", tuple(at(Stage.LLM(i)) for i in (0, 4, 17, -1)), r"LLM\(-?\d+\): .* layers 1 to 3"),
    (LLAVAS, "downsample", r"works at Stage\.IMAGE; .* at block, features"),
    (partial(hf.llava, **{LAYERS: [-3, -2]}), "evoprune", r"Stage\.BLOCK; .* at llm, projected"),
    *((partial(compiled, part), "evoprune", "is compiled, and torch silently") for part in PARTS),
    *((make, "fastv", "sliding_attention") for make in WINDOWED),
    (QWENS, RENUMBERED, "positions='compact' at layer 2 .*positions='keep'"),
    ("paligemma paligemma2", "fastv", "Gemma2?Model .* at the stage 'llm'"),
]
CLS = ("fastervlm", "visionzip")
MISSING: list[tuple[Made, Any, str]] = [
    (LLAVAS, at(Stage.FEATURES, TextRelevance()), r"needs text .* text is .* Stage\.PROJECTED"),
    ("llava_onevision", CLS, r"needs cls_attention.* at Stage\.FEATURES"),
    (QWENS, CLS, r"ReceivedAttention\(\) in place of CLSAttention"),
]
FEWER: list[tuple[Made, Any, str]] = [
    (LLAVAS, tokenzoo.build("evoprune", keep=2).recipe, "keep=2 of 64 tokens"),
]


@pytest.mark.parametrize(
    ("made", "recipe", "error", "says"),
    [
        (made, recipe, error, says)
        for error, table in (
            (UnsupportedModelError, UNSUPPORTED),
            (AttachError, UNATTACHED),
            (MissingEvidenceError, MISSING),
            (BudgetError, FEWER),
        )
        for models, recipes, says in table
        for made in (models.split() if isinstance(models, str) else [models])
        for recipe in (recipes if isinstance(recipes, tuple) else [recipes])
    ],
)
def test_what_cannot_be_attached(
    made: Made, recipe: Any, error: type[Exception], says: str
) -> None:
    model = chats.whole(made) if isinstance(made, str) else made()
    with pytest.raises(error, match=says):
        tokenzoo.build(recipe).attach(model)
    assert remains(model) == []


@pytest.mark.parametrize("kind", KINDS)
def test_restoring_what_a_projector_reads(kind: str) -> None:
    with pytest.raises(AttachError, match=r"restore=True: the projector of Llava\w+ reads"):
        tokenzoo.build("evoprune", keep=20).attach(whole(kind), restore=True)
    assert remains(whole(kind)) == []


@pytest.mark.parametrize("make", WINDOWED)
def test_windows_of_the_language_model_do_not_matter_before_it(make: Callable[[], Any]) -> None:
    with tokenzoo.build("divprune", keep=8).attach(make()) as attached:
        assert attached.plan(20).visual == 8


def test_a_compiled_wrapper() -> None:
    with pytest.raises(AttachError, match=r"OptimizedModule is compiled, .* attach first"):
        tokenzoo.build("fastv").attach(torch.compile(hf.llava(), backend="eager"))


def test_the_tower_that_is_named_can_be_attached_to() -> None:
    model = vip()
    with pytest.raises(UnsupportedModelError) as caught:
        tokenzoo.build("evoprune").attach(model)
    named = re.search(r"model\.(\S+),", str(caught.value))
    assert named is not None
    tower = model.get_submodule(named[1])
    with tokenzoo.build("evoprune", keep=20).attach(tower) as attached, torch.no_grad():
        tower(torch.randn(1, 3, 56, 56))
        assert attached.features == 20


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
        with pytest.raises(AttachError, match=r"layer 2 of the .* do not carry the state"):
            logits(model, given)
        handle.remove()


def test_a_second_recipe() -> None:
    model = whole("llava")
    with still_works(model, SINGLE.given(model), "evoprune"):
        for _ in range(2):
            with pytest.raises(AttachError, match="a recipe is attached already"):
                tokenzoo.build("fastv").attach(model)


def test_shortening_without_prompts() -> None:
    with (
        tokenzoo.build("evoprune", keep=20).attach(hf.tower("clip")) as attached,
        pytest.raises(AttachError, match="prompt"),
    ):
        attached.shorten({"pixel_values": torch.zeros(1, 3, 56, 56)})
