"""Marks within one call, and the times between them.

On a GPU a mark is an event in the stream, which is read after the call: waiting for it during the call
would keep Python from running ahead, and change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn

from tokenzoo.errors import AttachError

Span = tuple[float, float]
"""Start and end, in seconds from the beginning of the call."""

BEGIN, END = "begin", "end"
ENCODER, PROJECTOR, LANGUAGE, SELECTION = "encoder", "projector", "language", "selection"


@dataclass
class Clock:
    """The marks of one call.

    Args:
        device: where the call runs.

    Attributes:
        running: whether a timed call is running.
        blind: whether selections are not marked, because they are compiled or captured.
        marks: the marks of the last call, in order.
        prompt: length of the prompt that entered the language model in the last call.
    """

    device: torch.device
    running: bool = False
    blind: bool = False
    marks: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    prompt: int | None = None

    def mark(self, name: str) -> None:
        """Mark the time of a beginning or an end."""
        if self.running:
            self.marks.append((name, self._now()))

    def tick(self) -> None:
        """Mark the beginning or the end of a selection."""
        if not self.blind:
            self.mark(SELECTION)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function and record its marks."""
        self.marks, self.running = [], True
        self._wait()
        try:
            self.mark(BEGIN)
            function()
            self.mark(END)
        finally:
            self.running = False
        self._wait()

    def spans(self, name: str) -> list[Span]:
        """Return the spans between the first and second mark of this name, the third and fourth, and so on.

        Raises:
            AttachError: a beginning has no end.
        """
        times = self.times(name)
        if len(times) % 2:
            raise AttachError(
                f"{name} has {len(times)} marks in one call: each needs one where it begins, and one where "
                "it ends (of a selection the candidate makes both)"
            )
        return list(zip(times[::2], times[1::2], strict=True))

    def times(self, name: str) -> list[float]:
        """Return the seconds of all marks of this name, from the beginning of the call."""
        begin = self.marks[0][1]
        return [self._since(begin, when) for known, when in self.marks if known == name]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _since(self, begin: Any, when: Any) -> float:
        return begin.elapsed_time(when) / 1000 if self.device.type == "cuda" else when - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def watch(model: nn.Module, clock: Clock, encoder: str, projector: str, language: str) -> None:
    """Mark the parts of a multimodal model, including the recipe attached to it.

    Args:
        model: a model with a language model.
        clock: records the beginning and end of each part.
        encoder: name of the vision tower.
        projector: name of the module after the tower, or at its end; "": not measured on its own.
        language: name of the language model.
    """
    named = {ENCODER: encoder, PROJECTOR: projector, LANGUAGE: language}

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, options: dict[str, Any]) -> None:
            del module, args
            if name == LANGUAGE:
                clock.prompt = options["inputs_embeds"].shape[1]
            clock.mark(name)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args, output
            clock.mark(name)

        return hook

    for name, path in named.items():
        if not path:
            continue
        module = model.get_submodule(path)
        module.register_forward_pre_hook(enter(name), with_kwargs=True)
        module.register_forward_hook(leave(name))


def parts(clock: Clock, multimodal: bool, inside: bool) -> dict[str, float]:
    """Return the seconds of each part of a call, to be divided by others.

    `encoder_alone`, `rest_alone` and `prefill_alone` exclude the selections in these parts.

    Args:
        clock: after a call.
        multimodal: whether there is a language model.
        inside: whether the projector runs within the vision tower (Qwen's merger).

    Raises:
        AttachError: a part did not run, or ran too often.
    """
    whole = clock.times(END)[0]
    selections = clock.spans(SELECTION)
    selection = {} if clock.blind else {SELECTION: _length(selections)}
    if not multimodal:
        return {ENCODER: whole, **selection, "encoder_alone": whole - _length(selections)}
    language, tower, projector = map(clock.spans, (LANGUAGE, ENCODER, PROJECTOR))
    if len(language) != 1 or not tower:
        raise AttachError(
            f"in one call the vision tower ran {len(tower)} times, and the language model {len(language)} "
            "times: the first runs, and the second runs once"
        )
    found = {ENCODER: 0.0, "rest": 0.0, "prefill": 0.0}
    for span in selections:
        in_tower = _within(span, tower) and not _within(span, projector)
        where = "prefill" if _within(span, language) else ENCODER if in_tower else "rest"
        found[where] += _length([span])
    encoder = _length(tower) - (_length(projector) if inside else 0)
    prefill = _length(language)
    own = {ENCODER: encoder, "rest": whole - encoder - prefill, "prefill": prefill}
    return {
        **own,
        **selection,
        **{f"{part}_alone": own[part] - found[part] for part in own},
        "before_llm": language[0][0],
        "first_token": whole,
    }


def _length(spans: Sequence[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def _within(span: Span, others: Sequence[Span]) -> bool:
    return any(begin <= span[0] and span[1] <= end for begin, end in others)
