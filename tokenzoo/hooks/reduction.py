"""One reduction of a pass: evidence, plan and merger, and the state that goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenzoo.attention import SeenAttention
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.state import Pass
from tokenzoo.kernels.choice import transformed
from tokenzoo.recipe import Step
from tokenzoo.reduce import reduce_patches
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens


@dataclass(frozen=True)
class Event:
    """One reduction of one pass, as `attach(..., on_reduce=f)` is told it.

    Attributes:
        block: index of the block; behind the blocks it is the index of the last.
        plan: from the tokens before to those after, prefix included. In a language model: of the visual
            tokens of the prompts that have equally many.
        before: tokens `[b, n, c]` with their masses; of a packed tower those of the images of one grid,
            with the features of all patches of a token.
        after: tokens `[b, m, c]` with their masses.
        stage: name of the stage: "block", "features", "projected" or "llm".
    """

    block: int
    plan: TokenMap
    before: Tokens
    after: Tokens
    stage: str = "block"


@dataclass(frozen=True)
class Options:
    """How the sites of an attachment behave, beside their recipe.

    Attributes:
        proportional: log mass is added to the logits.
        trace: the plans of a pass are composed.
        restore: features come back at full length.
        debug: every site looks at its values, and raises.
        on_reduce: is told each reduction.
        clock: is called right before the evidence of a reduction is made, and right after the reduction.
    """

    proportional: bool = False
    trace: bool = False
    restore: bool = False
    debug: bool = False
    on_reduce: Callable[[Event], object] | None = None
    clock: Callable[[], None] | None = None

    @property
    def follows(self) -> bool:
        """Whether anybody wants the plans of a pass."""
        return self.trace or self.restore or self.on_reduce is not None

    def tick(self) -> None:
        """Call the clock, if there is one; what is compiled has none."""
        if self.clock is not None and not torch.compiler.is_compiling():
            self.clock()


@dataclass(frozen=True)
class Place:
    """Where a reduction happens, for messages and events.

    Attributes:
        stage: its name.
        block: index of the block.
        name: of the module.
        prefix: number of prefix tokens there.
        positional: whether the state must say which of the first tokens each one stands for.
        ordered: whether the tokens that stay must come in their order.
    """

    stage: str
    block: int
    name: str
    prefix: int
    positional: bool = False
    ordered: bool = False


def masses(x: Tensor, state: Pass) -> Tensor:
    """The mass of every token of `x [b, n, c]`, on its device: `[b, n]`."""
    if state.mass is None:
        return torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
    return state.mass.to(x.device)


def evidence_of(
    x: Tensor, state: Pass, seen: SeenAttention | None, prefix: int, depth: float | None = None
) -> Evidence:
    """What a block shows about the patch tokens of `x [b, prefix + n, c]`."""
    held = state.held
    return Evidence(
        x[:, prefix:],
        mass=masses(x, state)[:, prefix:],
        attention=seen,
        prefix=prefix,
        grid=state.grid if state.mass is None else None,
        depth=depth,
        held=None if held is None else held[:, prefix:],
    )


def reduced(
    step: Step,
    state: Pass,
    x: Tensor,
    evidence: Evidence,
    keep: int,
    place: Place,
    options: Options,
) -> tuple[Tensor, TokenMap, Pass]:
    """Reduce `x [b, prefix + n, c]` to `keep` patch tokens.

    Returns:
        The tokens that are left, the plan of the patch tokens, and the state.
    """
    known = state.fired[-1] if state.fired else state.entered
    if place.stage == "block" and not state.trial and x.shape[1] != place.prefix + known:
        raise AttachError(
            f"{x.shape[1]} tokens are in {place.name} where {place.prefix + known} are known "
            f"({place.prefix} of them prefix tokens): a hook put some in, or took some away. Put prompts "
            "in before the first block, attach after that, and declare them: attach(..., prefix=...)"
        )
    tokens = Tokens(x, masses(x, state), place.prefix, state.held)
    debug = options.debug and not state.trial
    if debug:
        check_finite(tokens, f"reach the reduction in {place.name}")
    after, plan = reduce_patches(step, tokens, evidence, keep, check=debug, ordered=place.ordered)
    # The mass is a count: it takes no gradient, and a mask that does costs the fused kernel.
    places = _places(state, plan.after_prefix(place.prefix)) if place.positional else None
    state = replace(state, mass=after.mass.detach(), held=after.held, places=places)
    if state.layers:
        layers = tuple((name, shown.through(plan)) for name, shown in state.layers)
        state = replace(state, layers=layers)
    if not state.trial:
        if debug:
            check_finite(after, f"leave the reduction in {place.name}")
        whole = plan.after_prefix(place.prefix) if options.follows else plan
        if options.on_reduce is not None:
            options.on_reduce(Event(place.block, whole, tokens, after, place.stage))
        if options.trace or options.restore:
            state = replace(state, plan=whole if state.plan is None else state.plan.then(whole))
    return after.x, plan, state


def _places(state: Pass, plan: TokenMap) -> Tensor:
    """Which of the first tokens each output of a plan stands for."""
    index = plan.sources
    return index if state.places is None else take(state.places, index)


def check_finite(tokens: Tokens, where: str) -> None:
    """Raise if a feature is NaN or infinite; it waits for the device.

    Raises:
        AttachError: says which image and token, and how many.
    """
    if torch.compiler.is_compiling():
        raise AttachError(
            "debug=True looks at values, which cannot be compiled with fullgraph=True: attach without it"
        )
    if transformed():
        raise AttachError(
            "debug=True looks at values, which a transform of torch.func (vmap, grad) does not show: "
            "attach without it"
        )
    bad = ~tokens.x.isfinite().all(-1)  # [b, n]
    if bool(bad.any()):
        image, token = (int(place) for place in bad.nonzero()[0])
        raise AttachError(
            f"{int(bad.sum())} tokens with NaN or infinite features {where}; the first is token {token} "
            f"of image {image}. Look at the weights, the input and, in half precision, at overflows"
        )
