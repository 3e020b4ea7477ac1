"""Train the small LLaVA of the task collage-vqa: `tokenzoo/weights/collage_vqa.safetensors`.

    pip install -e '.[eval]'
    python benchmarks/train_collage_vqa.py --cache features --collages 4000 --minutes 52
    python benchmarks/train_collage_vqa.py --test  # the shipped weights, as in their model card

The tower is frozen, so it runs once over the training collages, and its features are kept on disk. Training
has three parts:

1. align: each projected patch names the digit, the colour and the place of its cell in the embedding of the
   Llama's own words, as captions align the projector of a large LLaVA;
2. windows of 2 x 2 cells, which have a quarter of the tokens, under the names that the cells have in the
   whole collage;
3. whole collages.

In half of the batches a collage is put together from cells of several ones, each in its own place. Many
questions are asked of a collage at once, and none of them sees another. No token is ever removed in
training.

The student and the loop are those of `vqa_training.py`.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vqa_training as training
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from vqa_training import CHUNK, Course, Student, tensors

from tokenzoo.evaluation.tasks.collage_vqa import questions_of
from tokenzoo.evaluation.vqa import llava
from tokenzoo.evaluation.vqa.collages import CELLS, COLOURS, GRID, collages
from tokenzoo.evaluation.vqa.question import Question
from tokenzoo.evaluation.vqa.questions import KINDS, Scene, ask
from tokenzoo.evaluation.vqa.words import DIGITS, INDEX, PLACES, WORDS, encode

SIDE = math.isqrt(llava.TOKENS)  # patches on a side: 16
PER_CELL = SIDE // GRID  # 4
# The cell in which each patch lies: [256]
CELL_OF = torch.arange(SIDE).div(PER_CELL, rounding_mode="floor")
CELL_OF = (CELL_OF[:, None] * GRID + CELL_OF).flatten()
SLOW = ("colour-count", "digit-count")  # learned last, so these are asked three times as often
DOT_SHIFT = 3.0  # most patches are not in the cell with the dot


@dataclass
class Features:
    """What the tower says of collages: x [b, 256, c]; digits, colours [b, 16]; dots [b]."""

    x: Tensor
    digits: Tensor
    colours: Tensor
    dots: Tensor

    @staticmethod
    def read(folder: Path, split: str) -> Features:
        files = training.cached(folder, split)
        return Features(*(torch.cat([one[name] for one in files]) for name in files[0]))

    def first(self, count: int) -> Features:
        return Features(*(one[:count] for one in (self.x, self.digits, self.colours, self.dots)))

    def mixed(self, count: int, rng: torch.Generator, mix: bool) -> Features:
        """Draw `count` collages; with `mix`, each from the cells of several, of which one has the dot."""
        first = torch.randint(len(self.x), (count,), generator=rng)
        owner, dots = first[:, None].repeat(1, CELLS), self.dots[first]
        for cell in range(CELLS if mix else 0):
            without = (self.dots != cell).nonzero()[:, 0]
            other = without[torch.randint(len(without), (count,), generator=rng)]
            owner[:, cell] = torch.where(dots == cell, first, other)
        x = self.x[owner[:, CELL_OF], torch.arange(llava.TOKENS)]
        cells = torch.arange(CELLS)
        return Features(x, self.digits[owner, cells], self.colours[owner, cells], dots)


def drawn_chunk(split: str, chunk: int) -> tuple[Tensor, dict[str, Any]]:
    """Draw the collages of a chunk, and what is kept of them."""
    made = collages(split, CHUNK, seed=chunk, augment=split == "train")
    return made.images, {"digits": made.digits, "colours": made.colours, "dots": made.dots}


def align_loss(student: Student, batch: Features) -> tuple[Tensor, list[float]]:
    """The loss of patches that name what is in their cell, and the shares of right names."""
    logits = student.read(student.text.norm(student.project(batch.x))).flatten(0, 1)  # [b*n, v]
    places = CELL_OF.repeat(len(batch.x))
    wanted = {
        DIGITS: batch.digits[:, CELL_OF].flatten(),
        tuple(COLOURS): batch.colours[:, CELL_OF].flatten(),
        PLACES: places,
    }
    dot = (batch.dots[:, None] == CELL_OF).flatten().float()
    loss = binary_cross_entropy_with_logits(logits[:, INDEX["dot"]] - DOT_SHIFT, dot)
    right: list[float] = []
    for names, labels in wanted.items():
        part = logits[:, encode(names)]
        loss = loss + cross_entropy(part, labels)
        right.append((part.argmax(1) == labels).float().mean().item())
    return loss, right


def window(batch: Features, rng: random.Random) -> tuple[Tensor, list[Scene]]:
    """Cut a window of 2 x 2 cells out of each collage: [b, 64, c]."""
    corner = [(rng.randrange(GRID - 1), rng.randrange(GRID - 1)) for _ in range(len(batch.x))]
    scenes, picks = [], []
    for index, (row, column) in enumerate(corner):
        places = [(row + i) * GRID + column + j for i in (0, 1) for j in (0, 1)]
        dot = int(batch.dots[index])
        digits, colours = (
            [int(values[index, place]) for place in places]
            for values in (batch.digits, batch.colours)
        )
        scenes.append(Scene(places, digits, colours, dot if dot in places else None))
        picks.append(torch.isin(CELL_OF, torch.tensor(places)).nonzero()[:, 0])
    index = torch.stack(picks)  # [b, 64]
    return batch.x.gather(1, index[:, :, None].expand(-1, -1, batch.x.shape[2])), scenes


def whole(batch: Features) -> list[Scene]:
    rows = zip(batch.digits.tolist(), batch.colours.tolist(), batch.dots.tolist(), strict=True)
    return [Scene(range(CELLS), digits, colours, dot) for digits, colours, dot in rows]


def drawn(scene: Scene, count: int, rng: random.Random) -> list[Question]:
    """Draw `count` questions that have an answer, of all kinds in a random order."""
    kinds, found = [*KINDS, *SLOW, *SLOW], list[Question]()
    rng.shuffle(kinds)
    for turn in range(100 * count):
        if len(found) == count:
            break
        question = ask(kinds[turn % len(kinds)], scene, rng)
        found += [] if question is None else [question]
    return found


def checked(data: Features, each: int = 4) -> list[list[Question]]:
    """Questions of each kind about whole validation collages; one may have no digit that occurs once."""
    rng = random.Random(0)
    return [
        [question for kind in KINDS for _ in range(each) if (question := ask(kind, one, rng))]
        for one in whole(data)
    ]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    data, held = (Features.read(args.cache, split) for split in ("train", "validation"))
    vlm = llava.untrained(WORDS)
    training.start(vlm)
    student = Student(vlm, data.x)

    def lesson(
        part: str, step: int, rng: random.Random, generator: torch.Generator
    ) -> tuple[Tensor, list[float]]:
        mix = step % 2 == 0
        if part == "align":
            return align_loss(student, data.mixed(args.batch, generator, mix))
        batch = data.mixed(args.batch * (1 if part == "whole" else 3), generator, mix)
        x, scenes = window(batch, rng) if part == "window" else (batch.x, whole(batch))
        asked = [drawn(one, 24 if part == "whole" else 12, rng) for one in scenes]
        words, answers = tensors(asked, encode)
        # Places are to be read from the features: a shorter prompt has other positions.
        if step % 4 < 2:
            x = x[:, torch.randperm(x.shape[1], generator=generator)]
        logits = student.answers(x, words, scale=PER_CELL ** (-2 * rng.random()))
        right = [(logits.argmax(2) == answers).float().mean().item()]
        named, _ = align_loss(student, batch.first(4))
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten()) + 0.1 * named
        return loss, right

    def renew() -> None:
        nonlocal data
        data = Features.read(args.cache, "train")

    questions = checked(held)
    course = Course(
        (("align", args.align), ("window", args.window), ("whole", 1.0)),
        lesson,
        lambda: training.validate(student, held.x, questions, encode),
        renew,
    )
    training.train(args, student, vlm, course)


def right_answers(samples: int, seed: int) -> tuple[list[str], Tensor]:
    return list(KINDS), questions_of(collages("test", samples, seed=seed), seed)[1]


def main() -> None:
    parser = training.arguments(__doc__, name="collage_vqa", minutes=52.0, align=0.08, window=0.4)
    parser.set_defaults(cache=Path("collage-features"))
    parser.add_argument("--collages", type=int, default=4000, help="collages of the training")
    args = parser.parse_args()
    splits = {"validation": 3 * CHUNK, "train": args.collages} if args.collages else {}
    training.run(args, "collage-vqa", right_answers, splits, drawn_chunk, train)


if __name__ == "__main__":
    main()
