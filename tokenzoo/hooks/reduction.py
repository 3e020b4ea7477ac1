"""One reduction of a pass: evidence, plan and merger, and the state that goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenzoo.attention import DeferredAttention, SeenAttention
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.restoring import Removal
from tokenzoo.hooks.state import ReductionState
from tokenzoo.kernels.choice import transformed
from tokenzoo.layouts import SizeBucket
from tokenzoo.layouts.base import masses
from tokenzoo.recipe import Step
from tokenzoo.reduce import reduce_patches
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens


@dataclass(frozen=True)
class Event:
    """One reduction of one pass, as `attach(..., on_reduce=f)` receives it.

    Attributes:
        block: index of the block; after the blocks it is the index of the last.
        plan: from the tokens before to those after, prefix included. In a language model: of the visual
            tokens of the prompts that have equally many.
        before: tokens `[b, n, c]` with their masses; of a packed tower those of the images of one grid,
            with the features of all patches of a token.
        after: tokens `[b, m, c]` with their masses.
        stage: name of the stage: "block", "features", "projected" or "llm".
        depth: position of the block in its tower; None: not at a block.
        training: whether the block is in training mode.
    """

    block: int
    plan: TokenMap
    before: Tokens
    after: Tokens
    stage: str = "block"
    depth: float | None = None
    training: bool = False

    @property
    def kept(self) -> int:
        """Patch tokens that are left."""
        return self.after.x.shape[1] - self.after.prefix

    @property
    def evidence(self) -> Evidence:
        """The features and masses of the patch tokens before, with their gradients, as parts see them."""
        patches = self.before.patches
        return Evidence(patches.x, mass=patches.mass, depth=self.depth, training=self.training)


@dataclass(frozen=True)
class Options:
    """How the sites of an attachment behave, in addition to their recipe.

    Attributes:
        proportional: log mass is added to the logits.
        trace: the plans of a pass are composed.
        restore: features come back at full length.
        debug: every site looks at its values, and raises.
        on_reduce: receives each reduction.
        records: the adapter reads the plans of a pass (`Adapter.records`).
        clock: is called right before the evidence of a reduction is made, and right after the reduction.
    """

    proportional: bool = False
    trace: bool = False
    restore: bool = False
    debug: bool = False
    on_reduce: Callable[[Event], object] | None = None
    clock: Callable[[], None] | None = None
    records: bool = False

    @property
    def follows(self) -> bool:
        """Whether anybody wants the plans of a pass."""
        return self.composes or self.on_reduce is not None

    @property
    def composes(self) -> bool:
        """Whether the plans of a pass are put together, from its first tokens on."""
        return self.trace or self.restore or self.records

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
    """

    stage: str
    block: int
    name: str

    def keep(self, bucket: SizeBucket) -> int:
        """Tokens of each image of a bucket that are to be left here."""
        if self.stage == "block":
            return bucket.counts[self.block]
        if self.stage == "features":
            return bucket.features
        return bucket.tokens if bucket.projected is None else bucket.projected


def evidence_of(
    x: Tensor,
    bucket: SizeBucket,
    seen: SeenAttention | DeferredAttention | None,
    prefix: int,
    depth: float | None = None,
    training: bool = False,
) -> Evidence:
    """What a block shows about the patch tokens of `x [b, prefix + n, c]`."""
    held = bucket.held
    return Evidence(
        x[:, prefix:],
        mass=masses(bucket, x)[:, prefix:],
        attention=seen,
        prefix=prefix,
        grid=bucket.grid if bucket.mass is None else None,
        frames=bucket.frames,
        depth=depth,
        held=None if held is None else held[:, prefix:],
        training=training,
    )


def reduce_parts(
    step: Step,
    state: ReductionState,
    parts: Sequence[Tensor],
    evidence: Sequence[Evidence],
    place: Place,
    options: Options,
    entered: Sequence[Tensor] | None = None,
) -> tuple[ReductionState, list[Tensor], list[Evidence]]:
    """Reduce each bucket to what is planned for it.

    Args:
        step: whose parts are used.
        state: before.
        parts: tokens of each bucket, `[b, prefix + n, c]`.
        evidence: about them.
        place: where this is.
        options: of the attachment.
        entered: as `parts`, what entered the block; of a step with a restorer.

    Returns:
        The state after it, the tokens that are left, and their evidence.
    """
    buckets: list[SizeBucket] = []
    left: list[Tensor] = []
    shown: list[Evidence] = []
    plans: list[TokenMap | None] = []
    for bucket, part, seen in zip(state.layout.buckets, parts, evidence, strict=True):
        keep, plan = place.keep(bucket), None
        if bucket.tokens > keep:
            part, plan, bucket = reduced(step, state, bucket, part, seen, keep, place, options)
            seen = seen.through(plan)
        buckets.append(bucket)
        left.append(part)
        shown.append(seen)
        plans.append(plan)
    removals = state.removals
    if step.restorer is not None and entered is not None:
        last = place.block + step.attended - 1
        removals = (*removals, Removal.of(step.restorer, last, state.layout, plans, entered))
    layout = state.layout.reduced(buckets)
    return replace(state, layout=layout, removals=removals), left, shown


def reduced(
    step: Step,
    state: ReductionState,
    bucket: SizeBucket,
    x: Tensor,
    evidence: Evidence,
    keep: int,
    place: Place,
    options: Options,
) -> tuple[Tensor, TokenMap, SizeBucket]:
    """Reduce the tokens `x [b, prefix + n, c]` of a bucket to `keep` patch tokens.

    Returns:
        The tokens that are left, the plan of the patch tokens, and the bucket.
    """
    layout, trial = state.layout, state.steps.trial
    prefix = layout.prefix
    tokens = Tokens(x, masses(bucket, x), prefix, bucket.held)
    debug = options.debug and not trial
    if debug:
        check_finite(tokens, f"reach the reduction in {place.name}")
    after, plan = reduce_patches(
        step, tokens, evidence, keep, check=debug, ordered=layout.ordered or bucket.apart
    )
    places = bucket.places
    if layout.positional:
        places = plan.sources if places is None else take(places, plan.sources)
    layers = tuple((name, shown.through(plan)) for name, shown in bucket.layers)
    record = bucket.plan
    if not trial and options.follows:
        whole = plan.after_prefix(prefix)
        if options.on_reduce is not None:
            depth = evidence.depth if place.stage == "block" else None
            options.on_reduce(
                Event(place.block, whole, tokens, after, place.stage, depth, evidence.training)
            )
        if options.composes:
            record = whole if record is None else record.then(whole)
    if debug:
        check_finite(after, f"leave the reduction in {place.name}")
    # The mass is a count and takes no gradient, which would cost the fused kernel; a gate's does.
    mass = after.mass if step.learns else after.mass.detach()
    bucket = replace(
        bucket,
        tokens=keep,
        mass=mass,
        held=after.held,
        places=places,
        plan=record,
        layers=layers,
    )
    return after.x, plan, bucket


def check_finite(tokens: Tokens, where: str) -> None:
    """Raise if a feature is NaN or infinite; it waits for the device.

    Raises:
        AttachError: says which image and token, and how many.
    """
    if torch.compiler.is_compiling():
        raise AttachError(
            "debug=True checks values, which cannot be compiled with fullgraph=True: attach without it"
        )
    if transformed():
        raise AttachError(
            "debug=True checks values, which a transform of torch.func (vmap, grad) hides: "
            "attach without it"
        )
    bad = ~tokens.x.isfinite().all(-1)  # [b, n]
    if bool(bad.any()):
        image, token = (int(place) for place in bad.nonzero()[0])
        raise AttachError(
            f"{int(bad.sum())} tokens with NaN or infinite features {where}; the first is token {token} "
            f"of image {image}. Check the weights, the input and, in half precision, overflows"
        )
