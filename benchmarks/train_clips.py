"""Train the small LLaVA of the task clips: `tokenzoo/weights/clips.safetensors`.

    pip install -e '.[eval]'
    python benchmarks/train_clips.py --cache clip-features --sources 3000 --minutes 40
    python benchmarks/train_clips.py --test  # the shipped weights, as in their model card

It begins with the weights of collage-vqa. The tower is frozen, so it runs once: over frames without a dot,
and over the same frames with a dot in every cell. A clip is put together from the features of their cells,
with noise, since the light changes from frame to frame. Training has three parts:

1. align: each projected patch names the digit, the colour and the place of its cell, and the dot;
2. short: questions about clips of two to four frames;
3. long: questions about clips of eight.

In both of the latter each visual token also names its frame after the Llama's first layer, and after its
third whether its cell has changed just then. No token is ever removed in training. The student and the loop
are those of `vqa_training.py`.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import vqa_training as training
from safetensors.torch import load
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from vqa_training import CHUNK, Course, Student, tensors

from tokenzoo.evaluation.vqa import llava, model
from tokenzoo.evaluation.vqa.clip_model import heading
from tokenzoo.evaluation.vqa.clip_questions import CLIP_KINDS, ClipQuestion, ask_clip, timelines
from tokenzoo.evaluation.vqa.clip_samples import asked_of, questions_of
from tokenzoo.evaluation.vqa.clip_words import CLIP_WORDS, PLACES
from tokenzoo.evaluation.vqa.clips import (
    CELLS,
    FRAMES,
    GRID,
    SIDE,
    Story,
    clips,
    framed,
    lit,
    painted,
    story,
)
from tokenzoo.evaluation.vqa.collages import COLOURS, disc
from tokenzoo.evaluation.vqa.words import DIGITS, NUMBERS

PER_CELL = SIDE // 14  # patches on a side of a cell
# The cell in which each patch of a frame lies: [36]
CELL_OF = torch.arange(GRID * PER_CELL).div(PER_CELL, rounding_mode="floor")
CELL_OF = (CELL_OF[:, None] * GRID + CELL_OF).flatten()
SLOW = ("colour-count", "digit-count", "change-when", "cut-when")  # asked twice as often
DOT_SHIFT, CHANGE_SHIFT = 2.0, 2.0  # most patches have no dot, and most frames bring no change
NOISE = 0.25  # at most, of a feature, in its standard deviations: another light changes 0.17
START = ("model.multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.bias")
EMBED = "model.language_model.embed_tokens.weight"


@dataclass
class Sources:
    """Frames of which clips are made: x [s, 2, 36, c], without dots and with; digits, colours [s, 4]."""

    x: Tensor
    digits: Tensor
    colours: Tensor

    @staticmethod
    def read(folder: Path) -> Sources:
        found = training.cached(folder, "train")
        x = torch.cat([one["x"].unflatten(0, (2, -1)).transpose(0, 1) for one in found])
        return Sources(
            x, *(torch.cat([one[name] for one in found]) for name in ("digits", "colours"))
        )

    def clips(self, count: int, frames: int, g: torch.Generator) -> tuple[Tensor, Story]:
        """Put clips together: features [b, f, 36, c], and what they show."""
        told = story(count, frames, g)
        wanted = (told.digits * len(COLOURS) + told.colours)[..., None]  # [b, 2, 4, 1]
        fits = wanted == (self.digits * len(COLOURS) + self.colours).T  # [b, 2, 4, s]
        if not fits.any(-1).all():
            raise SystemExit("too few frames for all digits in all colours: cache more")
        owner = (torch.rand(fits.shape, generator=g) * fits).argmax(-1)  # [b, 2, 4]
        owner = told.seen(owner)[:, :, CELL_OF]  # [b, f, 36]
        dotted = (told.dots[:, :, None] == CELL_OF).long()
        return self.x[owner, dotted, torch.arange(len(CELL_OF))], told


class ClipStudent(Student):
    """Projector and Llama on features of frames, `[b, f, n, c]`."""

    def heard(self, x: Tensor, words: Tensor, scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """Logits [b, q, v], and the hidden states [b, f, n, d] of visual tokens, layer by layer."""
        b, f, n = x.shape[:3]
        embed = self.text.embed_tokens
        parts, at, seen = list[Tensor](), list[Tensor](), list[Tensor]()
        projected, here = self.project(x), 0.0
        for frame in range(f):
            said = torch.tensor(heading(frame))
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


def drawn_chunk(split: str, chunk: int) -> tuple[Tensor, dict[str, Any]]:
    """Draw the frames of a chunk, and what is kept of them.

    For training eight frames, each without a dot and with one in every cell; for validation whole clips.
    """
    if split != "train":
        made = clips(split, CHUNK // FRAMES, seed=chunk)
        return made.images.flatten(0, 1), vars(made.story)
    g = torch.Generator().manual_seed(chunk)
    digits = torch.randint(10, (CHUNK // 2, CELLS), generator=g)
    colours = torch.randint(len(COLOURS), (CHUNK // 2, CELLS), generator=g)
    cells = painted(split, digits.flatten(), colours.flatten(), g, augment=True)
    dotted = torch.where(disc(len(cells), g, SIDE), 1.0, cells)
    both = (
        torch.stack([cells, dotted]).unflatten(1, (-1, CELLS)).flatten(0, 1)
    )  # [16, 4, 3, 42, 42]
    return lit(framed(both), g), {"digits": digits, "colours": colours}


def held_out(folder: Path) -> tuple[Tensor, Story]:
    """Read whole validation clips: features [b, f, 36, c], and what they show."""
    found = training.cached(folder, "validation")
    x = torch.cat([one.pop("x").unflatten(0, (-1, FRAMES)) for one in found])
    return x, Story(**{name: torch.cat([one[name] for one in found]) for name in found[0]})


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


def frame_loss(
    student: Student, layers: list[Tensor], told: Story, cells: Tensor
) -> tuple[Tensor, list[float]]:
    """The loss of visual tokens that name their frame, and say whether their cell has just changed.

    `cells` [n] are those of the tokens of a frame.
    """
    b, f, n = layers[0].shape[:3]
    named = student.read(student.text.norm(layers[1]))[..., CLIP_WORDS.encode(NUMBERS[1 : f + 1])]
    labels = torch.arange(f)[:, None].expand(b, f, n)
    frames = torch.arange(f)[:, None]
    new = (told.changes[:, None] == frames) & (frames > 0)  # [b, f, 4]
    new = new[:, :, cells].float()
    found = (
        student.read(student.text.norm(layers[3]))[..., CLIP_WORDS.index["change"]] - CHANGE_SHIFT
    )
    loss = cross_entropy(named.flatten(0, 2), labels.flatten())
    loss = loss + binary_cross_entropy_with_logits(found, new)
    hits = ((found > 0) == (new > 0)).float()[new > 0]
    return loss, [(named.argmax(-1) == labels).float().mean().item(), hits.mean().item()]


def drawn(told: Story, count: int, rng: random.Random) -> list[list[ClipQuestion]]:
    """Draw `count` questions about each clip, of all kinds in a random order."""
    rows = list[list[ClipQuestion]]()
    for clip in timelines(told):
        kinds = [*CLIP_KINDS, *SLOW]
        rng.shuffle(kinds)
        rows.append([ask_clip(kinds[turn % len(kinds)], clip, rng) for turn in range(count)])
    return rows


def checked(told: Story, each: int = 4) -> list[list[ClipQuestion]]:
    rng = random.Random(0)
    return [
        [ask_clip(kind, clip, rng) for kind in CLIP_KINDS for _ in range(each)]
        for clip in timelines(told)
    ]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    data, (held, told_held) = Sources.read(args.cache), held_out(args.cache)
    vlm = llava.untrained(CLIP_WORDS)
    student = ClipStudent(vlm, data.x.flatten(0, 1))
    start(vlm, student)

    def lesson(
        part: str, step: int, rng: random.Random, generator: torch.Generator
    ) -> tuple[Tensor, list[float]]:
        frames = FRAMES if part == "long" else rng.randint(2, 4)
        count = max(args.batch * FRAMES // frames, 1)
        x, told = data.clips(count, frames, generator)
        noise = torch.randn(x.shape, generator=generator) * (NOISE * rng.random())
        x = x.float() + noise * student.std
        named, right = align_loss(student, x, told)
        if part == "align":
            return named, right
        words, answers = tensors(
            asked_of(told, 24 if part == "long" else 12, rng), CLIP_WORDS.encode
        )
        # Places are to be read from the features: a shorter prompt has other positions.
        if step % 4 < 2:
            order = torch.randperm(x.shape[2], generator=generator)
        else:
            order = torch.arange(x.shape[2])
        scale = PER_CELL ** (-2 * rng.random())
        logits, layers = student.heard(x[:, :, order], words, scale)
        told_frames, seen = frame_loss(student, layers, told, CELL_OF[order])
        hits = (logits.argmax(2) == answers).float().mean().item()
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
        return loss + 0.1 * named + 0.2 * told_frames, [hits, *seen, *right]

    def renew() -> None:
        nonlocal data
        data = Sources.read(args.cache)

    questions = checked(told_held)
    course = Course(
        (("align", args.align), ("short", args.short), ("long", 1.0)),
        lesson,
        lambda: training.validate(student, held, questions, CLIP_WORDS.encode),
        renew,
    )
    training.train(args, student, vlm, course)


def right_answers(samples: int, seed: int) -> tuple[list[str], Tensor]:
    made = clips("test", samples, seed=seed)
    return list(CLIP_KINDS), asked_of(made.images, questions_of(made, seed)).right


def main() -> None:
    parser = training.arguments(
        __doc__.partition("\n")[0] if __doc__ else None,
        name="clips",
        minutes=40.0,
        align=0.05,
        short=0.35,
    )
    parser.set_defaults(lr=1e-3)
    parser.add_argument("--sources", type=int, default=3000, help="frames of the training")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.test:
        training.report("clips", args.test, right_answers)
        return
    training.cache(args.cache, "validation", 24 * FRAMES, drawn_chunk)
    training.cache(args.cache, "train", 2 * args.sources, drawn_chunk)
    if not args.only_cache:
        train(args)


if __name__ == "__main__":
    main()
