"""Train the small LLaVA of the task clips: `tokenzoo/weights/clips.safetensors`.

    pip install -e '.[eval]'
    python benchmarks/train_clips.py --cache clip-features --sources 3000 --minutes 40
    python benchmarks/train_clips.py --test  # the shipped weights, as in their model card

It begins with the weights of collage-vqa. The tower is frozen, so it runs once: over frames without a dot,
and over the same frames with a dot in every cell. A clip is put together from the features of their cells,
with noise, since the light changes from frame to frame. Training has four parts:

1. align: each projected patch names the digit, the colour and the place of its cell, and the dot;
2. short: questions about clips of two to four frames;
3. mixed: of four, six or eight;
4. long: of eight, half of them whole clips as they are.

In all but the first each visual token also names its frame after the Llama's first layer, and after a later
one the words that it is asked for by ("b2-three"). No token is ever removed in training. The student and
the loop are those of `vqa_training.py`.
"""

from __future__ import annotations

import argparse
import random
from importlib.resources import files
from typing import Any

import torch
import vqa_training as training
from clip_features import CELL_OF, PER_CELL, Sources, drawn_chunk, whole
from safetensors.torch import load
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from vqa_training import Course, Student, tensors

from tokenzoo.evaluation.vqa import llava, model
from tokenzoo.evaluation.vqa.clip_model import heading
from tokenzoo.evaluation.vqa.clip_questions import CLIP_KINDS, ask_clip, timelines
from tokenzoo.evaluation.vqa.clip_samples import asked_of, questions_of
from tokenzoo.evaluation.vqa.clip_words import (
    CELLS_THEN,
    CHANGES_THERE,
    CLIP_WORDS,
    COLOURS_THERE,
    DIGITS_THERE,
    DOTS_THEN,
    PLACES,
    TIMES,
)
from tokenzoo.evaluation.vqa.clips import CELLS, FRAMES, Story, clips
from tokenzoo.evaluation.vqa.collages import COLOURS
from tokenzoo.evaluation.vqa.question import Question
from tokenzoo.evaluation.vqa.vocabulary import BOS
from tokenzoo.evaluation.vqa.words import DIGITS

# Frames of a clip, in each part of the training.
LENGTHS = {"align": (2, 3, 4), "short": (2, 3, 4), "mixed": (4, 6, 8), "long": (FRAMES,)}
SLOW = ("colour-count", "change-when", "cut-when")  # asked twice as often
DOT_SHIFT = 2.0  # most patches have no dot
RARE = 0.1  # the weight of tokens that have no dot, or are of a cell that does not change
NOISE = 0.25  # at most, of a feature, in its standard deviations: another light changes 0.17
START = ("model.multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.bias")
EMBED = "model.language_model.embed_tokens.weight"


class ClipStudent(Student):
    """Projector and Llama on features of frames, `[b, f, n, c]`."""

    def heard(self, x: Tensor, words: Tensor, scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """Logits [b, q, v], and the states [b, f, n, d] of visual tokens, layer by layer."""
        b, f, n = x.shape[:3]
        embed = self.text.embed_tokens
        parts, at, seen = list[Tensor](), list[Tensor](), list[Tensor]()
        projected, here = self.project(x), 0.0
        for frame in range(f):
            said = torch.tensor([*[CLIP_WORDS.index[BOS]] * (frame == 0), *heading(frame)])
            parts += [embed(said).expand(b, -1, -1), projected[:, frame]]
            at += [
                here + torch.arange(len(said)),
                here + len(said) - 1 + scale * torch.arange(1, n + 1),
            ]
            seen += [torch.zeros(len(said), dtype=torch.bool), torch.ones(n, dtype=torch.bool)]
            here = at[-1][-1].item() + 1
        hidden, layers = self.after(torch.cat(parts, 1), torch.cat(at), words)
        which = torch.cat(seen).nonzero()[:, 0]
        return self.read(hidden), [one[:, which].unflatten(1, (f, n)) for one in layers]

    def answers(self, x: Tensor, words: Tensor, scale: float = 1.0) -> Tensor:
        return self.heard(x, words, scale)[0]


def start(vlm: Any, student: Student) -> None:
    """Begin with the weights of collage-vqa, whose words have the same tokens."""
    training.start(vlm)
    path = files("tokenzoo") / "weights" / model.WEIGHTS
    state = {name: value.float() for name, value in load(path.read_bytes()).items()}
    weight, bias = (state[name] for name in START)
    # Its features are not standardised.
    state[START[0]], state[START[1]] = weight * student.std, bias + weight @ student.mean
    words = vlm.state_dict()[EMBED].clone()
    words[: len(state[EMBED])] = state[EMBED]
    words[len(state[EMBED]) :] *= state[EMBED].std() / words.std()
    vlm.load_state_dict({**state, EMBED: words}, strict=False)


def align_loss(student: Student, x: Tensor, told: Story) -> tuple[Tensor, list[float]]:
    """The loss of patches that name what is in their cell, and the shares of right names."""
    logits = student.read(student.text.norm(student.project(x))).flatten(0, 2)  # [b*f*n, v]
    shape = x.shape[:3]
    wanted = {
        DIGITS: told.seen(told.digits)[:, :, CELL_OF],
        tuple(COLOURS): told.seen(told.colours)[:, :, CELL_OF],
        PLACES: CELL_OF.expand(shape),
    }
    dot = (told.dots[:, :, None] == CELL_OF).flatten().float()
    found = logits[:, CLIP_WORDS.index["dot"]] - DOT_SHIFT
    loss = binary_cross_entropy_with_logits(found, dot)
    right = [((found > 0) == (dot > 0)).float().mean().item()]
    for names, labels in wanted.items():
        part = logits[:, CLIP_WORDS.encode(names)]
        loss = loss + cross_entropy(part, labels.flatten())
        right.append((part.argmax(1) == labels.flatten()).float().mean().item())
    return loss, right


def frame_loss(student: Student, states: Tensor) -> tuple[Tensor, float]:
    """The loss of visual tokens [b, f, n, d] that name their frame, and the share of right names."""
    b, f, n = states.shape[:3]
    named = student.read(student.text.norm(states))[..., CLIP_WORDS.encode(TIMES[:f])]
    labels = torch.arange(f)[:, None].expand(b, f, n)
    loss = cross_entropy(named.flatten(0, 2), labels.flatten())
    return loss, (named.argmax(-1) == labels).float().mean().item()


def names(told: Story, cells: Tensor) -> dict[tuple[str, ...], Tensor]:
    """What visual tokens in the cells [n] are asked for by: places in words, [b, f, n]; -1: none."""
    frames = torch.arange(told.dots.shape[1])[:, None]  # [f, 1]
    dotted = told.dots[:, :, None] == cells
    new = ((told.changes[:, None] == frames) & (frames > 0))[:, :, cells]
    return {
        CELLS_THEN: (frames * CELLS + cells).expand_as(new),
        DOTS_THEN: torch.where(dotted, frames, -1),
        COLOURS_THERE: told.seen(told.colours)[:, :, cells] * CELLS + cells,
        DIGITS_THERE: told.seen(told.digits)[:, :, cells] * CELLS + cells,
        CHANGES_THERE: torch.where(new, cells, -1),
    }


def name_loss(
    student: Student, layers: list[Tensor], told: Story, cells: Tensor
) -> tuple[Tensor, list[float]]:
    """The loss of visual tokens that say the words which they are asked for by."""
    losses, right = list[Tensor](), list[float]()
    for words, labels in names(told, cells).items():
        states = student.text.norm(layers[3 if words is CHANGES_THERE else 2])
        found = student.read(states)[..., CLIP_WORDS.encode(words)]
        found = torch.cat([torch.zeros_like(found[..., :1]), found], -1)  # the first: none of these
        weight = torch.tensor([RARE, *[1.0] * len(words)])
        loss = cross_entropy(found.flatten(0, 2), labels.flatten() + 1, weight)
        losses.append(loss * (3 if words is CHANGES_THERE else 1))
        right.append((found.argmax(-1) == labels + 1)[labels >= 0].float().mean().item())
    return torch.stack(losses).sum(), right


def drawn(told: Story, count: int, rng: random.Random) -> list[list[Question]]:
    """Draw `count` questions about each clip, of all kinds in a random order."""
    rows = list[list[Question]]()
    for clip in timelines(told):
        kinds = [*CLIP_KINDS, *SLOW]
        rng.shuffle(kinds)
        rows.append([ask_clip(kinds[turn % len(kinds)], clip, rng) for turn in range(count)])
    return rows


def checked(told: Story, each: int = 4) -> list[list[Question]]:
    rng = random.Random(0)
    return [
        [ask_clip(kind, clip, rng) for kind in CLIP_KINDS for _ in range(each)]
        for clip in timelines(told)
    ]


def lesson(
    student: ClipStudent,
    data: Sources,
    part: str,
    turn: int,
    rng: random.Random,
    generator: torch.Generator,
    batch: int,
) -> tuple[Tensor, list[float]]:
    """The loss of a batch as large as that of `batch` long clips, and the shares of right answers."""
    frames = rng.choice(LENGTHS[part])
    if part == "long" and turn % 2 and data.whole is not None:
        x, told = data.drawn(batch, generator)
    else:
        x, told = data.clips(max(batch * FRAMES // frames, 1), frames, generator)
    noise = torch.randn(x.shape, generator=generator) * (NOISE * rng.random())
    x = x.float() + noise * student.std
    named, right = align_loss(student, x, told)
    if part == "align":
        return named, right
    words, answers = tensors(drawn(told, 12 if part == "short" else 24, rng), CLIP_WORDS.encode)
    # Places are to be read from the features: a shorter prompt has other positions.
    order = torch.arange(x.shape[2])
    if turn % 4 < 2:
        order = torch.randperm(x.shape[2], generator=generator)
    logits, layers = student.heard(x[:, :, order], words, scale=PER_CELL ** (-2 * rng.random()))
    framed, seen = frame_loss(student, layers[1])
    coded, codes = name_loss(student, layers, told, CELL_OF[order])
    hits = (logits.argmax(2) == answers).float().mean().item()
    loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
    return loss + 0.1 * named + 0.5 * framed + 0.2 * coded, [hits, seen, *codes, *right]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    data, (held, told_held) = Sources.read(args.cache), whole(args.cache, "validation")
    vlm = llava.untrained(CLIP_WORDS)
    student = ClipStudent(vlm, data.x.flatten(0, 1))
    start(vlm, student)

    def renew() -> None:
        nonlocal data
        data = Sources.read(args.cache)

    questions = checked(told_held)
    course = Course(
        (("align", args.align), ("short", args.short), ("mixed", args.mixed), ("long", 1.0)),
        lambda *step: lesson(student, data, *step, batch=args.batch),
        lambda: training.validate(student, held, questions, CLIP_WORDS.encode),
        renew,
    )
    training.train(args, student, vlm, course)


def right_answers(samples: int, seed: int) -> tuple[list[str], Tensor]:
    made = clips("test", samples, seed=seed)
    return list(CLIP_KINDS), asked_of(made.images, questions_of(made, seed)).right


def main() -> None:
    parser = training.arguments(
        __doc__, name="clips", minutes=40.0, align=0.05, short=0.35, mixed=0.7
    )
    parser.set_defaults(lr=1e-3)
    parser.add_argument("--sources", type=int, default=3000, help="frames of the training")
    parser.add_argument("--clips", type=int, default=100, help="whole clips of the training")
    args = parser.parse_args()
    splits = {
        "validation": 24 * FRAMES,
        "whole": args.clips * FRAMES,
        "train": 2 * args.sources,
    }
    training.run(args, "clips", right_answers, splits, drawn_chunk, train)


if __name__ == "__main__":
    main()
