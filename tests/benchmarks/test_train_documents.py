"""The training of documents: pages that are put together from others show what is said of them."""

from __future__ import annotations

import random
from importlib.resources import files

import torch
from safetensors.torch import load
from train_documents import CELL_OF, FRAMES, INKED, Features, contents, hints, start, window

from tokenzoo.evaluation.vqa import llava, model, words
from tokenzoo.evaluation.vqa.documents import LEFTS, Page, pages, printed
from tokenzoo.evaluation.vqa.page_questions import PLACES, WORDS
from tokenzoo.evaluation.vqa.question import Question


def test_new_pages_keep_words_places_and_frame_together() -> None:
    """Each patch says what is in its cell, its own place, and the frame."""
    drawn = pages("train", 700, seed=0)
    inside = [[WORDS.index.get(what or "", 0) for what in contents(page)] for page in drawn]
    frames = torch.tensor([FRAMES.index(page.frame) for page in drawn])
    told = [torch.tensor(inside)[:, CELL_OF], torch.arange(256).expand(700, -1)]
    told.append(frames[:, None].expand(-1, 256))
    x, made = Features(torch.stack(told, 2), drawn).batch(5, random.Random(0), mix=True)
    assert not [page for page in made if page in drawn]
    for patches, page in zip(x.long(), made, strict=True):
        wanted = torch.tensor([WORDS.index.get(what or "", 0) for what in contents(page)])
        assert patches[:, 0].equal(wanted[CELL_OF])
        assert patches[:, 1].equal(torch.arange(256))
        assert set(patches[:, 2].tolist()) == {FRAMES.index(page.frame)}


def test_windows_keep_slots_and_answers_together() -> None:
    """Each patch says what is in its cell, and where it is."""
    made = pages("train", 20, seed=0)
    inside = torch.tensor(
        [[WORDS.index.get(what or "", 0) for what in contents(page)] for page in made]
    )
    told = torch.stack([inside[:, CELL_OF], torch.arange(256).expand(20, -1)], 2)
    x, parts = window(told, made, random.Random(0))
    assert x.shape == (20, 96, 2)
    stamps = 0
    for patches, page, part in zip(x, made, parts, strict=True):
        wanted = torch.tensor([WORDS.index.get(what or "", 0) for what in contents(part)])
        assert patches[:, 0].equal(wanted[CELL_OF[patches[:, 1]]])
        left = set(CELL_OF[patches[:, 1]].tolist())
        assert len(left) == 6
        assert {cell for cell, what in enumerate(contents(page)) if what} & left == {
            cell for cell, what in enumerate(contents(part)) if what
        }
        stamps += part.stamp is not None
    assert 0 < stamps < 20


def test_hints_are_the_partner_and_the_words_that_are_compared() -> None:
    keys, values = [None] * 8, [None] * 8
    keys[2], values[2], keys[5], values[5] = "date", "cap", "size", "cup"
    page = Page(keys, values, None, "plain")
    asked = [
        Question("word-at", ("word", "at", "c1", "?"), "date"),
        Question("value-of", ("value", "of", "size", "?"), "cup"),
        Question("key-of", ("key", "of", "cap", "?"), "date"),
        Question("same", ("c2", "like", "f2", "?"), "no"),
    ]
    pages_of, at, tokens = hints([asked], [page])
    assert pages_of.tolist() == [0] * 4
    assert at.tolist() == [7, 11, 12, 14]
    assert [WORDS.words[token] for token in tokens] == ["f2", "c1", "cap", "cup"]


def test_words_are_in_the_patches_that_name_them() -> None:
    dark = 1 - printed(pages("train", 60, seed=0), seed=0).amin(1)  # [b, 224, 224]
    ink = (dark > 0.5).float().unfold(1, 14, 14).unfold(2, 14, 14).mean((0, 3, 4))  # [16, 16]
    ink = ink[:, 1:15].clone()  # without the box
    ink[:, 6] = 0  # and the rule
    inside = INKED.reshape(16, 16)[:, 1:15]
    assert LEFTS[0] // 14 == 1
    assert ink[inside].sum() > 0.95 * ink.sum()


def test_the_llama_begins_as_that_of_collages() -> None:
    vlm = llava.untrained(WORDS)
    start(vlm)
    state = load((files("tokenzoo") / "weights" / model.WEIGHTS).read_bytes())
    layers = "model.language_model.layers"
    same = [
        vlm.state_dict()[name].equal(state[name].float())
        for name in (f"{layers}.{layer}.self_attn.q_proj.weight" for layer in range(4))
    ]
    assert same == [True, True, False, True]  # the third reads what an earlier one found
    table = vlm.model.language_model.embed_tokens.weight
    theirs = state["model.language_model.embed_tokens.weight"].float()
    assert table[WORDS.index[PLACES[5]]].equal(theirs[words.INDEX[words.PLACES[5]]])
    assert table[WORDS.index["yes"]].equal(theirs[words.INDEX["yes"]])
