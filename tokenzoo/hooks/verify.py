"""The proof that a splice is right, made at attach time on random tokens.

A block whose forward is not what its names suggest (a norm in another place, a second use of the input,
positions that act where nobody follows them) would be silently wrong; here it is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.errors import AttachError, TokenzooError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks import packed_layout as packs
from tokenzoo.hooks import state as passes
from tokenzoo.hooks.packed_layout import Pack
from tokenzoo.hooks.state import Pass
from tokenzoo.mergers import Identity
from tokenzoo.packed import PackedAdapter
from tokenzoo.parts import Matcher
from tokenzoo.recipe import Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class EverySecond(Matcher):
    """Keep the tokens 1, 3, 5, ...; with whatever needs the recipe has, so that the tap is tried too."""

    wanted: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.require(*self.wanted)

    def fewest(self, tokens: int, prefix: int = 0) -> int:
        """Half."""
        return tokens // 2

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Drop every other token."""
        for name in sorted(self.wanted):
            getattr(evidence, name)
        b, n = evidence.x.shape[:2]
        place = torch.arange(n, device=evidence.x.device).expand(b, n)
        gone = place[:, ::2]
        return TokenMap.from_slots(place[:, 1::2], gone, torch.full_like(gone, -1), n)


@dataclass(frozen=True)
class Trial:
    """A block by itself, on random tokens.

    Attributes:
        index: of the block.
        path: of the block.
        patches: how many patch tokens it is tried on.
        options: its keyword arguments.
        x: random tokens `[1, prefix + patches, c]`, c the features of all patches of one.
        bare: what the block makes of them before anything is spliced.
    """

    index: int
    path: BlockPath
    patches: int
    options: dict[str, Any]
    x: Tensor
    bare: Tensor


def trials(
    model: nn.Module, adapter: Adapter, paths: Sequence[tuple[int, BlockPath]]
) -> list[Trial]:
    """Run each bare block, with its index, by itself; to be called before anything is spliced."""
    found: list[Trial] = []
    for index, path in paths:
        patches, options = adapter.trial(index)
        x = _sample(model.get_submodule(path.name), adapter, patches)
        found.append(
            Trial(index, path, patches, options, x, _run(model, adapter, path, x, options))
        )
    return found


def prove(model: nn.Module, adapter: Adapter, tried: list[Trial], needs: frozenset[str]) -> None:
    """Compare the spliced blocks with their bare selves: keeping all, keeping half, in another order.

    Raises:
        AttachError: a difference; names the block and its size.
    """
    step = Step(Stage.BLOCK, Once(), EverySecond(needs), Identity())
    for trial in tried:
        cases = _packed_cases if isinstance(adapter, PackedAdapter) else _cases
        for rows, state, kept, what in cases(adapter, trial, step):
            _compare(model, adapter, trial, trial.x[:, rows], state, kept, what)


Case = tuple[list[int], "Pass | Pack", list[int], str]
"""Rows of the trial to run on, their state, the rows that are to come out, and what that is."""


def _cases(adapter: Adapter, trial: Trial, step: Step) -> Iterator[Case]:
    p, n = adapter.prefix, trial.patches
    every = list(range(p + n))
    half = [*range(p), *range(p + 1, p + n, 2)]
    for keep, rows, what in ((n, every, ALL), (n // 2, half, HALF)):
        yield every, _trying(step, keep), rows, what.format(keep=n // 2, n=n)
    # Backwards: whatever depends on positions must follow them.
    back = [*range(p), *range(p + n - 1, p - 1, -1)]
    places = torch.tensor([back], device=trial.x.device) if adapter.positional else None
    state = Pass(None, (n,) * 1000, trial=True, places=places)
    yield back, state, back, "the random tokens come backwards"


def _packed_cases(adapter: Adapter, trial: Trial, step: Step) -> Iterator[Case]:
    n, patches = trial.patches, cast("PackedAdapter", adapter).patches
    every, half, end = list(range(n)), list(range(1, n, 2)), list(range(n // 2, n))

    def pack(state: Pass) -> Pack:
        return packs.begin([(1, n)], {(1, n): state}, {}, patches)

    for keep, rows, what in ((n, every, ALL), (n // 2, half, HALF)):
        yield every, pack(_trying(step, keep)), rows, what.format(keep=n // 2, n=n)
    # The second half is a segment: without the first it is what it was.
    state = Pass(None, (n,) * 1000, trial=True, places=torch.tensor([end], device=trial.x.device))
    begun = pack(state)
    left = begun.now(lot.now(state, n - n // 2) for lot in begun.lots)
    yield end, left, end, "the second half of the random tokens is left"


def _trying(step: Step, keep: int) -> Pass:
    return Pass(step, (keep,) * 1000, trial=True, watches=passes.watches(step))


ALL = "all random tokens are kept"
HALF = "{keep} of {n} random tokens are kept"


def _sample(
    block: nn.Module, adapter: Adapter, patches: int, images: int = 1, seed: int = 0
) -> Tensor:
    """Random tokens `[images, prefix + patches, c]` in the dtype and on the device of a block."""
    # Of layers that are quantised before, and norms without weights, nothing may be left.
    floats = [p for p in block.parameters() if p.is_floating_point()] or [torch.zeros(1)]
    # A quantised layer has other numbers, an offloaded one none: the norms have the dtype of the tokens.
    like = next((p for p in floats if p.ndim == 1), floats[0])
    generator = torch.Generator().manual_seed(seed)
    width = adapter.width * (adapter.patches if isinstance(adapter, PackedAdapter) else 1)
    # The caller's own default device may be another one (torch.device("meta")).
    x = torch.randn(images, adapter.prefix + patches, width, generator=generator, device="cpu")
    device = torch.device("cpu") if like.is_meta else like.device
    return x.to(device=device, dtype=like.dtype)


def _compare(
    model: nn.Module,
    adapter: Adapter,
    trial: Trial,
    x: Tensor,
    state: Pass | Pack,
    rows: list[int],
    what: str,
) -> None:
    """Demand that the spliced block gives these rows of what the bare one gave."""
    name = trial.path.name
    order = (
        "its forward is not x + attention, x + MLP in the order that the adapter describes, or it depends "
        "on positions in a way that the adapter does not follow. Nothing was attached"
    )
    try:
        got = _run(model, adapter, trial.path, x, trial.options, state)
    except TokenzooError:
        raise
    except RuntimeError as error:
        raise AttachError(
            f"{name} (block {trial.index}) does not run when {what} ({error}): {order}"
        ) from error
    if passes.of(got) is None and packs.of(got) is None:
        raise AttachError(
            f"a hook on {name} (block {trial.index}), or a wrapper around it, returns a new tensor, on "
            "which the state of a pass would be lost: let it change the output in place, or only look. "
            "Nothing was attached"
        )
    wanted = trial.bare[:, rows]
    got = got.reshape(1, -1, wanted.shape[2])
    if got.shape != wanted.shape:
        raise AttachError(
            f"{name} gives {got.shape[1]} tokens where {len(rows)} stay: it uses its input in "
            "a way that three hooks cannot follow. Nothing was attached"
        )
    scale = max(1.0, float(trial.bare.abs().max()))
    gap = float((got - wanted).abs().max()) / scale
    # A block that is understood differs by a few roundings, one that is not by tenths.
    if gap <= min(64 * torch.finfo(trial.bare.dtype).eps, 1 / 16):
        return
    own = noise(model, adapter, trial) / scale
    if gap <= min(NOISE * own, 1 / 16):
        return
    because = order
    if own > 0:
        because = (
            f"what else is in the batch changes its output by {own:.1e} alone (as in layers that were "
            f"quantised and share a scale), which does not account for this. So {order}"
        )
    raise AttachError(
        f"{name} (block {trial.index}) differs from itself by {gap:.1e} of its largest output "
        f"when {what}: {because}"
    )


NOISE = 4
"""How much larger than the measured noise a difference may be."""


def noise(model: nn.Module, adapter: Adapter, trial: Trial) -> float:
    """By how much the output for the random tokens depends on what else the block computes with them.

    An image's tokens do not depend on the other images of a batch, nor those of a segment on the other
    segments: the difference is that of the block's layers. It is 0 or a few roundings, unless layers were
    quantised with one scale for all that they are given, or with columns that are left out by outliers.

    Returns:
        The largest absolute difference; 0.0 if the block does not run with other images.
    """
    block, found = model.get_submodule(trial.path.name), 0.0
    half = trial.patches // 2
    counts = (trial.patches,) * 1000
    for seed, images in ((1, 1), (2, 3), (3, 7)):
        other = _sample(block, adapter, trial.patches, images, seed)
        state: Pass | Pack = Pass(None, counts, trial=True)
        if isinstance(adapter, PackedAdapter):  # the first half is another segment than the second
            x = torch.cat([other[:1, :half], trial.x[:, half:]], 1)
            grid = (1, trial.patches)
            state = packs.begin([grid], {grid: state}, {}, adapter.patches)
            rows = slice(half, None)
        else:
            x, rows = torch.cat([trial.x, other]), slice(None)
        try:
            got = _run(model, adapter, trial.path, x, trial.options, state)
        except RuntimeError:
            return 0.0
        got = got.reshape(x.shape)[:1, rows]
        found = max(found, float((got - trial.bare[:, rows]).abs().max()))
    return found


def _run(
    model: nn.Module,
    adapter: Adapter,
    path: BlockPath,
    x: Tensor,
    options: dict[str, Any],
    state: Pass | Pack | None = None,
) -> Tensor:
    """Run one block in eval mode and without gradients; what was in training is so again afterwards."""
    block = model.get_submodule(path.name)
    training = [module for module in block.modules() if module.training]
    block.eval()
    try:
        with torch.no_grad():
            packed = isinstance(adapter, PackedAdapter)
            y = x.reshape(-1, adapter.width).clone() if packed else x.clone()
            if isinstance(state, Pack):
                packs.tag(y, state)
            elif state is not None:
                passes.tag(y, state)
            out: Tensor = block(y, **options)
            # `bare` is read by token; what carries a state is looked at as it is.
            return out.reshape(x.shape) if packed and state is None else out
    finally:
        for module in training:
            module.training = True
