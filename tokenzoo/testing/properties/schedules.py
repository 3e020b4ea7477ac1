"""Properties of schedules: pure arithmetic on counts, exact at the end, or an error with the limit."""

from __future__ import annotations

import re
from dataclasses import replace

from tokenzoo._core.validation import is_kind
from tokenzoo.budget import capped, round_half_up
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.parts import Schedule
from tokenzoo.schedules import Once, Scaled
from tokenzoo.testing.broken import BrokenError, demand
from tokenzoo.testing.property import property_of
from tokenzoo.testing.strategies import Sites

READ = "tokenzoo.parts.Schedule.counts"
DEEPEST = 48


@property_of("schedule", cases="nothing", read=READ)
def fits_somewhere(subject: Schedule) -> None:
    """A schedule fits towers of some depth; of the others it says so with a `BadArgumentError`."""
    depths = [n for n in range(1, DEEPEST + 1) if _fits(subject, Sites(100, n, 100))]
    demand(bool(depths), f"a depth from 1 to {DEEPEST} that it fits", "none")


@property_of("schedule", cases="sites", read=READ)
def counts_formed(subject: Schedule, sites: Sites) -> None:
    """There is one count per site, an int, from 1 to the tokens before it: none grows."""
    counts = _counts(subject, sites)
    if counts is None:
        return
    demand(
        is_kind(counts, tuple) and len(counts) == sites.sites,
        f"a tuple of {sites.sites} counts",
        repr(counts),
    )
    before = sites.tokens
    for count in counts:
        demand(
            type(count) is int and 1 <= count <= before,
            f"an int from 1 to {before} next",
            repr(counts),
        )
        before = count


@property_of("schedule", cases="sites", read=READ)
def counts_possible(subject: Schedule, sites: Sites) -> None:
    """No site removes more than its matcher can take there: that is what `fewest` is for."""
    counts = _counts(subject, sites) or ()
    before = sites.tokens
    for index, count in enumerate(counts):
        least = before if count == before else min(before, sites.fewest(before))
        demand(
            count >= least,
            f"at least {least} of {before} tokens after site {index}, where fewest({before}) is {least}",
            f"{count} in {counts}",
        )
        before = count


@property_of("schedule", cases="sites", read=READ)
def counts_exact(subject: Schedule, sites: Sites) -> None:
    """The last count is `keep`, or all tokens where there are no more; or it is a `BudgetError`.

    That error names the fewest that can be reached, and so many really can. (A schedule that fixes its
    removals itself, `uses_keep = False`, aims at nothing.)
    """
    if not subject.uses_keep or not _fits(subject, sites):
        return
    for case in (sites, replace(sites, keep=1)):  # one token is out of most matchers' reach
        try:
            counts = _ask(subject, case)
        except BudgetError as error:
            if _factor(subject) == 1:
                _reachable(subject, case, str(error))
            continue
        aim = _aim(subject, case)
        demand(counts[-1] == aim, f"{aim} tokens after the last site for {case!r}", repr(counts))


def _reachable(subject: Schedule, sites: Sites, message: str) -> None:
    """Demand that the error names the fewest: it can be reached, and one less cannot."""
    named = [int(number) for number in re.findall(r"\d+", message)]
    candidates = sorted({number for number in named if sites.keep < number <= sites.tokens})
    for fewest in candidates:
        if _reaches(subject, sites, fewest) and not _reaches(subject, sites, fewest - 1):
            return
    most = capped(sites.tokens, [sites.tokens] * sites.sites, sites.fewest)[-1]
    raise BrokenError(
        f"an error that names the fewest tokens that it reaches (all sites at their limit leave {most})",
        message,
    )


def _reaches(subject: Schedule, sites: Sites, keep: int) -> bool:
    try:
        counts = subject.counts(sites.tokens, sites.sites, keep, sites.fewest)
    except BudgetError:
        return False
    return counts[-1] == keep


@property_of("schedule", cases="sites", read=READ)
def counts_all(subject: Schedule, sites: Sites) -> None:
    """Where as many tokens are wanted as there are, or more, all of them stay."""
    if not subject.uses_keep or _factor(subject) < 1 or not _fits(subject, sites):
        return
    for keep in (sites.tokens, sites.tokens + 1):
        counts = subject.counts(sites.tokens, sites.sites, keep, sites.fewest)
        expected = (sites.tokens,) * sites.sites
        demand(counts == expected, f"{expected} for keep={keep}", repr(counts))


@property_of("schedule", cases="sites", read=READ)
def counts_pure(subject: Schedule, sites: Sites) -> None:
    """Counts are a function of counts alone: the same again, and after other questions."""
    first = _answer(subject, sites)
    for other in (
        Sites(sites.tokens + 7, sites.sites, sites.keep, sites.takes),
        Sites(sites.tokens, sites.sites + 1, sites.keep, sites.takes),
        Sites(sites.tokens, sites.sites, max(1, sites.keep - 1), "all but one"),
    ):
        _answer(subject, other)
    again = _answer(subject, sites)
    demand(first == again, f"the same answer again, {first!r}", repr(again))


def _factor(subject: Schedule) -> float:
    """The factor on `keep`, for recipes of several steps; 1 for most schedules."""
    if isinstance(subject, Scaled):
        return subject.factor * _factor(subject.schedule)
    return subject.keep if isinstance(subject, Once) else 1.0


def _aim(subject: Schedule, sites: Sites) -> int:
    """The tokens that a schedule aims at."""
    return max(1, round_half_up(min(sites.tokens, sites.keep * _factor(subject))))


def _ask(subject: Schedule, sites: Sites) -> tuple[int, ...]:
    return subject.counts(sites.tokens, sites.sites, sites.keep, sites.fewest)


def _fits(subject: Schedule, sites: Sites) -> bool:
    """Whether a schedule accepts this number of sites; that does not depend on `keep`."""
    try:
        subject.counts(sites.tokens, sites.sites, sites.tokens, sites.fewest)
    except BudgetError:
        return True
    except BadArgumentError:
        return False
    return True


def _counts(subject: Schedule, sites: Sites) -> tuple[int, ...] | None:
    """The counts; None where it does not fit, or `keep` is out of reach."""
    if not _fits(subject, sites):
        return None
    try:
        return _ask(subject, sites)
    except BudgetError:
        return None


def _answer(subject: Schedule, sites: Sites) -> object:
    """Return the counts, or the error as text."""
    try:
        return _ask(subject, sites)
    except BadArgumentError as error:
        return f"{type(error).__name__}: {error}"
