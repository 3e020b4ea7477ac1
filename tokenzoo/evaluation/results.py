"""Rows of results, and the file that keeps them: JSON lines, appended one by one, never rewritten."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError

FORMAT = 1
OK, REFUSED = "ok", "refused"


@dataclass(frozen=True)
class Key:
    """What a row is about; a file has one row for each.

    Attributes:
        task: name of the task.
        model: name of the model.
        recipe: name of the recipe; None: the bare model.
        keep: patch tokens, an int is a count and a float a share; None: the bare model.
        seed: of a recipe with a seed, otherwise 0.
        options: other options of the recipe, as JSON with sorted names.
    """

    task: str
    model: str
    recipe: str | None = None
    keep: int | float | None = None
    seed: int = 0
    options: str = "{}"

    @property
    def label(self) -> str:
        """One string for all of it, different for `keep=1` and `keep=1.0`."""
        return json.dumps(list(asdict(self).values()))

    @property
    def attached(self) -> str:
        """One string for what is attached to the model, whatever the task."""
        return json.dumps([self.recipe, self.keep, self.seed, self.options])


@dataclass(frozen=True)
class Row:
    """One recipe at one budget on one task.

    Attributes:
        key: what the row is about.
        facts: what else decides the scores; rows of one task and model are compared only if these agree.
        status: "ok", or "refused" if the recipe cannot run on this model at this budget.
        reason: why it was refused.
        scores: by metric, one number for each sample: an int, 0 or 1, where an answer is right or wrong.
        agreement: for each sample 1 if the answers are the bare model's, else 0; [] without answers.
        tokens: patch tokens of an image after the last reduction; None: it depends on the image.
        flops: operations of the blocks, relative to the bare model.
        time: median, lower and upper quartile of the time relative to the bare model; [] if not measured.
        versions: of the libraries.
        command: the command that measured it; "" if it was not measured by one.
    """

    key: Key
    facts: Mapping[str, Any]
    status: str = OK
    reason: str = ""
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict[str, list[float]])
    agreement: Sequence[float] = field(default_factory=list[float])
    tokens: int | None = None
    flops: float | None = None
    time: Sequence[float] = field(default_factory=list[float])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    command: str = ""

    def line(self) -> str:
        """Return the row as one line of JSON, with its line end."""
        return json.dumps({"format": FORMAT, **asdict(self)}, allow_nan=False) + "\n"

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Row:
        """Make a row of parsed JSON.

        Raises:
            ValueError, TypeError, KeyError: it is not a row.
        """
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        # The first files had no commands.
        content = {"command": "", **content}
        given: dict[str, Any] = {one.name: content[one.name] for one in fields(cls)}
        if given["status"] not in (OK, REFUSED):
            raise ValueError(f"its status is {given['status']!r}")
        given["key"] = Key(**given["key"])
        _check_values(given)
        return cls(**given)


def _check_values(given: Mapping[str, Any]) -> None:
    """Raise ValueError if what is read of a row is not what a row holds."""
    key: Key = given["key"]
    for name in ("facts", "scores", "versions"):
        if not isinstance(given[name], dict):
            raise ValueError(f"its {name} are not an object")
    if not isinstance(json.loads(key.options), dict):
        raise ValueError(f"its options are {key.options!r}, not an object of JSON")
    if given["status"] == OK and not given["scores"]:
        raise ValueError("it has no scores")
    if len(given["time"]) not in (0, 3):
        raise ValueError("its time is not a median and two quartiles")
    single = [one for one in (given["tokens"], given["flops"], key.keep) if one is not None]
    numbers: list[Any] = [*single, *given["time"], *given["agreement"]]
    for scores in given["scores"].values():
        numbers += scores
    for number in numbers:
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"it has {number!r} where a number belongs")


class ResultsFile:
    """A file of rows. It is only ever appended to.

    Args:
        path: of the file; it is made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        """Read all rows; none if there is no file.

        Raises:
            BadArgumentError: a line is damaged or was written only in part; says which, and what to do.
        """
        return list(self._rows()) if self.path.exists() else []

    def _rows(self) -> Iterator[Row]:
        seen: dict[Key, int] = {}
        for number, line in enumerate(self._lines(), 1):
            try:
                if not line.endswith("\n"):
                    raise ValueError("it ends in the middle")
                row = Row.of(cast("dict[str, Any]", json.loads(line)))
                if row.key in seen:
                    raise ValueError(f"it repeats line {seen[row.key]}")
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise BadArgumentError(
                    f"line {number} of {self.path} is not a row of results ({quote(str(error))}). Nothing "
                    f"was changed. Delete that line (sed -i {number}d {self.path}) and run the same "
                    "command again: the missing row is computed, the others are kept"
                ) from error
            seen[row.key] = number
            yield row

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise BadArgumentError(f"{self.path} cannot be read as text: {error}") from error

    def check(self, facts: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[Key, Row]:
        """Return the rows by key, if a sweep of these facts can go on with them.

        Args:
            facts: of each task and model that is going to be run.

        Raises:
            BadArgumentError: a damaged line, or a row of the same task and model under other facts.
        """
        found: dict[Key, Row] = {}
        for row in self.rows():
            wanted = facts.get((row.key.task, row.key.model))
            if wanted is not None and dict(row.facts) != json.loads(json.dumps(wanted)):
                raise BadArgumentError(
                    f"{self.path} has rows of {row.key.task} on {row.key.model} with "
                    f"{quote(dict(row.facts))}; this run has {quote(dict(wanted))}. Name another file, or "
                    "use the same options"
                )
            found[row.key] = row
        return found

    def append(self, row: Row) -> None:
        """Write a row to the end of the file, and wait until it is on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(row.line())
            file.flush()
            os.fsync(file.fileno())
