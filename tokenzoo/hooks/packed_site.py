"""Splicing a block of a packed tower: `splice`, for a sequence of images instead of a batch.

The hooks are those of `splice`, at the same places. The tokens that are left keep the order of the
sequence, so that an image, or a window of it, stays in one piece; the adapter gives each block the
boundaries and the angles of what is left (`Adapter.follow`, whose places count the whole sequence).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import BlockPath
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence, Layer
from tokenzoo.hooks import packed_layout as packs
from tokenzoo.hooks.graph_capture import refuse_symbols
from tokenzoo.hooks.packed_attention import PackedAttention, seen
from tokenzoo.hooks.packed_layout import Lot, Pack
from tokenzoo.hooks.reduction import Options, Place, evidence_of, masses, reduced
from tokenzoo.hooks.site import LOST, REENTRANT, hook_first, put_first
from tokenzoo.hooks.state import PerThread, own
from tokenzoo.hooks.tap import WATCH, unwatch
from tokenzoo.packed import PackedAdapter

Windows = tuple[Tensor, int]


class PackedTap:
    """Remember the attention of one block, which may come in one call or in one for each segment.

    Args:
        key_bias: `[r]` to add to the logits of every query, or None.
    """

    def __init__(self, key_bias: Tensor | None) -> None:
        self.key_bias = None if key_bias is None else key_bias[None]  # [1, r]
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.scale = 1.0
        self.begin = 0

    def look(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float | None,
        value: Tensor | None = None,
    ) -> Tensor | None:
        """Remember queries and keys `[1, h, s, d]` of the next segment; returns what is to be added."""
        del value
        self.calls.append((query[0], key[0]))
        self.scale = float(query.shape[-1] ** -0.5 if scale is None else scale)
        begin, self.begin = self.begin, self.begin + key.shape[2]
        if self.key_bias is None:
            return mask
        bias = self.key_bias[:, None, None, begin : self.begin].to(query.dtype)
        return bias if mask is None else bias + mask


class PackedBox(PerThread):
    """What the hooks of one block tell each other while it runs; each run of the block overwrites it."""

    pack: Pack | None = own("pack")
    tap: PackedTap | None = own("tap")
    windows: Windows | None = own("windows")
    reduced: Tensor | None = own("reduced")
    branch: Tensor | None = own("branch")
    length: int = own("length")
    evidence: list[Evidence] | None = own("evidence")
    called: bool | None = own("called")
    learns: bool | None = own("learns")

    def clear(self) -> None:
        """Forget the last run."""
        self.pack = self.tap = self.windows = self.reduced = self.branch = None
        self.evidence = self.called = None


class PackedSite:
    """One block of an attached packed tower.

    Args:
        index: of the block in the tower.
        path: names of its submodules.
        adapter: of its model.
        start: makes the state at the first spliced block from its input; None at later ones.
        finish: is told the state after the last block; None at earlier ones.
        idle: whether nothing is to be reduced now; then a sequence without a state is no error.
        options: of the attachment.
        names: what the steps behind the last block call this one, if they need what it shows.
    """

    def __init__(
        self,
        index: int,
        path: BlockPath,
        adapter: PackedAdapter,
        *,
        start: Callable[[Tensor], Pack] | None,
        finish: Callable[[Pack], None] | None,
        idle: Callable[[], bool],
        options: Options,
        names: tuple[Layer, ...] = (),
    ) -> None:
        self.index = index
        self.path = path
        self.adapter = adapter
        self.names = names
        self.start = start
        self.finish = finish
        self.idle = idle
        self.options = options
        self.box = PackedBox()
        self.leaving = 0  # the id of the block's hook, from `install`

    def install(self, model: nn.Module) -> list[Callable[[], Any]]:
        """Put the hooks in place; returns what takes them away."""
        block, path = model.get_submodule(self.path.name), self.path
        attention = block.get_submodule(path.attention)
        # First of all: whoever else hooks on to the block is to see its real output.
        leaving = hook_first(block, self.leave)
        self.leaving = leaving.id
        handles = [
            leaving,
            block.register_forward_pre_hook(self.enter, with_kwargs=True),
            block.get_submodule(path.first).register_forward_pre_hook(self.begin),
            attention.register_forward_pre_hook(self.open_tap, with_kwargs=True),
            block.get_submodule(path.second).register_forward_pre_hook(self.reduce),
            block.get_submodule(path.last).register_forward_hook(self.spread),
        ]
        setattr(attention, WATCH, self.box)
        return [*(handle.remove for handle in handles), partial(unwatch, attention)]

    def enter(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Read the state off the block's input, and hand the block what fits the tokens that are left."""
        put_first(block, self.leaving)
        x: Tensor = args[0]  # [r, c]
        refuse_symbols(x)
        self.box.clear()
        pack = packs.of(x)
        if pack is None and self.start is not None:
            # On the tensor that the tower has made: a block that is run again finds it there.
            pack = self.start(x)
            packs.tag(x, pack)
        if pack is None:
            if self.idle():
                return None
            raise AttachError(LOST.format(where=self.path.name))
        self.box.pack, self.box.called = pack, True
        self.box.learns = torch.is_grad_enabled()
        extra, kwargs = self.adapter.follow(args[1:], kwargs, pack.kept)
        return (x, *extra), kwargs

    def begin(self, first: nn.Module, args: tuple[Any, ...]) -> None:
        """Find the state where checkpointing runs the forward again without the block's own hooks."""
        del first
        pack = self.box.pack
        if self.box.called and pack is not None:
            self.box.called = None
            works = pack.lead.step is not None or pack.lead.after is not None
            if works and self.box.learns and not torch.is_grad_enabled():
                raise AttachError(REENTRANT.format(where=self.path.name))
            return
        self.box.clear()
        self.box.pack = packs.of(args[0])

    def open_tap(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Watch the attention, where something of it is needed."""
        del attention, args
        pack = self.box.pack
        if pack is None:
            return
        site = self._surplus(pack)
        wanted = (site and pack.lead.watches) or (
            self.finish is not None and pack.lead.watches_after
        )
        wanted = wanted or self._shows(pack)
        bias = self._bias(pack) if self.options.proportional else None
        # An attention that runs a second time in one block is seen twice, which is an error.
        if (wanted or bias is not None) and self.box.tap is None:
            self.box.tap = PackedTap(bias)
            self.box.windows = self.adapter.windows(self.index, kwargs)

    def _bias(self, pack: Pack) -> Tensor | None:
        """Log mass of every patch `[r]`; None while every token stands for itself."""
        if all(lot.state.mass is None for lot in pack.lots):
            return None
        known = next(lot.state.mass for lot in pack.lots if lot.state.mass is not None)
        parts = [
            known.new_ones(len(lot.units), lot.tokens) if lot.state.mass is None else lot.state.mass
            for lot in pack.lots
        ]
        return pack.join(parts).log().repeat_interleave(pack.patches)

    def _shows(self, pack: Pack) -> bool:
        """Whether a step behind the last block needs what this one shows."""
        return bool(self.names) and pack.lead.behind

    def _surplus(self, pack: Pack) -> bool:
        """Whether some image has more tokens than are to be left behind this block."""
        step = pack.lead.step
        return step is not None and any(
            lot.tokens > lot.state.counts[self.index] for lot in pack.lots
        )

    def reduce(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Reduce what comes out of the first branch: the heart, at one site."""
        del module
        x: Tensor = args[0]  # [r, c]
        pack = self.box.pack
        if pack is None:
            return None
        lasting = self.finish is not None and pack.lead.watches_after
        if not lasting and not self._surplus(pack) and not self._shows(pack):
            self.box.tap = None
            return None
        self.options.tick()
        parts = pack.split(x)
        evidence = self._evidence(x, pack, parts)
        self.box.tap = None  # queries and keys are not to be held while the second branch runs
        if self._shows(pack):
            lots = [
                replace(lot, state=lot.state.shown_by(self.names, shown))
                for lot, shown in zip(pack.lots, evidence, strict=True)
            ]
            self.box.pack = pack = replace(pack, lots=tuple(lots))
        if self._surplus(pack):
            pack, x_after, evidence = self._reduced(pack, parts, evidence)
            self.box.pack = pack
            self.box.reduced, self.box.length = x_after.reshape(-1, x.shape[1]), x.shape[0]
        self.options.tick()
        if lasting:
            self.box.evidence = evidence
        return None if self.box.reduced is None else (self.box.reduced, *args[1:])

    def _reduced(
        self, pack: Pack, parts: list[Tensor], evidence: list[Evidence], stage: str = "block"
    ) -> tuple[Pack, Tensor, list[Evidence]]:
        """Reduce each lot to what is planned for it: the pass after it, its tokens, and their evidence."""
        place = Place(stage, self.index, self.path.name, 0, positional=True, ordered=True)
        lots: list[Lot] = []
        left: list[Tensor] = []
        shown: list[Evidence] = []
        for lot, part, seen_of in zip(pack.lots, parts, evidence, strict=True):
            state = lot.state
            step = state.step if stage == "block" else state.after
            keep = state.counts[self.index] if stage == "block" else state.features
            if step is not None and lot.tokens > keep:
                part, plan, state = reduced(step, state, part, seen_of, keep, place, self.options)
                lot, seen_of = lot.now(state, keep), seen_of.through(plan)
            lots.append(lot)
            left.append(part)
            shown.append(seen_of)
        pack = pack.now(lots)
        return pack, pack.join(left), shown

    def _evidence(self, x: Tensor, pack: Pack, parts: list[Tensor]) -> list[Evidence]:
        """What the block shows about the tokens of each lot."""
        attention = self._attention(x, pack)
        found: list[Evidence] = []
        for lot, part in zip(pack.lots, parts, strict=True):
            own_rows = pack.rows(lot, x.device) if attention is not None else None
            shown = None if attention is None or own_rows is None else seen(attention, own_rows)
            depth = self.index / len(lot.state.counts)
            found.append(evidence_of(part, lot.state, shown, 0, depth))
        return found

    def _attention(self, x: Tensor, pack: Pack) -> PackedAttention | None:
        tap = self.box.tap
        if tap is None:
            if pack.lead.watches:
                raise AttachError(
                    f"{self.path.name}.{self.path.second} runs before {self.path.attention}: this block is "
                    "not x + attention, x + MLP in the order that the adapter describes"
                )
            return None
        if tap.begin != x.shape[0]:
            raise AttachError(
                f"the attention of {tap.begin} patches was seen in {self.path.name}.{self.path.attention}, "
                f"and {x.shape[0]} are there: set_attn_implementation(...) takes our watch away; call it "
                "before attach"
            )
        query, key = (torch.cat(several, 1) for several in zip(*tap.calls, strict=True))
        bias = None if tap.key_bias is None else tap.key_bias[0]
        bounds, longest = self.box.windows or (None, 0)
        return PackedAttention(query, key, tap.scale, pack.patches, bias, bounds, longest)

    def spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Remember the second branch; return something of the length that the block's addition expects."""
        del module, args
        if self.box.reduced is None:
            return None
        self.box.branch = output
        return output[:1].expand(self.box.length, -1)

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Make the block's real output, and let it carry the state on."""
        del block, args
        pack = self.box.pack
        if pack is None:
            return None
        short, branch = self.box.reduced, self.box.branch
        if short is not None and branch is not None:
            output = short + branch
        lots = [replace(lot, state=_fired(lot)) for lot in pack.lots]
        pack = replace(pack, lots=tuple(lots))
        if self.finish is not None and not pack.lead.trial:
            output, pack = self._behind(output, pack)
            self.finish(pack)
        self.box.clear()
        return packs.tag(output, pack)

    def _behind(self, x: Tensor, pack: Pack) -> tuple[Tensor, Pack]:
        """The step of the stage "features", on what leaves the last block."""
        keeps = pack.lead.keeps_evidence
        if pack.lead.after is None and not keeps:
            return x, _left(pack, None)
        parts = pack.split(x)
        last = self.box.evidence
        if last is None:
            last = [
                evidence_of(part, lot.state, None, 0)
                for lot, part in zip(pack.lots, parts, strict=True)
            ]
        evidence = [
            shown.renewed(part, masses(part, lot.state), dict(lot.state.layers))
            for lot, part, shown in zip(pack.lots, parts, last, strict=True)
        ]
        if pack.lead.after is not None:
            self.options.tick()
            pack, tokens, evidence = self._reduced(pack, parts, evidence, "features")
            self.options.tick()
            x = tokens.reshape(-1, x.shape[1])
        return x, _left(pack, evidence if keeps else None)


def _fired(lot: Lot) -> Any:
    """The state of a lot with the count of the block that it has just been through."""
    return replace(lot.state, fired=(*lot.state.fired, lot.tokens))


def _left(pack: Pack, evidence: list[Evidence] | None) -> Pack:
    """The same pass, with what leaves the tower."""
    lots: list[Lot] = []
    for i, lot in enumerate(pack.lots):
        shown = None if evidence is None else evidence[i]
        state = replace(lot.state, left=lot.tokens, evidence=shown).behind_tower()
        lots.append(replace(lot, state=state))
    return replace(pack, lots=tuple(lots))


def project(
    output: Tensor, pack: Pack, place: Place, step: Any, options: Options
) -> tuple[Tensor, Pack]:
    """The step of the stage "projected", on what the projector makes of the tokens: `[t, c]`.

    Returns:
        The tokens that are left, and the state with them.
    """
    lots: list[Lot] = []
    parts: list[Tensor] = []
    one = replace(pack, patches=1)
    for lot, part in zip(pack.lots, one.split(output), strict=True):
        state, keep = lot.state, lot.state.projected
        evidence = state.evidence or evidence_of(part, state, None, 0)
        evidence = evidence.renewed(part, masses(part, state), dict(state.layers))
        if keep is not None and lot.tokens > keep:
            part, _, state = reduced(step, state, part, evidence, keep, place, options)
            lot = lot.now(state, keep)
        state = replace(state, evidence=None, layers=(), left=lot.tokens)
        lots.append(replace(lot, state=state))
        parts.append(part)
    pack = pack.now(lots)
    return pack.join(parts), pack
