"""Train the digit-collage model that tokenzoo ships: `tokenzoo/weights/digits_vit.safetensors`.

    pip install -e '.[demo]'
    python benchmarks/train_digits.py --minutes 55 --out digits_vit.safetensors
    python benchmarks/train_digits.py --test  # the shipped weights, as in their model card

With the loss on the two answers alone, a model of this kind was still at chance after 30,000
collages: many digits must be read before one count can be right. So every patch token is asked as
well, by linear heads that are dropped afterwards, for the digit in its cell and whether that cell
is marked; and training begins with collages of 2x2 cells, which have a quarter of the tokens. The
model never sees reduced tokens in training, so that it favours no reduction method.

The learning rate follows the share of the time budget that has gone by, so that every run ends
annealed, on a slow machine too; for the same reason two runs are alike only in the collages they
draw, not bit for bit.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenzoo.tools.digits import (
    CELL,
    COUNT_CLASSES,
    PATCH,
    Collages,
    accuracy,
    collages,
    digits_vit,
    load_digits_vit,
)

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

GRID = 4 * CELL // PATCH  # patch tokens on a side of a whole collage: 16
MIDDLE = 6  # the block after which the patch tokens are asked for the first time


class Readers(nn.Module):
    """The dropped heads: [b, n, c] patch tokens to 10 digit logits and 1 "I am marked" logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.middle = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 11))
        self.last = nn.Linear(width, 11)


def sincos(width: int) -> Tensor:
    """[1, 257, c]: a start for the position embedding (learned from then on) in which near patches
    are alike, so that a token need not first find out which others lie in its cell."""
    bands = width // 4
    rates = math.pi / 2 ** torch.linspace(0.5, 5.0, bands)  # from about one patch to the collage
    angles = torch.arange(GRID)[:, None] * rates  # [16, c/4]
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # [16, c/2]
    rows, columns = one[:, None].expand(-1, GRID, -1), one[None].expand(GRID, -1, -1)
    patches = torch.cat([rows, columns], dim=2).reshape(1, GRID * GRID, width)
    return 0.5 * torch.cat([torch.zeros(1, 1, width), patches], dim=1)


def forward(
    vit: VisionTransformer, readers: Readers, images: Tensor, offset: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """[b, 3, s, s] images, whose top left cells lie at [b, 2] (row, column) of the 4x4 grid, to
    [b, 60] logits and two [b, n, 11] readings. For whole collages (offset 0) the logits are the
    model's own."""
    side = images.shape[-1] // PATCH
    x = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)  # [b, n, c]
    steps = torch.arange(side, device=images.device)
    rows = offset[:, :1] * (CELL // PATCH) + steps  # [b, side]
    columns = offset[:, 1:] * (CELL // PATCH) + steps  # [b, side]
    place = (rows[:, :, None] * GRID + columns[:, None]).flatten(1)  # [b, n]
    x = x + vit.pos_embed[0, 1:][place]
    first = vit.cls_token + vit.pos_embed[:, :1]
    x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)  # [b, 1 + n, c]
    readings: list[Tensor] = []
    for number, block in enumerate(vit.blocks, start=1):
        x = block(x)
        if number == MIDDLE:
            readings.append(readers.middle(x[:, 1:]))
    x = vit.norm(x)
    readings.append(readers.last(x[:, 1:]))
    return vit.head(x[:, 0]), readings


def losses(logits: Tensor, readings: list[Tensor], batch: Collages) -> tuple[Tensor, Tensor]:
    """The loss on the two answers, and the auxiliary one on the readings (both scalars)."""
    counts = batch.counts.clamp(max=COUNT_CLASSES - 1)
    logits = logits.float()
    main = F.cross_entropy(logits[:, :10], batch.answer)
    main = main + F.cross_entropy(logits[:, 10:].reshape(-1, COUNT_CLASSES), counts.flatten())
    # which cell each patch token lies in: [n]
    cells = math.isqrt(batch.digits.shape[1])
    at = torch.arange(cells, device=logits.device).repeat_interleave(CELL // PATCH)
    cell = (at[:, None] * cells + at).flatten()
    marked = (cell == batch.marked[:, None]).float()  # [b, n]
    aux = torch.zeros((), device=logits.device)
    for reading in readings:
        reading = reading.float()
        aux = aux + F.cross_entropy(
            reading[..., :10].flatten(0, 1), batch.digits[:, cell].flatten()
        )
        aux = aux + F.binary_cross_entropy_with_logits(reading[..., 10], marked)
    return main, aux / len(readings)


def evaluate(vit: VisionTransformer, split: str, count: int, device: torch.device) -> str:
    """Accuracy on `count` fixed collages in float32, through the model's own forward, as text."""
    vit.eval()
    data = collages(split, count, seed=10_000_019)
    with torch.no_grad():
        logits = torch.cat([vit(part.to(device)).cpu() for part in data.images.split(100)])
    vit.train()
    return ", ".join(f"{name} {value:.4f}" for name, value in accuracy(logits, data).items())


def export(vit: VisionTransformer, out: Path) -> None:
    """Write the weights in float16; the auxiliary heads are not among them."""
    state = {n: t.detach().half().cpu().contiguous() for n, t in vit.state_dict().items()}
    save_file(state, out)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson interval of a share of n independent trials."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def report(count: int = 5000, seed: int = 20_000_003) -> None:
    """Print the shipped model's accuracy on collages of test digits, with 95 % intervals."""
    vit = load_digits_vit()
    data = collages("test", count, seed=seed)
    with torch.inference_mode():
        logits = torch.cat([vit(part) for part in data.images.split(100)])  # [count, 60]
    for name, share in accuracy(logits, data).items():
        low, high = wilson(share, count)
        if name == "counts":
            # The ten counts of a collage hang together (one misread digit spoils two of them), so
            # the collage is the unit: the interval of a mean of `count` independent shares.
            whole = zip(
                data.images.split(1), data.digits.split(1), data.marked.split(1), strict=True
            )
            ones = zip(logits.split(1), (Collages(*parts) for parts in whole), strict=True)
            each = torch.tensor([accuracy(one, collage)[name] for one, collage in ones])
            half = 1.96 * each.std().item() / math.sqrt(count)
            low, high = share - half, share + half
        print(f"{name}: {100 * share:.2f} % ({100 * low:.2f} to {100 * high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=55.0, help="time budget")
    parser.add_argument("--small", type=float, default=0.15, help="share of it on 2x2 cells")
    parser.add_argument("--batch", type=int, default=24, help="whole collages a step")
    parser.add_argument("--small-batch", type=int, default=48, help="2x2 collages a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch likes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--out", type=Path, default=Path("digits_vit.safetensors"))
    parser.add_argument("--resume", type=Path, help="a checkpoint (OUT with the ending .ckpt)")
    parser.add_argument("--test", action="store_true", help="test the shipped weights and stop")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.test:
        report()
        return
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(gpu if args.device == "auto" else args.device)
    torch.manual_seed(args.seed)

    vit = digits_vit().to(device).train()
    with torch.no_grad():
        vit.pos_embed.copy_(sincos(vit.embed_dim))
    readers = Readers(vit.embed_dim).to(device)
    params = [*vit.parameters(), *readers.parameters()]
    # no decay on biases, norms and the embeddings of positions and class
    plain = [p for p in params if p.ndim < 2 or p is vit.pos_embed or p is vit.cls_token]
    decayed = [p for p in params if not any(p is q for q in plain)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    step, small_seen, seen, spent = 0, 0, 0, 0.0
    if args.resume:
        saved = torch.load(args.resume, map_location=device)
        vit.load_state_dict(saved["vit"])
        readers.load_state_dict(saved["readers"])
        optimizer.load_state_dict(saved["optimizer"])
        step, small_seen, seen, spent = saved["progress"]

    begin = time.monotonic() - spent
    last_log, last_save = spent, spent
    totals: list[Tensor] = []
    while (spent := time.monotonic() - begin) < args.minutes * 60:
        part = spent / (args.minutes * 60)
        rate = (
            args.lr * min(1.0, (step + 1) / 300) * (0.01 + 0.99 * math.cos(part * math.pi / 2) ** 2)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        small = part < args.small
        size = args.small_batch if small else args.batch
        drawn = collages(
            "train", size, seed=args.seed * 10**8 + step, cells=2 if small else 4, augment=True
        )
        batch = Collages(*(t.to(device) for t in (drawn.images, drawn.digits, drawn.marked)))
        offset = torch.randint(3, (size, 2)) if small else torch.zeros(size, 2, dtype=torch.long)
        with torch.autocast(device.type, torch.bfloat16):
            logits, readings = forward(vit, readers, batch.images, offset.to(device))
        answers, aux = losses(logits, readings, batch)
        optimizer.zero_grad(set_to_none=True)
        (answers + aux).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        small_seen, seen = small_seen + size * small, seen + size * (not small)
        totals.append(torch.stack([answers.detach(), aux.detach()]))
        if spent - last_log > 20:
            answer_loss, aux_loss = torch.stack(totals).mean(0).tolist()
            totals, last_log = [], spent
            print(
                f"{spent / 60:5.1f} min  step {step:6d}  2x2 {small_seen}  4x4 {seen}  "
                f"lr {rate:.1e}  answers {answer_loss:.3f}  aux {aux_loss:.3f}",
                flush=True,
            )
        if spent - last_save > 150:
            last_save = spent
            print(f"    validation: {evaluate(vit, 'validation', 300, device)}", flush=True)
            export(vit, args.out)
            saved = {"vit": vit.state_dict(), "readers": readers.state_dict()}
            saved |= {"optimizer": optimizer.state_dict()}
            saved |= {"progress": (step, small_seen, seen, spent)}
            torch.save(saved, args.out.with_suffix(".ckpt"))

    export(vit, args.out)
    print(f"{step} steps, {small_seen} collages of 2x2 cells, {seen} whole ones")
    print(f"validation: {evaluate(vit, 'validation', 2000, device)}", flush=True)


if __name__ == "__main__":
    main()
