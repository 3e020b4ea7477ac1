"""The proof that a splice is right, made at attach time on random tokens.

A block whose forward is not what its names suggest (a norm in another place, a second use of the input)
would be silently wrong; here it is a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError, TokenzooError
from tokenzoo.evidence import Evidence
from tokenzoo.interfaces import Adapter, BlockPath, Matcher
from tokenzoo.mergers import Keep
from tokenzoo.plan import Plan
from tokenzoo.recipe import Stage, Step
from tokenzoo.runtime import passes
from tokenzoo.runtime.passes import Pass
from tokenzoo.schedules import Once

TOKENS = 8


@dataclass(frozen=True)
class EverySecond(Matcher):
    """Keep the tokens 1, 3, 5, ...; with whatever needs the recipe has, so that the tap is tried too."""

    wanted: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.require(*self.wanted)

    def fewest(self, tokens: int, prefix: int = 0) -> int:
        """Half."""
        return tokens // 2

    def match(self, evidence: Evidence, keep: int) -> Plan:
        """Drop every other token."""
        for name in sorted(self.wanted):
            getattr(evidence, name)
        b, n = evidence.x.shape[:2]
        place = torch.arange(n, device=evidence.x.device).expand(b, n)
        gone = place[:, ::2]
        return Plan.from_slots(place[:, 1::2], gone, torch.full_like(gone, -1), n)


def sample(model: nn.Module, adapter: Adapter) -> Tensor:
    """Random tokens `[1, prefix + 8, c]` in the dtype and on the device of the model."""
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, adapter.prefix + TOKENS, adapter.width, generator=generator)
    return x.to(device=like.device, dtype=like.dtype)


def bare_outputs(model: nn.Module, adapter: Adapter, paths: tuple[BlockPath, ...]) -> list[Tensor]:
    """What each block makes of the sample, by itself; to be called before anything is spliced."""
    x = sample(model, adapter)
    return [_run(model, path, x) for path in paths]


def prove(
    model: nn.Module,
    adapter: Adapter,
    paths: tuple[BlockPath, ...],
    expected: list[Tensor],
    needs: frozenset[str],
) -> None:
    """Compare the spliced blocks with their bare selves: keeping all, and keeping half.

    Raises:
        AttachError: a difference; names the block and its size.
    """
    x = sample(model, adapter)
    p = adapter.prefix
    step = Step(Stage.BLOCK, Once(), EverySecond(needs - {"grid"}), Keep())
    half = [*range(p), *range(p + 1, p + TOKENS, 2)]
    for index, (path, bare) in enumerate(zip(paths, expected, strict=True)):
        for keep, rows in ((TOKENS, [*range(p + TOKENS)]), (TOKENS // 2, half)):
            counts = (TOKENS,) * 1000 if keep == TOKENS else (keep,) * 1000
            state = Pass(step, counts, trial=True, watches=passes.watches(step))
            try:
                got = _run(model, path, x, state)
            except TokenzooError:
                raise
            except RuntimeError as error:
                raise AttachError(
                    f"{path.name} (block {index}) does not run when {keep} of {TOKENS} random tokens are "
                    f"kept ({error}): its forward is not x + attention, x + MLP in the order that the "
                    "adapter describes. Nothing was attached"
                ) from error
            wanted = bare[:, rows]
            if got.shape != wanted.shape:
                raise AttachError(
                    f"{path.name} gives {got.shape[1]} tokens where {len(rows)} stay: it uses its input in "
                    "a way that three hooks cannot follow. Nothing was attached"
                )
            scale = max(1.0, float(bare.abs().max()))
            gap = float((got - wanted).abs().max()) / scale
            # A block that is understood differs by a few roundings, one that is not by tenths.
            if not gap <= min(64 * torch.finfo(bare.dtype).eps, 1 / 16):
                raise AttachError(
                    f"{path.name} (block {index}) differs from itself by {gap:.1e} of its largest output "
                    f"when {keep} of {TOKENS} random tokens are kept: its forward is not x + attention, "
                    "x + MLP in the order that the adapter describes. Nothing was attached"
                )


def _run(model: nn.Module, path: BlockPath, x: Tensor, state: Pass | None = None) -> Tensor:
    """Run one block in eval mode and without gradients; what was in training is so again afterwards."""
    block = model.get_submodule(path.name)
    training = [module for module in block.modules() if module.training]
    block.eval()
    try:
        with torch.no_grad():
            x = x.clone()
            return block(x if state is None else passes.tag(x, state))
    finally:
        for module in training:
            module.training = True
