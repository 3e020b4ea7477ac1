"""Models of transformers by type or folder, and the doctor on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import paligemma as pg
from tests.adapters.hf.vlm import qwen
from tokenzoo.errors import BadArgumentError, UnknownNameError, UnsupportedModelError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.tools import model_loading, transformers_loading
from tokenzoo.tools.compatibility import CompatibilityReport, examine

LLAVAS = {"llava": hf.llava, "llava_next": hf.llava_next, "llava_onevision": hf.llava_onevision}
QWENS = {"qwen2_vl": qwen.qwen2_vl, "qwen2_5_vl": qwen.qwen2_5_vl}
BUILDERS = {**LLAVAS, **QWENS}
# Of a tower: less than its own, so that a test takes no time.
NARROW = {"hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each tiny whole model, and of three towers."""
    made: dict[str, str] = {}
    models = {name: build() for name, build in BUILDERS.items()}
    models |= {"gemma": pg.paligemma("gemma"), "gemma2": pg.paligemma("gemma2")}
    models |= {name: hf.tower(name) for name in ("clip", "siglip2")}
    models["qwen2_5_vl_vision"] = models["qwen2_5_vl"].model.visual
    for name, model in models.items():
        path: Path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        made[name] = str(path)
    return made


def works(name: str, **options: Any) -> CompatibilityReport:
    verdict = examine(name, keep=0.5, **options)
    assert (verdict.verdict, verdict.reason) == ("works", "")
    return verdict


@pytest.mark.parametrize("recipe", ["evoprune", "divprune", "fastv"])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_whole_model_from_its_folder(folders: dict[str, str], name: str, recipe: str) -> None:
    verdict = works(folders[name], recipe=recipe)
    assert verdict.family == type(BUILDERS[name]()).__name__
    assert verdict.identity == 0
    assert verdict.change is not None
    assert verdict.change > 1e-3
    assert bool(verdict.counts) == (recipe != "fastv")
    assert verdict.tokens == (11 * 13 if name in QWENS else 64)
    if name in QWENS and recipe != "fastv":
        assert verdict.counts == verdict.planned
        assert verdict.counts[-1] == (72 if recipe == "evoprune" else 143)


@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_a_tower_from_its_folder(folders: dict[str, str], name: str) -> None:
    verdict = works(folders[name], depth=3)
    assert verdict.counts == verdict.planned
    assert (verdict.tokens, len(verdict.counts), verdict.counts[-1]) == (64, 3, 32)


@pytest.mark.parametrize("recipe", ["evoprune", "divprune"])
def test_a_packed_tower_from_its_folder_and_by_its_type(
    folders: dict[str, str], recipe: str
) -> None:
    """One has windows of 3 x 3 tokens, the other of 4 x 4, and neither divides the image."""
    for name, options in (
        (folders["qwen2_5_vl_vision"], {}),
        ("transformers:qwen2_5_vl_vision", {"batch": 1, **NARROW}),
    ):
        verdict = works(name, recipe=recipe, depth=3, **options)
        assert verdict.identity == 0
        assert verdict.family == "Qwen2_5_VisionTransformerPretrainedModel"
        assert verdict.counts == verdict.planned
        assert (verdict.tokens, len(verdict.counts)) == (143, 3)
        assert verdict.counts[-1] == (72 if recipe == "evoprune" else 143)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 7])
def test_only_the_configuration_is_read(folders: dict[str, str], depth: int) -> None:
    """The language model is a small one; in a tower of the wanted depth some blocks see the whole image."""

    def made(name: str) -> Any:
        return model_loading.create(folders[name], depth=depth).model

    llava = made("llava")
    assert llava.config.text_config.hidden_size == 64
    assert len(llava.model.vision_tower.encoder.layers) == depth
    assert len(made("qwen2_vl").model.visual.blocks) == depth
    model = made("qwen2_5_vl")
    assert len(model.model.visual.blocks) == depth
    adapter: Any = find_adapter(model)
    whole = [i for i, reach in enumerate(adapter.reach) if not reach]
    assert whole == ([i for i in (2, 4) if i < depth] or [depth - 1])  # as the tiny one has them


def published(name: str) -> dict[str, Any]:
    """A configuration as the checkpoints of Qwen have it: flat, with older names, of 7B shapes."""
    vision: dict[str, Any] = {"depth": 32, "num_heads": 16, "patch_size": 14, "in_chans": 3}
    vision |= {"spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}
    if name == "qwen2_vl":
        vision |= {"embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4}
    else:
        vision |= {"hidden_size": 1280, "out_hidden_size": 3584, "intermediate_size": 3420}
        vision |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
    config: dict[str, Any] = {"model_type": name, "vision_config": vision}
    config |= {"hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18944}
    config |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    config |= {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28}
    config |= {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    config |= {"rope_theta": 1e6, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    config |= {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
    config |= {"image_token_id": 151655, "video_token_id": 151656}
    return config


@pytest.mark.parametrize("name", QWENS)
def test_a_published_configuration_is_made_with_a_small_language_model(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published(name)))
    model = model_loading.create(str(tmp_path), depth=4, device="meta").model
    assert type(model) is type(BUILDERS[name]())
    text = model.config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (64, 4, 152064)
    assert sum(text.rope_parameters["mrope_section"]) * 2 == text.head_dim
    assert text.rope_parameters["rope_theta"] == 1e6
    assert set(text.layer_types) == {"full_attention"}
    adapter: Any = find_adapter(model)
    assert (len(adapter.blocks()), adapter.width) == (4, 1280)
    assert model.model.visual.merger.mlp[2].out_features == 64
    assert adapter.reach == ((0,) * 4 if name == "qwen2_vl" else (16, 16, 16, 0))
    given = transformers_loading.inputs(model, adapter, 1)
    assert given["pixel_values"].shape == (4 * 143, 3 * 2 * 14 * 14)
    assert (given["input_ids"] == 151655).sum() == 143


@pytest.mark.parametrize("name", BUILDERS)
def test_the_prompt_has_the_models_own_placeholders_and_no_other(name: str) -> None:
    """The tiny models have theirs among the words that a prompt may have."""
    model = BUILDERS[name]()
    adapter = find_adapter(model)
    given = transformers_loading.inputs(model, adapter, 2)
    with torch.no_grad():
        assert model(**given).logits.shape[:2] == given["input_ids"].shape
    if name in QWENS:
        assert given["image_grid_thw"].tolist() == [[1, 22, 26]] * 2
        assert torch.equal(given["mm_token_type_ids"] == 1, given["input_ids"] == hf.IMAGE)
    if name == "llava_onevision":
        ids = transformers_loading.inputs(model, adapter, 64)["input_ids"]
        assert 5 <= hf.VIDEO < 50
        assert len(ids.unique()) > 30
        assert not (ids == hf.VIDEO).any()


def test_a_type_without_sections_of_its_positions_is_made_small() -> None:
    """Qwen2-VL's default is in the code of its model."""
    narrow = {"embed_dim": 48, "num_heads": 4, "mlp_ratio": 2}
    assert works("transformers:qwen2_vl", depth=2, vision_config=narrow).identity == 0


@pytest.mark.parametrize("text", ["gemma", "gemma2"])
def test_paligemma_has_a_small_gemma_and_a_prefix(folders: dict[str, str], text: str) -> None:
    """Its projector's width is an entry of two configurations, and all of the prompt is a prefix."""
    verdict = works(folders[text])
    assert (verdict.identity, verdict.tokens) == (0, pg.TOKENS)
    assert verdict.family == "PaliGemmaForConditionalGeneration"
    model = model_loading.create(folders[text]).model
    given = transformers_loading.inputs(model, find_adapter(model), 2)
    assert given["token_type_ids"].shape == given["input_ids"].shape
    assert not given["token_type_ids"].any()


def test_a_type_has_the_width_of_its_small_language_model() -> None:
    model = model_loading.create("transformers:paligemma", depth=2, device="meta").model.model
    assert model.multi_modal_projector.linear.out_features == 64
    assert len(model.language_model.layers) == 4


def test_types_and_what_is_none() -> None:
    known = {"llava", "clip_vision_model", "siglip_vision_model"}
    assert known <= set(transformers_loading.names())
    with pytest.raises(UnknownNameError, match=r"'llavaa'.*llava"):
        model_loading.create("transformers:llavaa")
    with pytest.raises(BadArgumentError, match=r"'clip_vision_model'.*33"):
        model_loading.create("transformers:clip_vision_model", hidden_size=33)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bert", ("BertModel", "LlavaForConditionalGeneration")),
        ("paddleocr_vl", ("PaddleOCRVLForConditionalGeneration", "on the grid of each image")),
        ("vipllava", ("there is no spec of it yet", "inside the tower")),
        ("mistral3", ("Mistral3ForConditionalGeneration is not supported",)),
    ],
)
def test_a_type_without_an_adapter_is_refused(name: str, words: tuple[str, ...]) -> None:
    verdict = examine(f"transformers:{name}")
    assert verdict.verdict == "refused"
    assert all(word in verdict.reason for word in words), verdict.reason


@pytest.mark.parametrize("name", ["llava_onevision", *QWENS])
def test_a_recipe_that_does_not_fit_is_refused(folders: dict[str, str], name: str) -> None:
    verdict = examine(folders[name], recipe="fastervlm")
    assert verdict.verdict == "refused"
    assert "cls_attention" in verdict.reason


def test_around_another_model_the_tower_is_named() -> None:
    """ColQwen2 encodes and places the images itself: the whole Qwen inside it would be too much."""
    config = transformers.ColQwen2Config(vlm_config=qwen.qwen2_vl().config, embedding_dim=16)
    model = transformers.ColQwen2ForRetrieval(config)
    with pytest.raises(UnsupportedModelError, match=r"model\.vlm\.visual"):
        find_adapter(model)
    assert find_adapter(model.vlm.visual).blocks()
