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

A run that was stopped goes on from its checkpoint (OUT with the ending .ckpt). The learning rate follows
the share of the time that has gone by, so two runs are alike only in what they draw, not bit for bit.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tokenzoo.evaluation import TaskOptions, focus_vit
from tokenzoo.evaluation.statistics import estimate
from tokenzoo.evaluation.tasks import prepare
from tokenzoo.evaluation.tasks.collage_vqa import questions_of
from tokenzoo.evaluation.vqa import model as llava
from tokenzoo.evaluation.vqa.collages import CELLS, COLOURS, GRID, collages
from tokenzoo.evaluation.vqa.questions import KINDS, Question, Scene, ask
from tokenzoo.evaluation.vqa.words import BOS, DIGITS, INDEX, PLACES, encode

CHUNK = 16  # collages in a file of features
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
        files = [torch.load(path) for path in sorted(folder.glob(f"{split}-*.pt"))]
        if not files:
            raise SystemExit(f"{folder} has no features of {split} collages")
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


def cache(folder: Path, split: str, count: int) -> None:
    """Run the tower over `count` collages, and keep what the Llama reads of it, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = focus_vit.load_focus_vit().backbone
    tower.encoder.layer = tower.encoder.layer[: llava.LAYER]  # the last blocks are not read
    for chunk in range(-(-count // CHUNK)):
        path = folder / f"{split}-{chunk:04d}.pt"
        if path.exists():
            continue
        drawn = collages(split, CHUNK, seed=chunk, augment=split == "train")
        with torch.inference_mode():
            shown = tower(
                pixel_values=focus_vit.images_of(drawn.images), output_hidden_states=True
            ).hidden_states[-1]
        saved = {"x": shown[:, 1:].half(), "digits": drawn.digits}
        saved |= {"colours": drawn.colours, "dots": drawn.dots}
        torch.save(saved, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


def start(vlm: Any) -> None:
    """Give the Llama a start in which attention looks for what is alike, and hands it on."""
    text = vlm.model.language_model
    nn.init.normal_(text.embed_tokens.weight, std=llava.WIDTH**-0.5)
    for layer in text.layers:
        attention = layer.self_attn
        nn.init.orthogonal_(attention.q_proj.weight, gain=1.5)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight)
        nn.init.orthogonal_(attention.v_proj.weight, gain=0.7)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.T)
        nn.init.normal_(layer.mlp.down_proj.weight, std=0.01)


class Student(nn.Module):
    """Projector and Llama on features `[b, n, c]`, which are standardised until they are exported."""

    def __init__(self, vlm: Any, x: Tensor) -> None:
        super().__init__()
        flat = x[:256].float().flatten(0, 1)
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("std", flat.std(0))
        self.projector = vlm.model.multi_modal_projector
        self.text = vlm.model.language_model

    def project(self, x: Tensor) -> Tensor:
        return self.projector((x.float() - self.mean) / self.std)

    def read(self, hidden: Tensor) -> Tensor:
        """[..., c] -> logits of the words [..., v]"""
        return hidden @ self.text.embed_tokens.weight.T

    def answers(self, x: Tensor, words: Tensor, scale: float = 1.0) -> Tensor:
        """Features [b, n, c] and q questions of w words each, [b, q, w] -> logits [b, q, v].

        `scale` is the distance of the positions of two successive image tokens.
        """
        b, q, w = words.shape
        embed, n = self.text.embed_tokens, x.shape[1] + 1
        first = embed(torch.full((b, 1), INDEX[BOS]))
        whole = torch.cat([first, self.project(x), embed(words.flatten(1))], 1)
        mask = torch.ones(n + q * w, n + q * w, dtype=torch.bool).tril()
        mask[n:, n:] &= torch.block_diag(*[torch.ones(w, w)] * q).bool()
        seen = torch.arange(n) * scale
        at = torch.cat([seen, seen[-1] + 1 + torch.arange(w).repeat(q)])[None]
        hidden = self.text(
            inputs_embeds=whole,
            attention_mask=mask[None, None].expand(b, -1, -1, -1),
            position_ids=at.expand(b, -1),
            use_cache=False,
        ).last_hidden_state
        return self.read(hidden[:, n:].reshape(b, q, w, -1)[:, :, -1])


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


def tensors(asked: list[list[Question]]) -> tuple[Tensor, Tensor]:
    """Words [b, q, 4] and answers [b, q]."""
    words = torch.tensor([[encode(one.words) for one in row] for row in asked])
    return words, torch.tensor([encode([one.answer for one in row]) for row in asked])


@torch.no_grad()
def validate(student: Student, data: Features, each: int = 4) -> str:
    """The accuracy of each kind of question on whole validation collages, as text."""
    rng, right = random.Random(0), {kind: list[bool]() for kind in KINDS}
    scenes = whole(data)
    for begin in range(0, len(scenes), 8):
        part = slice(begin, begin + 8)
        asked = [
            [question for kind in KINDS for _ in range(each) if (question := ask(kind, one, rng))]
            for one in scenes[part]
        ]
        # A collage may have no digit that occurs once.
        if len({len(row) for row in asked}) > 1:
            continue
        words, answers = tensors(asked)
        hits = student.answers(data.x[part], words).argmax(2) == answers
        for row, line in zip(asked, hits.tolist(), strict=True):
            for question, hit in zip(row, line, strict=True):
                right[question.kind].append(hit)
    return " ".join(f"{kind} {sum(hits) / max(len(hits), 1):.3f}" for kind, hits in right.items())


def export(student: Student, vlm: Any, out: Path) -> None:
    """Write projector and Llama in float16; the standardisation goes into the projector's first layer."""
    state = {name: value.detach().clone() for name, value in vlm.state_dict().items()}
    name = "model.multi_modal_projector.linear_1."
    state[name + "weight"] = weight = state[name + "weight"] / student.std
    state[name + "bias"] = state[name + "bias"] - weight @ student.mean
    own = llava.own_tower(vlm)
    saved = {key: value.half().contiguous() for key, value in state.items() if key not in own}
    save_file(saved, out)


def steps(args: argparse.Namespace, spent: float) -> Iterator[tuple[str, float]]:
    """Yield the part and the share of the time that has gone by, until the time is over."""
    begin = time.monotonic() - spent
    while (share := (time.monotonic() - begin) / (60 * args.minutes)) < 1:
        part = "align" if share < args.align else "window" if share < args.window else "whole"
        yield part, share


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    data, held = (Features.read(args.cache, split) for split in ("train", "validation"))
    vlm = llava.untrained()
    start(vlm)
    student = Student(vlm, data.x)
    params = list(student.parameters())
    optimizer = torch.optim.AdamW(params, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    step, spent, checkpoint = 0, 0.0, args.out.with_suffix(".ckpt")
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["progress"]
    generator = torch.Generator().manual_seed(args.seed * 10**6 + step)
    rng = random.Random(args.seed * 10**6 + step)
    logged = saved_at = spent
    losses: list[float] = []
    right: list[float] = []
    for part, share in steps(args, spent):
        spent = share * 60 * args.minutes
        rate = args.lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * math.cos(share * math.pi / 2))
        for group in optimizer.param_groups:
            group["lr"] = rate
        mix = step % 2 == 0
        if part == "align":
            loss, right = align_loss(student, data.mixed(args.batch, generator, mix))
        else:
            batch = data.mixed(args.batch * (1 if part == "whole" else 3), generator, mix)
            x, scenes = window(batch, rng) if part == "window" else (batch.x, whole(batch))
            asked = [drawn(one, 24 if part == "whole" else 12, rng) for one in scenes]
            words, answers = tensors(asked)
            # Places are to be read from the features: a shorter prompt has other positions.
            if step % 4 < 2:
                x = x[:, torch.randperm(x.shape[1], generator=generator)]
            logits = student.answers(x, words, scale=PER_CELL ** (-2 * rng.random()))
            right = [(logits.argmax(2) == answers).float().mean().item()]
            named, _ = align_loss(student, batch.first(4))
            loss = cross_entropy(logits.flatten(0, 1), answers.flatten()) + 0.1 * named
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        losses.append(loss.item())
        if spent - logged > 30:
            mean = sum(losses) / len(losses)
            hits = " ".join(f"{one:.3f}" for one in right)
            print(
                f"{spent / 60:5.1f} min {part:6} step {step:5d} lr {rate:.1e} loss {mean:.3f} right {hits}",
                flush=True,
            )
            logged, losses = spent, []
        if spent - saved_at > args.every * 60:
            print(f"    validation: {validate(student, held)}", flush=True)
            export(student, vlm, args.out)
            saved = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**saved, "progress": (step, spent)}, checkpoint)
            data, saved_at = Features.read(args.cache, "train"), spent
    export(student, vlm, args.out)
    print(
        f"{step} steps, {len(data.x)} collages\nvalidation: {validate(student, held)}", flush=True
    )


def report(samples: int) -> None:
    """Print what the shipped model gets on test collages, with 95 % intervals and two baselines."""
    subject = prepare("collage-vqa", TaskOptions(samples=samples, seed=20_000_003))
    with torch.inference_mode():
        outcome = subject.score(subject.model, range(samples), "")
    asked = questions_of(collages("test", samples, seed=20_000_003), 20_000_003)[1]  # [s, 8]
    for name, scores in outcome.scores.items():
        found = estimate([int(one) if one.dtype == torch.bool else float(one) for one in scores])
        line = f"{name}: {100 * found.value:.1f} +- {100 * found.half:.1f} %"
        if name in KINDS:
            answers = asked[:, list(KINDS).index(name)]
            share = answers.bincount().max().item() / samples
            line += f", always the most common answer {100 * share:.1f} %"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, default=Path("collage-features"))
    parser.add_argument("--collages", type=int, default=4000, help="collages of the training")
    parser.add_argument("--only-cache", action="store_true", help="run the tower and stop")
    parser.add_argument("--minutes", type=float, default=52.0, help="time budget of the training")
    parser.add_argument(
        "--align", type=float, default=0.08, help="the share of it that ends part 1"
    )
    parser.add_argument(
        "--window", type=float, default=0.4, help="the share of it that ends part 2"
    )
    parser.add_argument("--batch", type=int, default=4, help="whole collages a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--every", type=float, default=5.0, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch likes")
    parser.add_argument("--out", type=Path, default=Path("collage_vqa.safetensors"))
    parser.add_argument("--test", type=int, nargs="?", const=100, help="test the shipped weights")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.test:
        report(args.test)
        return
    if args.collages:
        cache(args.cache, "validation", 3 * CHUNK)
        cache(args.cache, "train", args.collages)
    if not args.only_cache:
        train(args)


if __name__ == "__main__":
    main()
