"""The training of collage-vqa: what is trained on features is what the exported model says of images."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from vqa_training import Student, export, tensors

from benchmarks.train_collage_vqa import CELL_OF, Features, drawn, whole, window
from tests.evaluation.subjects import small_llava
from tokenzoo.evaluation import focus_vit
from tokenzoo.evaluation.vqa import llava, model
from tokenzoo.evaluation.vqa.collages import collages
from tokenzoo.evaluation.vqa.words import encode


def test_answers_from_features_are_those_of_the_exported_model(tmp_path: Path) -> None:
    made, vlm = collages("train", 2, seed=0), small_llava()
    images = focus_vit.images_of(made.images)
    with torch.no_grad():
        shown = vlm.model.vision_tower(pixel_values=images, output_hidden_states=True)
        x = shown.hidden_states[llava.LAYER][:, 1:]
        student, rng = Student(vlm, x), random.Random(0)
        asked = [
            drawn(one, 8, rng) for one in whole(Features(x, made.digits, made.colours, made.dots))
        ]
        words, _ = tensors(asked, encode)
        found = student.answers(x, words)  # [2, 8, v]
        export(student, vlm, tmp_path / "out.safetensors")
        state = load_file(tmp_path / "out.safetensors")
        vlm.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
        ids = model.prompts([one.words for one in asked[1]])
        wanted = vlm(input_ids=ids, pixel_values=images[1:].expand(8, -1, -1, -1)).logits[:, -1]
    assert torch.allclose(found[1], wanted, atol=0.02 * wanted.abs().max().item())
    assert found[1].argmax(1).equal(wanted.argmax(1))


def test_mixed_collages_and_windows_keep_cells_and_answers_together() -> None:
    """Each patch says what is in its cell: digit, colour, cell, dot."""
    g = torch.Generator().manual_seed(0)
    digits, colours = (torch.randint(n, (30, 16), generator=g) for n in (10, 4))
    dots = torch.randint(16, (30,), generator=g)
    cells = torch.arange(16).expand(30, -1)
    told = torch.stack([digits, colours, cells, (cells == dots[:, None]).long()], 2)  # [b, 16, 4]
    mixed = Features(told[:, CELL_OF], digits, colours, dots).mixed(20, g, mix=True)
    x, scenes = window(mixed, random.Random(0))
    for patches, digit, colour, dot in zip(
        mixed.x, mixed.digits, mixed.colours, mixed.dots, strict=True
    ):
        assert patches[:, 0].equal(digit[CELL_OF])
        assert patches[:, 1].equal(colour[CELL_OF])
        assert patches[:, 2].equal(CELL_OF)
        assert patches[:, 3].bool().equal(dot == CELL_OF)
    for patches, scene in zip(x, scenes, strict=True):
        cells = zip(scene.digits, scene.colours, scene.places, strict=True)
        rows = {(*one, int(one[2] == scene.dot)) for one in cells}
        assert {tuple(row) for row in patches.tolist()} == rows
