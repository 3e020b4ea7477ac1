"""The training of clips: what is trained on features is what the exported model says of frames."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from clip_features import CELL_OF, Sources, drawn_chunk
from safetensors.torch import load_file
from vqa_training import export, tensors

from benchmarks.train_clips import LENGTHS, ClipStudent, drawn, lesson
from tests.evaluation.subjects import small_llava
from tokenzoo.evaluation import focus_vit
from tokenzoo.evaluation.vqa import llava
from tokenzoo.evaluation.vqa.clip_model import prompts
from tokenzoo.evaluation.vqa.clip_words import CLIP_WORDS
from tokenzoo.evaluation.vqa.clips import clips


def test_answers_from_features_are_those_of_the_exported_model(tmp_path: Path) -> None:
    made, vlm = clips("train", 2, seed=0, frames=3), small_llava(CLIP_WORDS)
    images = focus_vit.images_of(made.images)
    with torch.no_grad():
        shown = vlm.model.vision_tower(pixel_values=images.flatten(0, 1), output_hidden_states=True)
        x = shown.hidden_states[llava.LAYER][:, 1:].unflatten(0, (2, 3))  # [2, 3, 36, c]
        student = ClipStudent(vlm, x.flatten(0, 1))
        asked = drawn(made.story, 8, random.Random(0))
        words, _ = tensors(asked, CLIP_WORDS.encode)
        found = student.answers(x, words)  # [2, 8, v]
        export(student, vlm, tmp_path / "out.safetensors")
        state = load_file(tmp_path / "out.safetensors")
        vlm.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
        ids = prompts([one.words for one in asked[1]], range(3))
        wanted = vlm(input_ids=ids, pixel_values=images[1].repeat(8, 1, 1, 1)).logits[:, -1]
    assert torch.allclose(found[1], wanted, atol=0.02 * wanted.abs().max().item())
    assert found[1].argmax(1).equal(wanted.argmax(1))


def test_clips_put_together_keep_cells_and_answers_together() -> None:
    """Each patch says what is in its cell: digit, colour, cell, dot."""
    g = torch.Generator().manual_seed(0)
    digits, colours = (torch.randint(n, (900, 4), generator=g) for n in (10, 4))
    cells = torch.arange(4).expand(900, -1)
    told = torch.stack([digits, colours, cells], 2)[:, CELL_OF]  # [s, 36, 3]
    dotted = torch.stack([torch.zeros(900, 36, 1), torch.ones(900, 36, 1)], 1)
    x = torch.cat([told[:, None].expand(-1, 2, -1, -1), dotted], 3)
    shown, story = Sources(x, digits, colours).clips(20, 5, g)
    assert shown[..., 0].equal(story.seen(story.digits)[:, :, CELL_OF])
    assert shown[..., 1].equal(story.seen(story.colours)[:, :, CELL_OF])
    assert shown[..., 2].equal(CELL_OF.expand(20, 5, -1))
    assert shown[..., 3].bool().equal(story.dots[:, :, None] == CELL_OF)


@pytest.mark.parametrize("part", LENGTHS)
def test_a_lesson_of_each_part_reaches_projector_and_words(part: str) -> None:
    vlm, g = small_llava(CLIP_WORDS), torch.Generator().manual_seed(0)
    digits, colours = (torch.randint(n, (900, 4), generator=g) for n in (10, 4))
    data = Sources(torch.randn(900, 2, 36, 32, generator=g), digits, colours)
    student = ClipStudent(vlm, data.x.flatten(0, 1))
    loss, right = lesson(student, data, part, 0, random.Random(0), g, batch=1)
    loss.backward()
    reached = {name for name, value in student.named_parameters() if value.grad is not None}
    layers = {name for name in dict(student.named_parameters()) if ".layers." in name}
    assert {"projector.linear_1.weight", "text.embed_tokens.weight"} <= reached
    assert layers <= reached if part != "align" else not layers & reached
    assert all(0 <= one <= 1 for one in right)


def test_frames_of_the_training_come_without_dots_and_with_one_in_every_cell() -> None:
    images, kept = drawn_chunk("train", 0)
    plain, dotted = (images.amin(1) > 0.8).flatten(1).sum(1).split(8)
    assert kept["digits"].shape == (8, 4)
    assert plain.max() < 20 < dotted.min() / 4
