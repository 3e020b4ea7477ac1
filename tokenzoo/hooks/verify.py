"""The proof that a splice is right, made at attach time on random tokens.

A block whose forward is not what its names suggest (a norm in another place, a second use of the input,
positions that act where nobody follows them) would be silently wrong; here it is a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.errors import AttachError, TokenzooError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.state import PassSteps, ReductionState, get_state, set_state
from tokenzoo.layouts import ProofCase, TokenLayout
from tokenzoo.mergers import Identity
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

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Half of the tokens, rounded down."""
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
        layout: of the tokens that it is tried on.
        options: its keyword arguments.
        x: random tokens `[1, prefix + n, p * c]`.
        bare: what the block makes of them before anything is spliced.
    """

    index: int
    path: BlockPath
    layout: TokenLayout
    options: dict[str, Any]
    x: Tensor
    bare: Tensor


def trials(
    model: nn.Module, adapter: Adapter, paths: Sequence[tuple[int, BlockPath]]
) -> list[Trial]:
    """Run each bare block, with its index, by itself; to be called before anything is spliced."""
    found: list[Trial] = []
    for index, path in paths:
        tokens, options = adapter.probe_inputs(index)
        layout = adapter.layout_class.of_trial(tokens, adapter.prefix, adapter.group)
        block = model.get_submodule(path.name)
        x = _sample(block, adapter, tokens)
        bare = layout.split(_run(block, layout.join([x]), options))[0]
        found.append(Trial(index, path, layout, options, x, bare))
    return found


def prove(model: nn.Module, adapter: Adapter, tried: list[Trial], needs: frozenset[str]) -> None:
    """Compare the spliced blocks with their bare selves: keeping all, keeping half, in other places.

    Raises:
        AttachError: a difference; names the block and its size.
    """
    step = Step(Stage.BLOCK, Once(), EverySecond(needs), Identity())
    for trial in tried:
        cases = adapter.layout_class.proof_cases(
            trial.layout.buckets[0].tokens,
            adapter.prefix,
            adapter.group,
            positional=adapter.positional,
            device=trial.x.device,
        )
        for case in cases:
            _compare(model, adapter, trial, case, step)


def _trying(layout: TokenLayout, step: Step | None, keep: int | None) -> ReductionState:
    """The state of a proof that takes a step, or none."""
    tokens = layout.buckets[0].tokens
    counts = (tokens if keep is None else keep,) * 1000
    bucket = replace(layout.buckets[0], counts=counts)
    return ReductionState(PassSteps.of(step, trial=True), layout.with_buckets([bucket]))


def _sample(
    block: nn.Module, adapter: Adapter, tokens: int, images: int = 1, seed: int = 0
) -> Tensor:
    """Random tokens `[images, prefix + tokens, p * c]` in the dtype and on the device of a block."""
    # Of layers that are quantised before, and norms without weights, nothing may be left.
    floats = [p for p in block.parameters() if p.is_floating_point()] or [torch.zeros(1)]
    # A quantised layer has other numbers, an offloaded one none: the norms have the dtype of the tokens.
    like = next((p for p in floats if p.ndim == 1), floats[0])
    generator = torch.Generator().manual_seed(seed)
    width = adapter.width * adapter.group
    # The caller's own default device may be another one (torch.device("meta")).
    x = torch.randn(images, adapter.prefix + tokens, width, generator=generator, device="cpu")
    # A prefix token is no group: its row repeats its channels.
    x[:, : adapter.prefix] = x[:, : adapter.prefix, : adapter.width].repeat(1, 1, adapter.group)
    device = torch.device("cpu") if like.is_meta else like.device
    return x.to(device=device, dtype=like.dtype)


def _compare(model: nn.Module, adapter: Adapter, trial: Trial, case: ProofCase, step: Step) -> None:
    """Demand that the spliced block gives the expected rows of what the bare one gave."""
    what, rows = case.what, case.expected
    block = model.get_submodule(trial.path.name)
    name = trial.path.name
    order = (
        "its forward is not x + attention, x + MLP in the order that the adapter describes, or it depends "
        "on positions in a way that the adapter does not follow. Nothing was attached"
    )
    try:
        state = _trying(case.layout, None if case.keep is None else step, case.keep)
        got = _run(block, case.layout.join([trial.x[:, case.rows]]), trial.options, state)
    except TokenzooError:
        raise
    except RuntimeError as error:
        raise AttachError(
            f"{name} (block {trial.index}) does not run when {what} ({error}): {order}"
        ) from error
    after = get_state(got)
    if after is None:
        raise AttachError(
            f"a hook on {name} (block {trial.index}), or a wrapper around it, returns a new tensor, which "
            "loses the state of the forward pass: change the output in place, or leave it unchanged. "
            "Nothing was attached"
        )
    layout, wanted = after.layout, trial.bare[:, rows]
    if layout.length(got) != layout.rows() or layout.buckets[0].tokens != len(rows) - layout.prefix:
        stay = layout.prefix + (len(rows) - layout.prefix) * layout.group
        raise AttachError(
            f"{name} returns {layout.length(got)} tokens where {stay} are kept: it uses its input in a way "
            "that the hooks do not support. Nothing was attached"
        )
    got = layout.split(got)[0]
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
    tokens = trial.layout.buckets[0].tokens
    draw = partial(_sample_of, block, adapter, tokens)
    for x, rows in trial.layout.among(trial.x, draw):
        state = _trying(trial.layout, None, None)
        try:
            got = _run(block, trial.layout.join([x]), trial.options, state)
        except RuntimeError:
            return 0.0
        got = trial.layout.split(got)[0][:1, rows]
        found = max(found, float((got - trial.bare[:, rows]).abs().max()))
    return found


def _sample_of(block: nn.Module, adapter: Adapter, tokens: int, seed: int, images: int) -> Tensor:
    return _sample(block, adapter, tokens, images, seed)


def _run(
    block: nn.Module, x: Tensor, options: dict[str, Any], state: ReductionState | None = None
) -> Tensor:
    """Run one block in eval mode and without gradients; what was in training is so again afterwards."""
    training = [module for module in block.modules() if module.training]
    block.eval()
    try:
        with torch.no_grad():
            x = x.clone()
            return block(x if state is None else set_state(x, state), **options)
    finally:
        for module in training:
            module.training = True
