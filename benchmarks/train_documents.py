"""Train the small LLaVA of the task documents: `tokenzoo/weights/documents.safetensors`.

    pip install -e '.[eval]'
    python benchmarks/train_documents.py --cache features --pages 1200 --minutes 35
    python benchmarks/train_documents.py --test  # the shipped weights, as in their model card

The tower is frozen, so it runs once over the training pages, and its features are kept on disk. The layers
of the Llama begin as those of collage-vqa, which find places and compare what they read; so do the words
for places, numbers, yes and no. Training has three parts:

1. align: each projected patch names the word, if there is one, and the place of its cell, in the embedding
   of the Llama's own words;
2. windows of 3 of the 8 slots, which have 96 of the 256 tokens, under their names in the page;
3. whole pages.

In half of the batches a page is put together from the cells of several ones, each in its own place. An
answer that takes two steps has a hint: what the first step finds is asked of the state after two layers. No
token is ever removed in training. The student and the loop are those of `vqa_training.py`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import vqa_training as training
from safetensors.torch import load
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from vqa_training import CHUNK, Course, Student, tensors

from tokenzoo.evaluation.tasks.documents import questions_of
from tokenzoo.evaluation.vqa import llava, model, words
from tokenzoo.evaluation.vqa.documents import (
    COLUMNS,
    FRAMES,
    KEYS,
    SLOTS,
    VALUES,
    Page,
    pages,
    printed,
)
from tokenzoo.evaluation.vqa.page_questions import KINDS, PLACES, WORDS, ask, cells
from tokenzoo.evaluation.vqa.question import Question

PER_LINE = 32  # patches of a slot: 2 rows of 16
# The cell in which each patch lies: [256]
PATCH = torch.arange(llava.TOKENS)
CELL_OF = PATCH // PER_LINE * COLUMNS + PATCH % 16 // 8
INKED = (PATCH % 8 >= 1) & (
    torch.where(PATCH % 16 < 8, 4, 3) >= PATCH % 8
)  # where words are: [256]
NAMES = (*KEYS, *VALUES)
SLOW = (
    "same",
    "key-of",
    "value-of",
    "line-count",
)  # learned last, so these are asked three times as often


class Features:
    """What the tower says of pages, x [b, 256, c], and what is on them."""

    def __init__(self, x: Tensor, pages: Sequence[Page]) -> None:
        self.x, self.pages = x, pages
        self.pool: dict[tuple[str, int, str | None], list[int]] = {}
        for index, page in enumerate(pages):
            for cell, content in enumerate(contents(page)):
                self.pool.setdefault((page.frame, cell, content), []).append(index)

    @staticmethod
    def read(folder: Path, split: str) -> Features:
        chunks = training.cached(folder, split)
        x = torch.cat([one["x"] for one in chunks])
        return Features(x, [page for one in chunks for page in drawn_pages(split, one["chunk"])])

    def batch(self, count: int, rng: random.Random, mix: bool) -> tuple[Tensor, list[Page]]:
        """Draw `count` pages; with `mix` new ones, put together from the cells of several."""
        if not mix:
            picks = [rng.randrange(len(self.pages)) for _ in range(count)]
            return self.x[picks].float(), [self.pages[pick] for pick in picks]
        rows, made = list[Tensor](), list[Page]()
        while len(made) < count:
            (page,) = pages("train", 1, seed=rng.randrange(2**31))
            owners = [
                self.pool.get((page.frame, cell, content))
                for cell, content in enumerate(contents(page))
            ]
            if all(owners):  # else a word was never printed at its place
                owner = torch.tensor([rng.choice(some) for some in owners if some])
                rows.append(self.x[owner[CELL_OF], PATCH].float())
                made.append(page)
        return torch.stack(rows), made


def contents(page: Page) -> list[str | None]:
    """What is in each cell: a word, the stamp, or nothing."""
    found = cells(page)
    if page.stamp is not None:
        found[page.stamp] = "stamp"
    return found


def drawn_pages(split: str, chunk: int) -> list[Page]:
    return pages(split, CHUNK, seed=chunk)


def drawn_chunk(split: str, chunk: int) -> tuple[Tensor, dict[str, Any]]:
    """Print the pages of a chunk, and say what is kept of them."""
    return printed(drawn_pages(split, chunk), seed=chunk), {"chunk": chunk}


def start(vlm: Any) -> None:
    """Begin with the Llama of collage-vqa, and with its words where ours mean the same.

    The attention of its third layer begins anew: it is to read what is at a place that another found.
    """
    training.start(vlm)
    state = load((files("tokenzoo") / "weights" / model.WEIGHTS).read_bytes())
    text = vlm.model.language_model
    own = {
        name.removeprefix("model.language_model."): value.float()
        for name, value in state.items()
        if name.startswith("model.language_model.")
    }
    table = own.pop("embed_tokens.weight")
    own = {name: value for name, value in own.items() if "layers.2.self_attn" not in name}
    text.load_state_dict(own, strict=False)
    alike = {word: word for word in WORDS.words if word in words.INDEX}
    alike |= dict(zip(PLACES, words.PLACES, strict=True)) | {"word": "digit", "stamp": "dot"}
    with torch.no_grad():
        text.embed_tokens.weight.mul_(table.std() / text.embed_tokens.weight.std())
        for ours, theirs in alike.items():
            text.embed_tokens.weight[WORDS.index[ours]] = table[words.INDEX[theirs]]


def align_loss(student: Student, x: Tensor, made: Sequence[Page]) -> tuple[Tensor, list[float]]:
    """The loss of patches that name the word and the place of their cell, and the shares of right names."""
    logits = student.read(student.text.norm(student.project(x)))  # [b, 256, v]
    held = torch.tensor(
        [[WORDS.index[word] if word else -1 for word in contents(page)] for page in made]
    )[:, CELL_OF]  # [b, 256]
    held = torch.where(INKED, held, -1)
    names = torch.tensor(WORDS.encode(NAMES))
    frames = torch.tensor([FRAMES.index(page.frame) for page in made])
    wanted = [
        (names, (held[..., None] == names).float().argmax(-1), torch.isin(held, names)),
        (torch.tensor(WORDS.encode(PLACES)), CELL_OF.expand_as(held), held > -2),
        (torch.tensor(WORDS.encode(FRAMES)), frames[:, None].expand_as(held), held > -2),
    ]
    stamp = WORDS.index["stamp"]
    loss = binary_cross_entropy_with_logits(logits[..., stamp] - 3, (held == stamp).float())
    right: list[float] = []
    for some, labels, where in wanted:
        part = logits[where][:, some]
        loss = loss + cross_entropy(part, labels[where])
        right.append((part.argmax(1) == labels[where]).float().mean().item())
    return loss, right


def drawn(page: Page, count: int, rng: random.Random) -> list[Question]:
    """Draw `count` questions that have an answer, of all kinds in a random order."""
    kinds, found = [*KINDS, *SLOW, *SLOW], list[Question]()
    rng.shuffle(kinds)
    for turn in range(100 * count):
        if len(found) == count:
            break
        question = ask(kinds[turn % len(kinds)], page, rng)
        found += [] if question is None else [question]
    return found


def window(x: Tensor, made: Sequence[Page], rng: random.Random) -> tuple[Tensor, list[Page]]:
    """Cut three slots out of each page, of which two or three have a line: [b, 96, c].

    Often two of them have the same value, or "same" would seldom be answered by yes.
    """
    picks, parts = list[Tensor](), list[Page]()
    for page in made:
        lines = [slot for slot in range(SLOTS) if page.keys[slot]]
        equal = [slot for slot in lines if page.values.count(page.values[slot]) == 2]
        slots = set(equal if rng.random() < 0.4 else rng.sample(lines, 2))
        slots.add(rng.choice([slot for slot in range(SLOTS) if slot not in slots]))
        keys, values = (
            [word if slot in slots else None for slot, word in enumerate(side)]
            for side in (page.keys, page.values)
        )
        stamp = page.stamp if page.stamp // COLUMNS in slots else None
        parts.append(Page(keys, values, stamp, page.frame))
        picks.append(torch.isin(PATCH // PER_LINE, torch.tensor(sorted(slots))).nonzero()[:, 0])
    index = torch.stack(picks)  # [b, 96]
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2])), parts


def hints(asked: Sequence[Sequence[Question]], made: Sequence[Page]) -> tuple[Tensor, ...]:
    """What is found on the way to an answer: pages, words of all questions of a page, and tokens, [h] each.

    The question mark after a key or a value finds the place of its partner; a place finds its word.
    """
    found: list[tuple[int, int, int]] = []
    for index, (row, page) in enumerate(zip(asked, made, strict=True)):
        words = cells(page)
        for turn, one in enumerate(row):
            if one.kind in ("value-of", "key-of"):
                partner = PLACES[words.index(one.words[2]) ^ 1]
                found.append((index, 4 * turn + 3, WORDS.index[partner]))
            if one.kind == "same":
                for at in (0, 2):
                    word = words[PLACES.index(one.words[at])] or ""
                    found.append((index, 4 * turn + at, WORDS.index[word]))
    return torch.tensor(found).T.unbind(0)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    data, held = (Features.read(args.cache, split) for split in ("train", "validation"))
    vlm = llava.untrained(WORDS)
    start(vlm)
    student = Student(vlm, data.x)
    halfway: list[Tensor] = []  # the states after layer 2 of 4
    student.text.layers[1].register_forward_hook(
        lambda module, args, out: halfway.__setitem__(slice(None), [out])
    )

    def lesson(
        part: str, step: int, rng: random.Random, generator: torch.Generator
    ) -> tuple[Tensor, list[float]]:
        x, made = data.batch(args.batch * (1 if part == "whole" else 3), rng, step % 2 == 0)
        if part == "align":
            return align_loss(student, x, made)
        named, _ = align_loss(student, x[:4], made[:4])
        if part == "window":
            x, made = window(x, made, rng)
        count = 22 if part == "whole" else 12
        questions = [drawn(page, count, rng) for page in made]
        asked, answers = tensors(questions, WORDS.encode)
        # Places are to be read from the features: a shorter prompt has other positions.
        if step % 4 < 2:
            x = x[:, torch.randperm(x.shape[1], generator=generator)]
        logits = student.answers(x, asked, scale=16 ** -rng.random())
        right = [(logits.argmax(2) == answers).float().mean().item()]
        page, word, wanted = hints(questions, made)
        found = halfway[0][page, x.shape[1] + 1 + word]  # [h, c]
        on_the_way = cross_entropy(student.read(student.text.norm(found)), wanted)
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
        return loss + 0.1 * named + 0.5 * on_the_way, right

    def renew() -> None:
        nonlocal data
        data = Features.read(args.cache, "train")

    rng = random.Random(0)
    asked = [
        [one for kind in KINDS for _ in range(4) if (one := ask(kind, page, rng))]
        for page in held.pages
    ]
    course = Course(
        (("align", args.align), ("window", args.window), ("whole", 1.0)),
        lesson,
        lambda: training.validate(student, held.x, asked, WORDS.encode),
        renew,
    )
    training.train(args, student, vlm, course)


def right_answers(samples: int, seed: int) -> tuple[list[str], Tensor]:
    return list(KINDS), questions_of(pages("test", samples, seed=seed), seed)[1]


def main() -> None:
    parser = training.arguments(__doc__, name="documents", minutes=35.0, align=0.1, window=0.74)
    parser.add_argument("--pages", type=int, default=1200, help="pages of the training")
    args = parser.parse_args()
    splits = {"validation": 3 * CHUNK, "train": args.pages} if args.pages else {}
    training.run(args, "documents", right_answers, splits, drawn_chunk, train)


if __name__ == "__main__":
    main()
