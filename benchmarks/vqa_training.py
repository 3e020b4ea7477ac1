"""What the trainings of the small LLaVAs share: the student, which reads cached features, and the loop.

A training script has its own images, questions and lessons, as `train_collage_vqa.py`. Many questions
are asked of an image at once, and none of them sees another. A run that was stopped goes on from its
checkpoint (OUT with the ending .ckpt). The learning rate follows the share of the time that has gone by, so
two runs are alike only in what they draw, not bit for bit.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenzoo.evaluation import TaskOptions, focus_vit
from tokenzoo.evaluation.statistics import estimate
from tokenzoo.evaluation.tasks import prepare
from tokenzoo.evaluation.vqa import llava

CHUNK = 16  # images in a file of features


class Asked(Protocol):
    """A question: its kind, words and answer."""

    @property
    def kind(self) -> str: ...
    @property
    def words(self) -> Sequence[str]: ...
    @property
    def answer(self) -> str: ...


Encode = Callable[[Sequence[str]], list[int]]
Draw = Callable[[str, int], tuple[Tensor, dict[str, Any]]]
Right = Callable[[int, int], tuple[Sequence[str], Tensor]]
Lesson = Callable[[str, int, random.Random, torch.Generator], tuple[Tensor, list[float]]]


@dataclass(frozen=True)
class Course:
    """What is taught.

    parts: names, each with the share of the time that ends it.
    lesson: from a part, a step and two generators to the loss of a batch, and shares of right answers.
    validate: the accuracy of each kind of question, as text.
    renew: called at each checkpoint: more features may have been cached meanwhile.
    """

    parts: Sequence[tuple[str, float]]
    lesson: Lesson
    validate: Callable[[], str]
    renew: Callable[[], None] = lambda: None


def cache(folder: Path, split: str, count: int, draw: Draw) -> None:
    """Run the tower over `count` images, and keep what the Llama reads of them, in float16.

    `draw` makes the images of a chunk, [16, 3, H, W] in 0..1, and what else is kept of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tower = focus_vit.load_focus_vit().backbone
    tower.encoder.layer = tower.encoder.layer[: llava.LAYER]  # the last blocks are not read
    for chunk in range(-(-count // CHUNK)):
        path = folder / f"{split}-{chunk:04d}.pt"
        if path.exists():
            continue
        images, kept = draw(split, chunk)
        with torch.inference_mode():
            shown = tower(
                pixel_values=focus_vit.images_of(images), output_hidden_states=True
            ).hidden_states[-1]
        torch.save({"x": shown[:, 1:].half(), **kept}, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


def cached(folder: Path, split: str) -> list[dict[str, Any]]:
    """Read the chunks that `cache` wrote."""
    files = [torch.load(path) for path in sorted(folder.glob(f"{split}-*.pt"))]
    if not files:
        raise SystemExit(f"{folder} has no features of the split {split}")
    return files


def start(vlm: Any) -> None:
    """Give the Llama a start in which attention looks for what is alike, and hands it on."""
    text = vlm.model.language_model
    nn.init.normal_(text.embed_tokens.weight, std=text.config.hidden_size**-0.5)
    for layer in text.layers:
        attention = layer.self_attn
        nn.init.orthogonal_(attention.q_proj.weight, gain=1.5)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight)
        nn.init.orthogonal_(attention.v_proj.weight, gain=0.7)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.T)
        nn.init.normal_(layer.mlp.down_proj.weight, std=0.01)


class Student(nn.Module):
    """Projector and Llama on features `[b, n, c]`, which are standardised until they are exported."""

    mean: Tensor
    std: Tensor

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
        first = self.text.embed_tokens(torch.full((len(x), 1), self.text.config.bos_token_id))
        seen = torch.cat([first, self.project(x)], 1)
        return self.read(self.after(seen, torch.arange(seen.shape[1]) * scale, words)[0])

    def after(self, seen: Tensor, at: Tensor, words: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Ask q questions of w words each, [b, q, w], after embeddings [b, n, c] at the positions [n].

        Returns what is read of each question [b, q, c]; and the states [b, n, c] of what is before the
        questions, as embedded and after each layer.
        """
        b, q, w = words.shape
        n = seen.shape[1]
        mask = torch.ones(n + q * w, n + q * w, dtype=torch.bool).tril()
        mask[n:, n:] &= torch.block_diag(*[torch.ones(w, w)] * q).bool()
        positions = torch.cat([at, at[-1] + 1 + torch.arange(w).repeat(q)])[None]
        found = self.text(
            inputs_embeds=torch.cat([seen, self.text.embed_tokens(words.flatten(1))], 1),
            attention_mask=mask[None, None].expand(b, -1, -1, -1),
            position_ids=positions.expand(b, -1),
            use_cache=False,
            output_hidden_states=True,
        )
        last = found.last_hidden_state[:, n:].reshape(b, q, w, -1)[:, :, -1]
        return last, [one[:, :n] for one in found.hidden_states]


def tensors(asked: Sequence[Sequence[Asked]], encode: Encode) -> tuple[Tensor, Tensor]:
    """Words [b, q, w] and answers [b, q]."""
    words = torch.tensor([[encode(one.words) for one in row] for row in asked])
    return words, torch.tensor([encode([one.answer for one in row]) for row in asked])


@torch.no_grad()
def validate(student: Student, x: Tensor, asked: Sequence[Sequence[Asked]], encode: Encode) -> str:
    """The accuracy of each kind of question on features [b, n, c], as text."""
    right: dict[str, list[bool]] = {}
    for begin in range(0, len(asked), 8):
        rows = asked[begin : begin + 8]
        # An image may have no answer to some kind.
        if len({len(row) for row in rows}) > 1:
            continue
        words, answers = tensors(rows, encode)
        hits = student.answers(x[begin : begin + 8], words).argmax(2) == answers
        for row, line in zip(rows, hits.tolist(), strict=True):
            for question, hit in zip(row, line, strict=True):
                right.setdefault(question.kind, []).append(hit)
    return " ".join(f"{kind} {sum(hits) / len(hits):.3f}" for kind, hits in right.items())


def export(student: Student, vlm: Any, out: Path) -> None:
    """Write projector and Llama in float16; the standardisation goes into the projector's first layer."""
    state = {name: value.detach().clone() for name, value in vlm.state_dict().items()}
    name = "model.multi_modal_projector.linear_1."
    state[name + "weight"] = weight = state[name + "weight"] / student.std
    state[name + "bias"] = state[name + "bias"] - weight @ student.mean
    own = llava.own_tower(vlm)
    saved = {key: value.half().contiguous() for key, value in state.items() if key not in own}
    save_file(saved, out)


def parts(args: argparse.Namespace, spent: float, course: Course) -> Iterator[tuple[str, float]]:
    """Yield the part and the share of the time that has gone by, until the time is over."""
    begin = time.monotonic() - spent
    while (share := (time.monotonic() - begin) / (60 * args.minutes)) < 1:
        yield next(name for name, end in course.parts if share < end), share


def train(args: argparse.Namespace, student: Student, vlm: Any, course: Course) -> None:
    """Teach the student for `args.minutes`, and write the model to `args.out` now and then."""
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
    for part, share in parts(args, spent, course):
        spent = share * 60 * args.minutes
        rate = args.lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * math.cos(share * math.pi / 2))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, right = course.lesson(part, step, rng, generator)
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
            print(f"    validation: {course.validate()}", flush=True)
            export(student, vlm, args.out)
            saved = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**saved, "progress": (step, spent)}, checkpoint)
            course.renew()
            saved_at = spent
    export(student, vlm, args.out)
    print(f"{step} steps\nvalidation: {course.validate()}", flush=True)


def report(task: str, samples: int, asked: Right) -> None:
    """Print what the shipped model gets on test images, with 95 % intervals and a baseline.

    `asked` gives the kinds and the right answers [s, kinds] of so many samples and a seed.
    """
    seed = 20_000_003
    subject = prepare(task, TaskOptions(samples=samples, seed=seed))
    with torch.inference_mode():
        outcome = subject.score(subject.model, range(samples), "")
    kinds, right = asked(samples, seed)
    for name, scores in outcome.scores.items():
        found = estimate([int(one) if one.dtype == torch.bool else float(one) for one in scores])
        line = f"{name}: {100 * found.value:.1f} +- {100 * found.half:.1f} %"
        if name in kinds:
            share = right[:, list(kinds).index(name)].bincount().max().item() / samples
            line += f", always the most common answer {100 * share:.1f} %"
        print(line)


def arguments(
    about: str | None, *, name: str, minutes: float, **ends: float
) -> argparse.ArgumentParser:
    """The options of a script with the docstring `about`; `ends`: shares of the time that end the parts."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0] if about else None)
    parser.add_argument("--cache", type=Path, default=Path(f"{name}-features"))
    parser.add_argument("--only-cache", action="store_true", help="run the tower and stop")
    parser.add_argument("--minutes", type=float, default=minutes, help="time of the training")
    for part, end in ends.items():
        ends_part = "the share of it that ends this part"
        parser.add_argument(f"--{part}", type=float, default=end, help=ends_part)
    parser.add_argument("--batch", type=int, default=4, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--every", type=float, default=5.0, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch likes")
    parser.add_argument("--out", type=Path, default=Path(f"{name}.safetensors"))
    parser.add_argument("--test", type=int, nargs="?", const=100, help="test the shipped weights")
    return parser


def run(
    args: argparse.Namespace,
    task: str,
    asked: Right,
    splits: Mapping[str, int],
    draw: Draw,
    train: Callable[[argparse.Namespace], None],
) -> None:
    """Test the shipped weights (`--test`), or cache the features of `splits`, images each, and train."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.test:
        report(task, args.test, asked)
        return
    for split, count in splits.items():
        cache(args.cache, split, count, draw)
    if not args.only_cache:
        train(args)
