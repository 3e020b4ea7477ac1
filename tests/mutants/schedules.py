"""Schedules that break one promise each."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenzoo.budget import spread
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.parts import Fewest, Schedule


def _even(tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
    return spread(tokens, keep, (1,) * sites, fewest)


@dataclass(frozen=True)
class KeepsOneMore(Schedule):
    """Ends one token above what was asked for."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        return _even(tokens, sites, min(tokens, keep + 1), fewest)


@dataclass(frozen=True)
class Grows(Schedule):
    """Removes too much in the middle, and brings some back."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        counts = _even(tokens, sites, keep, fewest)
        return (*(max(1, count - 1) for count in counts[:-1]), counts[-1])


@dataclass(frozen=True)
class OneShort(Schedule):
    """Leaves out the last site."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        return _even(tokens, sites, keep, fewest)[:-1]


@dataclass(frozen=True)
class Overasks(Schedule):
    """Removes everything at the first site, whatever its matcher can take."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        return (min(tokens, keep),) * sites


@dataclass(frozen=True)
class StopsShort(Schedule):
    """Says nothing where `keep` is out of reach, and ends with more."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        counts: list[int] = []
        for _ in range(sites):
            tokens = max(min(keep, tokens), min(tokens, fewest(tokens)))
            counts.append(tokens)
        return tuple(counts)


@dataclass(frozen=True)
class Vague(Schedule):
    """Refuses without saying how far it goes."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        try:
            return _even(tokens, sites, keep, fewest)
        except BudgetError as error:
            raise BudgetError("that is too few") from error


@dataclass(frozen=True)
class TooStrict(Schedule):
    """Names as the fewest twice as many as it reaches."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        least = tokens
        for _ in range(sites):
            least = max(1, min(least, fewest(least)))
        if keep < least:
            raise BudgetError(f"keep={keep}; the fewest are {min(tokens, 2 * least)}")
        return _even(tokens, sites, keep, fewest)


@dataclass(frozen=True)
class AlwaysTrims(Schedule):
    """Removes a token even where all are wanted."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        wanted = keep if keep < tokens else max(fewest(tokens), tokens - 1, 1)
        return _even(tokens, sites, wanted, fewest)


@dataclass(frozen=True)
class Tires(Schedule):
    """Removes less the more often it is asked."""

    asked: list[int] = field(default_factory=list[int], compare=False, repr=False)

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        self.asked.append(keep)
        return _even(tokens, sites, min(tokens, keep + len(self.asked) // 2), fewest)


@dataclass(frozen=True)
class NeverFits(Schedule):
    """Finds every tower too deep or too shallow."""

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        raise BadArgumentError(f"{sites} sites do not suit me")
