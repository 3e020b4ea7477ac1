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
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import BadArgumentError, UnknownNameError, UnsupportedModelError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.tools import model_loading, transformers_loading
from tokenzoo.tools.compatibility import examine

LLAVAS = {"llava": hf.llava, "llava_next": hf.llava_next, "llava_onevision": hf.llava_onevision}
QWENS = {"qwen2_vl": qwen.qwen2_vl, "qwen2_5_vl": qwen.qwen2_5_vl}
BUILDERS = {**LLAVAS, **QWENS}
# Of a tower: less than its own, so that a test takes no time.
NARROW = {"hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each tiny whole model, and of two towers."""
    made: dict[str, str] = {}
    models = {name: build() for name, build in BUILDERS.items()}
    models |= {name: hf.tower(name) for name in ("clip", "siglip2")}
    models["qwen2_5_vl_vision"] = models["qwen2_5_vl"].model.visual
    for name, model in models.items():
        path: Path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        made[name] = str(path)
    return made


@pytest.mark.parametrize("recipe", ["evoprune", "divprune", "fastv"])
@pytest.mark.parametrize("name", list(BUILDERS))
def test_a_whole_model_from_its_folder(folders: dict[str, str], name: str, recipe: str) -> None:
    verdict = examine(folders[name], recipe=recipe, keep=0.5)
    assert (verdict.verdict, verdict.reason) == ("works", "")
    assert verdict.family == type(BUILDERS[name]()).__name__
    assert verdict.identity == 0
    assert verdict.change is not None
    assert verdict.change > 1e-3
    assert bool(verdict.counts) == (recipe != "fastv")
    assert verdict.tokens == (11 * 13 if name in QWENS else 64)
    if name in QWENS:
        assert verdict.counts == verdict.planned or recipe == "fastv"
        assert recipe != "evoprune" or verdict.counts[-1] == 72


@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_a_tower_from_its_folder(folders: dict[str, str], name: str) -> None:
    verdict = examine(folders[name], keep=0.5, depth=3)
    assert (verdict.verdict, verdict.reason) == ("works", "")
    assert len(verdict.counts) == 3
    assert verdict.counts == verdict.planned
    assert (verdict.tokens, verdict.counts[-1]) == (64, 32)


@pytest.mark.parametrize("recipe", ["evoprune", "divprune"])
def test_a_packed_tower_from_its_folder_and_by_its_type(
    folders: dict[str, str], recipe: str
) -> None:
    """One has windows of 3 x 3 tokens, the other of 4 x 4, and neither divides the image."""
    here = examine(folders["qwen2_5_vl_vision"], recipe=recipe, keep=0.5, depth=3)
    typed = examine(
        "transformers:qwen2_5_vl_vision", recipe=recipe, keep=0.5, depth=3, batch=1, **NARROW
    )
    for verdict in (here, typed):
        assert (verdict.verdict, verdict.reason, verdict.identity) == ("works", "", 0)
        assert verdict.family == "Qwen2_5_VisionTransformerPretrainedModel"
        assert verdict.counts == verdict.planned
        assert (verdict.tokens, len(verdict.counts)) == (143, 3)
        assert verdict.counts[-1] == (72 if recipe == "evoprune" else 143)


@pytest.mark.parametrize("name", ["llava_onevision", *QWENS])
def test_a_recipe_that_does_not_fit_is_refused(folders: dict[str, str], name: str) -> None:
    verdict = examine(folders[name], recipe="fastervlm")
    assert verdict.verdict == "refused"
    assert "cls_attention" in verdict.reason


def test_only_the_configuration_is_read(folders: dict[str, str]) -> None:
    """The language model is a small one, whatever the checkpoint has; the weights are random."""
    model = model_loading.create(folders["llava"]).model
    assert model.config.text_config.hidden_size == 64
    assert len(model.model.vision_tower.encoder.layers) == 6
    assert (
        len(model_loading.create(folders["llava"], depth=2).model.model.vision_tower.encoder.layers)
        == 2
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 7])
def test_a_short_packed_tower_has_windows_and_a_block_without(
    folders: dict[str, str], depth: int
) -> None:
    """The tiny one sees the whole image in its blocks 2 and 4."""
    model = model_loading.create(folders["qwen2_5_vl"], depth=depth).model
    assert len(model.model.visual.blocks) == depth
    full = [i for i in (2, 4) if i < depth] or [depth - 1]
    adapter: Any = find_adapter(model)
    assert [i for i, reach in enumerate(adapter.reach) if not reach] == full
    assert (
        len(model_loading.create(folders["qwen2_vl"], depth=depth).model.model.visual.blocks)
        == depth
    )


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


@pytest.mark.parametrize("name", list(QWENS))
def test_a_published_configuration_is_made_with_a_small_language_model(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published(name)))
    model = model_loading.create(str(tmp_path), depth=4, device="meta").model
    assert type(model) is type(BUILDERS[name]())
    text, visual = model.config.text_config, model.model.visual
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (64, 4, 152064)
    assert sum(text.rope_parameters["mrope_section"]) * 2 == text.head_dim
    assert text.rope_parameters["rope_theta"] == 1e6
    assert set(text.layer_types) == {"full_attention"}
    adapter: Any = find_adapter(model)
    assert (len(adapter.blocks()), adapter.width) == (4, 1280)
    assert visual.merger.mlp[2].out_features == 64
    assert adapter.reach == ((0,) * 4 if name == "qwen2_vl" else (16, 16, 16, 0))
    given = transformers_loading.inputs(model, adapter, 1)
    assert given["pixel_values"].shape == (4 * 143, 3 * 2 * 14 * 14)
    assert (given["input_ids"] == 151655).sum() == 143


@pytest.mark.parametrize("name", list(BUILDERS))
def test_the_prompt_has_the_models_own_placeholders(name: str) -> None:
    model = BUILDERS[name]()
    given = transformers_loading.inputs(model, find_adapter(model), 2)
    with torch.no_grad():
        logits = model(**given).logits
    assert logits.shape[:2] == given["input_ids"].shape
    if name in QWENS:
        assert given["image_grid_thw"].tolist() == [[1, 22, 26]] * 2
        assert torch.equal(given["mm_token_type_ids"] == 1, given["input_ids"] == hf.IMAGE)


def test_a_type_without_sections_of_its_positions_is_made_small() -> None:
    """Qwen2-VL's default is in the code of its model."""
    narrow = {"embed_dim": 48, "num_heads": 4, "mlp_ratio": 2}
    verdict = examine("transformers:qwen2_vl", keep=0.5, depth=2, vision_config=narrow)
    assert (verdict.verdict, verdict.reason, verdict.identity) == ("works", "", 0)


@pytest.mark.parametrize("text", ["gemma", "gemma2"])
def test_paligemma_has_a_small_gemma_and_a_prefix(text: str, tmp_path: Path) -> None:
    """Its projector's width is an entry of two configurations, and all of the prompt is a prefix."""
    pg.paligemma(text).save_pretrained(tmp_path)
    verdict = examine(str(tmp_path), keep=0.5)
    assert (verdict.verdict, verdict.reason, verdict.identity) == ("works", "", 0)
    assert (verdict.family, verdict.tokens) == ("PaliGemmaForConditionalGeneration", pg.TOKENS)
    model = model_loading.create(str(tmp_path)).model
    given = transformers_loading.inputs(model, find_adapter(model), 2)
    assert given["token_type_ids"].shape == given["input_ids"].shape
    assert not given["token_type_ids"].any()
    full = model_loading.create("transformers:paligemma", depth=2, device="meta").model
    assert full.model.multi_modal_projector.linear.out_features == 64
    assert len(full.model.language_model.layers) == 4


def test_no_word_of_a_prompt_is_a_placeholder() -> None:
    """The tiny models have theirs among the words that a prompt may have."""
    assert 5 <= hf.VIDEO < 50
    model = hf.llava_onevision()
    ids = transformers_loading.inputs(model, find_adapter(model), 64)["input_ids"]
    assert not (ids == hf.VIDEO).any()
    assert len(ids.unique()) > 30


def test_types_and_what_is_none() -> None:
    assert {"llava", "clip_vision_model", "siglip_vision_model"} <= set(
        transformers_loading.names()
    )
    with pytest.raises(UnknownNameError, match=r"no model 'llavaa'; the nearest are .*llava"):
        model_loading.create("transformers:llavaa")
    with pytest.raises(BadArgumentError, match="cannot make 'clip_vision_model'"):
        model_loading.create("transformers:clip_vision_model", hidden_size=33)


def test_another_type_is_refused_by_name() -> None:
    verdict = examine("transformers:bert")
    assert verdict.verdict == "refused"
    assert "BertModel is not supported" in verdict.reason
    assert "LlavaForConditionalGeneration" in verdict.reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen3_vl", "deepstack"),
        ("glm4v", "Glm4vForConditionalGeneration is not supported. Supported are"),
        ("gemma3", "Gemma3ForConditionalGeneration: only its vision tower can be reduced"),
        ("mistral3", "Mistral3ForConditionalGeneration is not supported"),
    ],
)
def test_a_multimodal_type_without_an_adapter_is_refused(name: str, reason: str) -> None:
    verdict = examine(f"transformers:{name}")
    assert verdict.verdict == "refused"
    assert reason in verdict.reason


def test_around_another_model_the_tower_is_named() -> None:
    """ColQwen2 encodes and places the images itself: the whole Qwen inside it would be too much."""
    vlm = qwen.qwen2_vl()
    config = transformers.ColQwen2Config(vlm_config=vlm.config, embedding_dim=16)
    model = transformers.ColQwen2ForRetrieval(config)
    with pytest.raises(UnsupportedModelError, match=r"inside it, model\.vlm\.visual, and use"):
        find_adapter(model)
    assert find_adapter(model.vlm.visual).blocks()
