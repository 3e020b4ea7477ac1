"""Measure candidates in turn, each part of a call relative to the bare model in the same round.

    work = load("siglip-so400m-384")
    table = run(work, [Candidate("evoprune", attaching(build("evoprune", keep=64)), keep=64)])
    table.rows[1].time["encoder"].ratio, table.rows[1].floor["encoder"]

The selection, which the bare model does not have, is divided by its encoder. No seconds are returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenzoo._core.validation import check_count
from tokenzoo.errors import TokenzooError
from tokenzoo.hooks.handle import Attached
from tokenzoo.tools.benchmark import floors, modes
from tokenzoo.tools.benchmark.candidates import AGAIN, BARE, Candidate, check_candidates, copy_of
from tokenzoo.tools.benchmark.clock import ENCODER, SELECTION, Clock, parts, watch
from tokenzoo.tools.benchmark.modes import Mode
from tokenzoo.tools.benchmark.rows import Memory, Row, Table
from tokenzoo.tools.benchmark.workload import Workload
from tokenzoo.tools.timing import Timing, in_turn, relative

COMPILING = 3
"""Calls until nothing is compiled any more; a second call can compile again."""


@dataclass(eq=False)
class _Subject:
    """A model of a run; the bare one has no candidate."""

    name: str
    candidate: Candidate | None
    model: Any
    attached: Attached | None
    clock: Clock
    call: Callable[[], object]
    seconds: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


def run(
    work: Workload,
    candidates: Sequence[Candidate],
    *,
    mode: Mode = "eager",
    rounds: int = 5,
    warmup: int = 1,
    between: Callable[[int, int], object] | None = None,
) -> Table:
    """Measure candidates against the bare model, in one mode.

    Args:
        work: the bare model, and the call.
        candidates: one row each. If a candidate cannot be attached, or fails in its first call, its row has
            the reason.
        mode: "eager"; "compile", all models compiled; "graph", all as CUDA graphs.
        rounds: number of rounds; in each, every model is called once.
        warmup: calls of each model before the rounds; at least 3 if it is compiled. 0, where a call takes
            minutes: what fails then is raised in the first round.
        between: called after every call, outside of the timing, with the number of calls made and the
            total, for a progress bar.

    Raises:
        BadArgumentError: no candidate, two of one name, no round, or a mode that is impossible here.
    """
    check_candidates(candidates)
    check_count("rounds", rounds)
    check_count("warmup", warmup, least=0)
    modes.check_mode(mode, work)
    with modes.many_versions(mode):
        # All are attached before one is compiled: attaching resets torch's compiler.
        bare, again = (_made(work, name, None, mode) for name in (BARE, AGAIN))
        rows, subjects = _all_made(work, candidates, mode)
        for subject in (bare, again):
            _warm(work, subject, mode, warmup)
        for candidate in list(subjects):
            try:
                _warm(work, subjects[candidate], mode, warmup)
            except Exception as error:  # of a compiler or of third-party code
                rows[candidate] = _failed(candidate, error)
                del subjects[candidate]
        several = list(subjects.values())
        half = (
            len(several) // 2
        )  # the bare ones half a round apart, to measure the drift of the machine
        _rounds([bare, *several[:half], again, *several[half:]], work, rounds, between)
    for candidate, subject in subjects.items():
        rows[candidate] = _row(work, subject, bare, mode)
    first, last = (_row(work, one, bare, mode) for one in (bare, again))
    return Table(mode, rounds, (first, *(rows[candidate] for candidate in candidates), last))


def _made(work: Workload, name: str, candidate: Candidate | None, mode: Mode) -> _Subject:
    """Copy the bare model, apply the candidate, and add a clock to its parts."""
    clock = Clock(work.device, blind=mode != "eager")
    model = copy_of(work.model)
    attached = None if candidate is None else candidate.prepare(model, clock.tick)
    if work.multimodal and work.adapter is not None:
        # Compiled code has no clock inside: such a projector counts as part of the tower.
        projector = "" if work.inside and clock.blind else work.adapter.projector
        watch(model, clock, work.encoder, projector, work.language)
    return _Subject(name, candidate, model, attached, clock, work.run(model))


def _all_made(
    work: Workload, candidates: Sequence[Candidate], mode: Mode
) -> tuple[dict[Candidate, Row], dict[Candidate, _Subject]]:
    """Return the rows of candidates that cannot be attached, and the subjects of the others."""
    rows: dict[Candidate, Row] = {}
    subjects: dict[Candidate, _Subject] = {}
    for candidate in candidates:
        try:
            subjects[candidate] = _made(work, candidate.name, candidate, mode)
        except TokenzooError as error:
            rows[candidate] = _failed(candidate, error)
    return rows, subjects


def _failed(candidate: Candidate, error: Exception) -> Row:
    """Return the row of a failed candidate: the message of the error, with its type if it is not ours."""
    lines = str(error).strip().splitlines() or [""]
    ours = isinstance(error, TokenzooError)
    problem = lines[0] if ours else f"{type(error).__name__}: {lines[0]}"
    return Row(candidate.name, candidate.keep, problem)


def _warm(work: Workload, subject: _Subject, mode: Mode, warmup: int) -> None:
    """Make the first calls, which compile and capture."""
    subject.call = modes.ready(mode, work, subject.model)
    for _ in range(max(warmup, COMPILING) if mode == "compile" else warmup):
        subject.clock.call(subject.call)
        parts(subject.clock, work.multimodal, work.inside)  # raises now, not after all rounds


def _rounds(
    subjects: Sequence[_Subject],
    work: Workload,
    rounds: int,
    between: Callable[[int, int], object] | None,
) -> None:
    for done, one in enumerate(in_turn(subjects, rounds), 1):
        one.clock.call(one.call)
        one.seconds.append(parts(one.clock, work.multimodal, work.inside))
        if between is not None:
            between(done, rounds * len(subjects))


def _row(work: Workload, subject: _Subject, bare: _Subject, mode: Mode) -> Row:
    whole = "first_token" if work.multimodal else ENCODER
    time: dict[str, Timing] = {}
    share: dict[str, Timing] = {}
    for part in subject.seconds[0]:
        base = ENCODER if part == SELECTION else part
        time[part] = _ratio(subject.seconds, part, bare.seconds, base)
        share[part] = _ratio(subject.seconds, part, bare.seconds, whole)
    candidate = subject.candidate
    floor: dict[str, float] = {}
    foreign = candidate is not None and subject.attached is None
    if candidate is not None and foreign:
        floor = {} if candidate.floor is None else {ENCODER: candidate.floor}
    else:
        own, all_of_it = floors.operations(work, subject.attached), floors.operations(work, None)
        floor = {part: own[part] / all_of_it[part] for part in all_of_it}
    return Row(
        subject.name,
        None if candidate is None else candidate.keep,
        tokens=() if foreign else floors.after_tower(work, subject.attached),
        prompt=subject.clock.prompt,
        floor=floor,
        time=time,
        share=share,
        memory=_memory(subject, mode),
    )


def _ratio(own: list[dict[str, float]], part: str, base: list[dict[str, float]], of: str) -> Timing:
    return relative([seconds[part] for seconds in own], [seconds[of] for seconds in base])


def _memory(subject: _Subject, mode: Mode) -> Memory | None:
    """Return what one more call allocates; a graph has allocated everything before."""
    device = subject.clock.device
    if device.type != "cuda" or mode == "graph":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    subject.call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return Memory(peak, peak - before)
