"""Recipes that choose by the text of a prompt, after the projector of a whole model: `trim` and `cdpruner`.

In `planted` models the projector makes noise, but for two tokens of each image, which are the embeddings of
two words: the word that is in the prompt says which of them is kept.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf.models import IMAGE, VIDEO, WORDS, video
from tests.adapters.hf.vlm import calls
from tests.adapters.hf.vlm.calls import (
    CACHE,
    FLOWER,
    KINDS,
    NEW,
    TALL,
    TEMPLE,
    answer,
    cache_of,
    entering,
    logits,
    remains,
)
from tests.conformance.chats import moved, said, whole
from tokenzoo.attachment import EVERY
from tokenzoo.errors import AttachError

MODELS = (*KINDS, "qwen2_5_vl", "internvl", "paligemma", "gemma3", "idefics3", "lfm2_vl")
EACH = pytest.mark.parametrize("kind", MODELS)
RECIPES = pytest.mark.parametrize("name", ["trim", "cdpruner"])
NARROW = TEMPLE.crop((0, 0, 400, 10))  # crops that are letterbox alone have no placeholders
PROMPTS = ("<image> flower", "<image> dome <image> dome dome")
IMAGES = ((NARROW,), (FLOWER, TALL))
PIXELS = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")
PIXELS += ("pixel_attention_mask", "spatial_shapes")
WORD = {word: WORDS.index(word) for word in ("flower", "dome")}


def inputs(
    kind: str, prompts: Sequence[str], images: Sequence[Sequence[Any]], side: str = "left"
) -> Any:
    """What the processor of that model returns.

    Of PaliGemma with the images before the words; where a tile has marks, which are words, with more words.
    """
    if kind in ("idefics3", "lfm2_vl"):
        short = {id(NARROW): NARROW.resize((100, 50))}  # LFM2-VL has no room for so narrow an image
        images = [[short.get(id(image), image) for image in some] for some in images]
        prompts = [re.sub(r"(flower|dome)", r"\1 " * 30, prompt) for prompt in prompts]
    if kind == "paligemma":
        prompts = [f"{'<image> ' * p.count('<image>')}{p.replace('<image>', '')}" for p in prompts]
    return calls.inputs(whole(kind), prompts, images, None, side)


def built(kind: str, name: str, keep: int | float, **options: Any) -> tokenzoo.Method:
    """Qwen's tokens keep their order: there the others cannot become a token of their own."""
    alone = {"mean": False} if (kind, name) == ("qwen2_5_vl", "trim") else {}
    return tokenzoo.build(name, keep=keep, **alone, **options)


def planted(kind: str) -> Any:
    """A copy of a model whose projector makes noise, and of each image two words."""
    model = copy.deepcopy(whole(kind))
    base = model.model
    embed = base.get_input_embeddings()
    with torch.no_grad():  # opposites: the text of one excludes the other
        embed.weight[WORD["dome"]] = -embed.weight[WORD["flower"]]

    def plant(projector: nn.Module, args: Any, output: Tensor) -> Tensor:
        words = embed(torch.tensor([*WORD.values()])).detach()
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        noise = 0.2 * words.std() * noise
        if kind == "qwen2_5_vl":
            counts = [h * w // 4 for t, h, w in base.visual.grid_thw.tolist() for _ in range(t)]
            begins = torch.tensor([sum(counts[:i]) for i in range(len(counts))])
            noise[begins], noise[begins + 1] = words[0], words[1]
        else:
            noise[:, 3], noise[:, 8] = words[0], words[1]
        return noise

    def see(tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        tower.grid_thw = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]

    if kind == "qwen2_5_vl":
        base.visual.register_forward_pre_hook(see, with_kwargs=True)
        base.visual.merger.register_forward_hook(plant)
    else:
        projector = getattr(base, "connector" if kind == "idefics3" else "multi_modal_projector")
        projector.register_forward_hook(plant)
    return model


def kept(model: Any, call: dict[str, Any], ids: Tensor) -> dict[str, list[int]]:
    """How often each word stands in the place of a placeholder, by row of `ids [b, m]`."""
    embeds, embed = call["inputs_embeds"], model.model.get_input_embeddings()
    here = (ids == IMAGE) | (ids == VIDEO)
    words = {word: embed(torch.tensor(token)) for word, token in WORD.items()}
    return {
        word: ((torch.cosine_similarity(embeds, own, -1) > 0.999) & here).sum(1).tolist()
        for word, own in words.items()
    }


@EACH
@RECIPES
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_image_is_chosen_from_by_its_own_prompt(kind: str, name: str, side: str) -> None:
    model, given = planted(kind), inputs(kind, PROMPTS, IMAGES, side)
    method = built(kind, name, 2 if name == "trim" and kind != "qwen2_5_vl" else 1, negated=False)
    with method.attach(model) as attached, entering(model) as told:
        logits(model, given)
        short = attached.shorten(dict(given))["input_ids"]
        visuals = attached.adapter.visuals(given, attached.token_plan)
        found = kept(model, told[0], short)
    # Of every image, tile or crop that has placeholders one token stays.
    units = [one.units for one in visuals[IMAGE]]
    assert found["flower"][0] + found["dome"][1] == sum(units)
    assert found["flower"][1] == found["dome"][0] == 0
    assert min(found["flower"][0], found["dome"][1]) >= 1
    if kind in ("llava_next", "llava_onevision"):
        assert visuals[IMAGE][0].encoded > units[0]
    assert remains(model) == []


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("llava_onevision", FLOWER),
        ("qwen2_5_vl", FLOWER),
        ("qwen2_5_vl", FLOWER.resize((28, 28))),  # four tokens: nothing is chosen from these
    ],
)
def test_images_and_videos_of_a_call(kind: str, image: Any) -> None:
    """The projector runs once for each kind."""
    model, prompts, film = planted(kind), ["<image> flower", "<video> dome dome"], video(4)
    given = calls.inputs(model, prompts, [[image], []], [film])
    method = tokenzoo.build("trim", keep=4, mean=False, negated=False)
    with method.attach(model) as attached, entering(model) as told:
        logits(model, given)
        found = kept(model, told[0], attached.shorten(dict(given))["input_ids"])
    slices = 4 if kind in KINDS else 2
    assert found["flower"][0] >= 1
    assert (found["dome"][0], found["dome"][1]) == (int(image is not FLOWER), slices)
    assert found["flower"][1] == 0


@EACH
@RECIPES
def test_images_are_encoded_once_and_chosen_from_in_a_copy_too(kind: str, name: str) -> None:
    model, given = whole(kind), inputs(kind, PROMPTS, IMAGES)
    with built(kind, name, 1.0).attach(model):  # nothing is chosen, so no prompt is needed
        model.model.get_image_features(**{k: v for k, v in given.items() if k in PIXELS})
    passes: list[Any] = []
    with built(kind, name, 5).attach(model) as attached:
        expected = logits(model, given)
        assert {one.features for one in attached.passes} == {5}
        twin = copy.deepcopy(model)
        projector = model.get_submodule(attached.adapter.projector)
        counting = projector.register_forward_hook(lambda *_: passes.append(None))
        assert torch.equal(answer(model, given)[:, 0], expected[:, -1].argmax(-1))
        (spans,) = attached.adapter.visuals(given, EVERY).values()
        assert len(passes) == 1 + max(one.run for one in spans)
        counting.remove()
    assert torch.equal(logits(twin, given), expected)
    assert remains(model) == []


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_a_conversation_and_labels(kind: str) -> None:
    """What a cache holds, and what is to be learnt, is no question."""
    model = planted(kind)
    say = torch.nn.functional.one_hot(torch.tensor(WORD["flower"]), len(WORDS)).float()
    saying = model.lm_head.register_forward_hook(lambda _, args, output: output * 0 + say)
    first = inputs(kind, ["<image> flower flower"], [[FLOWER]])
    second = inputs(kind, ["<image> dome dome dome dome"], [[TALL]])
    with built(kind, "cdpruner", 1, negated=False).attach(model), entering(model) as told:
        one = said(model, first)
        told.clear()
        new = torch.cat([one.sequences[:, -NEW:], second["input_ids"]], 1)
        both = moved(first, new)
        if kind == "qwen2_5_vl":
            both["mm_token_type_ids"] = (both["input_ids"] == IMAGE).long()
        both |= {name: second[name] for name in PIXELS if name in second}
        said(model, both, **{CACHE: cache_of(one)})
        embeds = told[0]["inputs_embeds"]
        own = model.model.get_input_embeddings()(torch.tensor(WORD["dome"]))
        # Four as words, and one in the place of the image.
        assert int((torch.cosine_similarity(embeds, own, -1) > 0.999).sum()) == 5
        saying.remove()
        taught = inputs(kind, ["<image> dome flower flower"], [[FLOWER]])
        labels = torch.where(taught["input_ids"] == WORD["flower"], WORD["flower"], -100)
        told.clear()
        model(**taught, labels=labels).loss.backward()
        embeds = told[0]["inputs_embeds"]
        assert int((torch.cosine_similarity(embeds, own, -1) > 0.999).sum()) == 2


@EACH
def test_a_prompt_without_words(kind: str) -> None:
    model = whole(kind)
    words = inputs(kind, PROMPTS, IMAGES)
    special = [WORDS.index(word) for word in ("<pad>", "<s>", "<image>")]
    given = dict(words)
    mask = torch.isin(given["input_ids"], torch.tensor(special))
    given["attention_mask"] = given["attention_mask"] * mask  # of every row the words are padding
    with built(kind, "cdpruner", 5).attach(model) as attached:
        expected = logits(model, words)
        for call in (logits, answer):
            with pytest.raises(AttachError, match=r"row 0 of input_ids has an image and no text"):
                call(model, given)
        pixels = {name: value for name, value in given.items() if name in PIXELS}
        with pytest.raises(AttachError, match=r"images are encoded without one: call the model"):
            attached.model.model.get_image_features(**pixels)
        embeds = model.model.get_input_embeddings()(words["input_ids"])
        with pytest.raises(AttachError, match=r"no input_ids"):
            model(inputs_embeds=embeds, attention_mask=words["attention_mask"], **pixels)
        assert torch.equal(logits(model, words), expected)
    assert remains(model) == []
