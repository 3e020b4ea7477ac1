"""Properties of adapters: an attached model is the model with fewer tokens, a detached one the model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.handle import Attached
from tokenzoo.matchers import Bipartite
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.parts import Matcher
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity
from tokenzoo.testing.broken import BrokenError, demand
from tokenzoo.testing.models import Models, Run, call, gap, lengths, outputs
from tokenzoo.testing.property import property_of
from tokenzoo.token_map import TokenMap
from tokenzoo.zoo import build

CLOSE = 1e-5
READ = "tokenzoo.adapter.Adapter"


@property_of("adapter", cases="runs", read="tokenzoo.zoo.Method.attach")
def identity_kept(subject: Models, run: Run) -> None:
    """With nothing to remove, an attached model gives what the bare one does, to 1e-5 of the largest."""
    model, images = subject.fresh(), subject.images(run)
    bare = call(model, images)
    with subject.attach(model, 1.0):
        found = gap(call(model, images), bare)
    demand(found <= CLOSE, f"a difference of at most {CLOSE} at keep=1.0", f"{found:.2g}")


@property_of("adapter", cases="runs", read="tokenzoo.hooks.handle.Attached.detach")
def detached_bare(subject: Models, run: Run) -> None:
    """After detach it is the bare model: the same outputs bit for bit, and nothing left on any module."""
    model, images = subject.fresh(), subject.images(run)
    bare, before = call(model, images), _traces(model)
    with subject.attach(model, run.keep):
        call(model, images)
    left = sorted(_traces(model) ^ before)
    demand(not left, "no hook and no attribute that was not there before", left)
    after = call(model, images)
    equal = all(map(torch.equal, after, bare))
    demand(
        equal, "the bare model's outputs, bit for bit", f"a difference of {gap(after, bare):.2g}"
    )


@property_of("adapter", cases="runs", read=READ)
def weights_untouched(subject: Models, run: Run) -> None:
    """An attached model has the parameters and buffers of the bare one: names, values and modes."""
    model, images = subject.fresh(), subject.images(run)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    with subject.attach(model, run.keep):
        call(model, images)
        after = model.state_dict()
        demand(list(after) == list(before), f"the names {list(before)}", list(after))
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        demand(not changed, "the values of all parameters and buffers", f"others in {changed}")
        modes = [module.training for module in model.modules()]
        demand(modes == training, "each module in its own mode", "another one")


@property_of("adapter", cases="runs", read="tokenzoo.hooks.handle.Attached.counts")
def counts_planned(subject: Models, run: Run) -> None:
    """After each block there are as many tokens as `plan()` says, at any budget."""
    model, images = subject.fresh(), subject.images(run)
    for keep in (run.keep, (1 + run.keep) / 2):
        with subject.attach(model, keep) as attached:
            planned = attached.plan(_patches(attached, model, images)).blocks
            call(model, images)
            demand(attached.counts == planned, f"{planned} patch tokens", attached.counts)


@property_of("adapter", cases="runs", read=READ)
def tower_described(subject: Models, run: Run) -> None:
    """The adapter knows the whole tower: as many `blocks()` as attentions, `tokens()` without the `prefix`.

    The bare model's own calls of the fused attention are counted, on images of its own size.
    """
    model, images = subject.fresh(), subject.images(run)
    seen = lengths(model, images)
    with subject.attach(model, 1.0) as attached:
        adapter = attached.adapter
        blocks, tokens, prefix = len(adapter.blocks()), adapter.tokens(), adapter.prefix
    if not seen:
        return  # its attention is not fused: no call is counted
    length = max(set(seen), key=seen.count)
    demand(
        seen.count(length) == blocks,
        f"{blocks} self-attentions, one in each of the blocks() that the adapter names",
        f"{seen.count(length)} over {length} tokens",
    )
    demand(
        tokens is None or prefix + tokens == length,
        f"prefix + tokens() = {prefix} + {tokens} = {prefix + (tokens or 0)} tokens in the attention",
        length,
    )


@property_of("adapter", cases="runs", read=READ)
def image_independent(subject: Models, run: Run) -> None:
    """An image alone has the outputs that it has in a batch; tried in float64."""
    model, images = subject.fresh().double(), subject.images(run)
    if images.is_floating_point():
        images = images.double()
    with subject.attach(model, run.keep):
        together = call(model, images)
        for i in range(images.shape[0]):
            found = gap([t[i : i + 1] for t in together], call(model, images[i : i + 1]))
            demand(
                found <= CLOSE,
                f"the outputs of image {i} alone in the batch, too",
                f"{found:.2g} apart",
            )


@property_of("adapter", cases="runs", read="tokenzoo.zoo.Method.attach")
def gradients_flow(subject: Models, run: Run) -> None:
    """Gradients reach every parameter that they reach in the bare model, and all are finite."""
    model, images = subject.fresh(), subject.images(run)
    bare = _gradients(model, images)
    with subject.attach(model, run.keep):
        attached = _gradients(model, images)
    lost = sorted(set(bare) - set(attached))
    demand(not lost, "gradients where the bare model has them", f"none in {lost}")
    bad = sorted(name for name, grad in attached.items() if not bool(grad.isfinite().all()))
    demand(not bad, "finite gradients", f"others in {bad}")


@property_of("adapter", cases="runs", read=READ)
def copies_apart(subject: Models, run: Run) -> None:
    """A deep copy of an attached model is attached, gives the same, and lives a life of its own."""
    model, images = subject.fresh(), subject.images(run)
    with subject.attach(model, run.keep):
        expected = call(model, images)
        twin = deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # a copy that still uses the original's weights gives zeros now
    found = gap(call(twin, images), expected)
    demand(
        found <= CLOSE,
        "the copy to give what its original gave, whatever becomes of that",
        f"{found:.2g} apart",
    )


@property_of("adapter", cases="runs", read="tokenzoo.errors.AttachError")
def attached_once(subject: Models, run: Run) -> None:
    """A second recipe is refused, and the first one stays as it is."""
    model, images = subject.fresh(), subject.images(run)
    with subject.attach(model, run.keep) as attached:
        expected = call(model, images)
        try:
            subject.attach(model, run.keep)
        except AttachError:
            pass
        else:
            raise BrokenError("an AttachError at the second attach", "none")
        found = gap(call(model, images), expected)
        demand(
            found == 0 and bool(attached.counts), "the first recipe to go on", f"{found:.2g} apart"
        )


@property_of("adapter", cases="runs", read="tokenzoo.adapter.Adapter.install")
def pooled_by_mass(subject: Models, run: Run) -> None:
    """What pools the tokens counts each as often as its mass.

    Half of the tokens are merged in the last block. With `restore=True` all of them are there again, equal
    ones for those that were merged: their plain mean is the mean by mass of the few.
    """
    model, images = subject.fresh(), subject.images(run)
    step = Step(Stage.BLOCK, Once(-1), Bipartite(Similarity("x")), WeightedMean())
    zoo = build(Recipe(step, keep=0.5, proportional_attention=True))
    with zoo.attach(model):
        few = call(model, images)
    with zoo.attach(model, restore=True):
        all_of_them = call(model, images)
    if [t.shape for t in few] != [t.shape for t in all_of_them]:
        return  # it returns the tokens themselves
    found = gap(few, all_of_them)
    demand(
        found <= 10 * CLOSE, "what all tokens give, pooled after restore=True", f"{found:.2g} apart"
    )


@dataclass(frozen=True)
class Reads(Matcher):
    """Keeps the first tokens, and records the evidence that it receives."""

    look: Callable[[Evidence], None]
    wanted: frozenset[str]

    def __post_init__(self) -> None:
        self.require(*self.wanted)

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return 1."""
        return 1

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Pass the evidence to `look`, and drop the last tokens."""
        self.look(evidence)
        b, n = evidence.x.shape[:2]
        place = torch.arange(n).expand(b, n)
        return TokenMap.from_slots(
            place[:, :keep], place[:, keep:], torch.full_like(place[:, keep:], -1), n
        )


@property_of("adapter", cases="runs", read="tokenzoo.evidence.Evidence")
def evidence_fits(subject: Models, run: Run) -> None:
    """What the adapter `provides` is shown at its sites, and has the shape that it should have."""
    model, images = subject.fresh(), subject.images(run)
    with subject.attach(model, 1.0) as attached:
        provides, width = attached.adapter.provides, attached.adapter.width
    wrong: list[str] = []

    def look(evidence: Evidence) -> None:
        wrong.extend(_misfits(evidence, provides, width))

    step = Step(Stage.BLOCK, Once(0), Reads(look, provides), Identity())
    with build(Recipe(step, keep=0.5)).attach(model):
        call(model, images)
    demand(not wrong, f"{', '.join(sorted(provides))}, as the adapter says", "; ".join(wrong))


def _misfits(evidence: Evidence, provides: frozenset[str], width: int) -> list[str]:
    """Return the errors in shapes and values, one sentence each."""
    b, n, c = evidence.x.shape
    found = [] if c == width else [f"{c} channels where the adapter's width is {width}"]
    for name in sorted(provides):
        value: Any = getattr(evidence, name)
        if name == "grid" and value[0] * value[1] != n:
            found.append(f"a grid of {value} for {n} tokens")
        if isinstance(value, Tensor):
            tokens = (
                value.shape[1] if name in ("x", "mass", "received_attention") else value.shape[2]
            )
            if (value.shape[0], tokens) != (b, n):
                found.append(f"{name} of shape {tuple(value.shape)} for {b} images of {n} tokens")
    return found


def _patches(attached: Attached, model: nn.Module, images: Tensor) -> int | None:
    """Patch tokens of these images; None: the model's own size."""
    if attached.adapter.tokens() is not None:
        return None
    with attached.paused():
        call(model, images)
        return attached.counts[0]


def _gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The gradients of all parameters, and of the images, that have one which is not all zero."""
    model.zero_grad(set_to_none=True)
    leaf = images.clone().requires_grad_() if images.is_floating_point() else images
    loss = torch.stack([t.square().sum() for t in outputs(model(leaf))]).sum()
    loss.backward()  # pyright: ignore[reportUnknownMemberType]
    grads = {name: p.grad for name, p in model.named_parameters()}
    grads["the images"] = leaf.grad
    model.zero_grad(set_to_none=True)
    return {name: g for name, g in grads.items() if g is not None and bool((g != 0).any())}


def _traces(model: nn.Module) -> set[str]:
    """The attributes of all modules, and how many hooks each has."""
    found: set[str] = set()
    for path, module in cast("list[tuple[str, nn.Module]]", [*model.named_modules()]):
        for name, value in vars(module).items():
            count = f" x {len(value)}" if name.endswith(("_hooks", "_hooks_with_kwargs")) else ""
            found.add(f"{path}.{name}{count}".lstrip("."))
    return found
