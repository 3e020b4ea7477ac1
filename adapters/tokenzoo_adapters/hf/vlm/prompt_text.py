"""The text of a prompt, for a step after the projector that chooses by it (`trim`, `cdpruner`).

The tokens of an image are chosen by the text of its own prompt: all tokens of that row of the batch, before
and after the image, as the language model embeds them. Left out are placeholders, padding, the special
tokens that the configuration names, with `labels` the tokens that are targets, and what a cache holds.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tokenzoo.errors import AttachError
from tokenzoo.hooks import PerThread, Undo, thread_local
from tokenzoo_adapters.hf.names import MASK, runs_on
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan

Visuals = Mapping[int, list[VisualSpan]]

_SPECIAL = ("_token_id", "_token_ids", "_token_index")
"""How entries of a configuration end that hold ids of special tokens."""


@dataclass(frozen=True)
class PromptCall:
    """A call whose images are encoded.

    Attributes:
        given: its arguments, with as many placeholders as tokens come.
        visuals: its images and videos, by placeholder, in the order in which they are encoded.
        held: how many of its first columns are in a cache, and are not read again.
    """

    given: Mapping[str, Any]
    visuals: Visuals
    held: int = 0


class PromptText(PerThread):
    """The call whose images are encoded, in one thread.

    Attributes:
        current: that call; None: images are encoded without a prompt.
        projected: how often the projector has run in it: once for the images, once for the videos, and for
            each of their sizes (`VisualSpan.run`).
    """

    current: PromptCall | None = thread_local("current")
    projected: int | None = thread_local("projected")

    def install(self, projector: nn.Module) -> Undo:
        """Count the calls of the projector; return an uninstaller."""
        return projector.register_forward_pre_hook(self._count).remove

    def begin(self, call: PromptCall) -> None:
        """Remember a call until `end`."""
        self.current, self.projected = call, 0

    def end(self) -> None:
        """Forget the call."""
        self.current = self.projected = None

    @contextmanager
    def call(self, call: PromptCall) -> Generator[None]:
        """Within, the images of this call are encoded."""
        self.begin(call)
        try:
            yield
        finally:
            self.end()

    def of_images(self, model: Any, base: Any) -> tuple[Tensor, Tensor]:
        """The text of each image, crop or frame that the projector is given, in order.

        The ids are read on the host, once.

        Args:
            model: that was attached to.
            base: the bare model in it.

        Returns:
            `[i, t, c]` without gradient, and `[i, t]` bool, False at padding.

        Raises:
            AttachError: there is no prompt, it is no ids, or one with an image has no text.
        """
        call, number = self.current, self.projected
        runs = [] if call is None else _runs(call.visuals)
        if call is None or not number or number > len(runs):
            raise AttachError(
                "this recipe chooses by the text of a prompt, and images are encoded without one: call the "
                "model or generate with input_ids and pixel values, or attach a recipe that needs no text"
            )
        ids: Any = call.given.get("input_ids")
        if not isinstance(ids, Tensor):
            raise AttachError(
                "this recipe chooses by the text of a prompt, and the call has no input_ids: pass them, as "
                "the processor returns them, not inputs_embeds"
            )
        ids = ids.cpu()
        token, run = runs[number - 1]
        rows = _rows(ids, token, call.visuals[token], run)
        words = _words(ids, call, _special(model, base, call.visuals))
        of_rows = {row: ids[row][words[row]] for row in rows}
        for row, text in of_rows.items():
            if not len(text):
                raise AttachError(
                    f"row {row} of input_ids has an image and no text to choose by: its tokens are "
                    "placeholders, padding, special tokens, or targets of labels (the labels of a question "
                    "are -100). Pass a prompt with a question, or attach a recipe that needs no text"
                )
        padded = pad_sequence(list(of_rows.values()), batch_first=True)
        mask = pad_sequence([torch.ones_like(text) for text in of_rows.values()], batch_first=True)
        embed = base.get_input_embeddings()
        with torch.no_grad():
            text = embed(padded.to(runs_on(embed))).detach()  # [rows, t, c]
        order = list(of_rows)
        index = [order.index(row) for row in rows]
        return text[index], mask[index] != 0

    def _count(self, projector: nn.Module, args: Any) -> None:
        del projector, args
        if self.projected is not None:
            self.projected += 1


def _runs(visuals: Visuals) -> list[tuple[int, int]]:
    """The runs of the projector in a call, in order: a placeholder, and which run of its images it is."""
    return [
        (token, run)
        for token, several in visuals.items()
        for run in sorted({one.run for one in several})
    ]


def _rows(ids: Tensor, token: int, several: list[VisualSpan], run: int) -> list[int]:
    """Of each image, crop or frame of a run of the projector, the row of its prompt.

    Args:
        ids: `[b, m]`, with the planned placeholders.
        token: the placeholder.
        several: its images or videos, in the order of the prompts.
        run: which of them.
    """
    places = (ids == token).nonzero()  # [p, 2], row by row
    wanted = sum(one.short for one in several)
    if len(places) != wanted:
        raise AttachError(
            f"input_ids have {len(places)} placeholders (id {token}), and {wanted} are planned for "
            f"{len(several)} images or videos: pass everything that the processor returned"
        )
    rows: list[int] = []
    begin = 0
    for one in several:
        if one.run == run:
            rows += [int(places[begin, 0])] * (one.encoded or one.units)
        begin += one.short
    return rows


def _words(ids: Tensor, call: PromptCall, special: set[int]) -> Tensor:
    """Which tokens of `ids [b, m]` are text: `[b, m]` bool."""
    words = ~torch.isin(ids, torch.tensor(sorted(special)))
    words[:, : call.held] = False
    mask, labels = call.given.get(MASK), call.given.get("labels")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        words &= mask[:, -ids.shape[1] :].cpu() != 0  # with a cache it begins before
    if isinstance(labels, Tensor):
        words &= labels.cpu() == -100
    return words


def _special(model: Any, base: Any, visuals: Visuals) -> set[int]:
    """Ids that are no words, as far as the model knows."""
    found = set(visuals)
    config = base.config
    sources: list[Any] = [config, config.get_text_config()]
    sources.append(getattr(model, "generation_config", config))
    for source in sources:
        for name, value in cast("dict[str, Any]", vars(source)).items():
            if name.endswith(_SPECIAL):
                ids = cast("list[Any]", value if isinstance(value, list | tuple) else [value])
                found |= {one for one in ids if isinstance(one, int)}
    return found
