"""The demo's measurement: every recipe at every budget, on the same images, in the same rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from tokenzoo.budget import TokenBudget
from tokenzoo.cli.options import KeepOption, is_control
from tokenzoo.errors import BudgetError, TokenzooError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.tools.digits import Collages, accuracy
from tokenzoo.tools.timing import Timing, interleaved
from tokenzoo.zoo import build

BARE = "bare model"
AGAIN = "the bare model again"
NORMAL = 1.96  # standard deviations on either side that hold 95 %


@dataclass(frozen=True)
class Score:
    """An accuracy, and how it compares with the bare model's on the same images.

    Attributes:
        value: the share that is right, 0..1.
        margin: half of its 95 % interval, binomial in the number of images.
        difference: to the bare model.
        paired: half of the 95 % interval of the difference, image by image.
    """

    value: float
    margin: float
    difference: float
    paired: float


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        recipe: its name, or `BARE`.
        keep: the budget; None for the bare model.
        control: whether the recipe is a control, a baseline for methods.
        tokens: patch tokens at the end.
        flops: of the blocks, relative to the bare model.
        time: relative to the bare model.
        marked: accuracy of the marked digit.
        counts: accuracy of the ten counts.
        problem: the reason if there are no figures, otherwise "".
        short: the same in two or three words.
    """

    recipe: str
    keep: KeepOption | None = None
    control: bool = False
    tokens: int = 0
    flops: float = 1.0
    time: Timing | None = None
    marked: Score | None = None
    counts: Score | None = None
    problem: str = ""
    short: str = ""


class _Turns:
    """A model that receives the next part of the images on each call, and stores its outputs."""

    def __init__(self, model: nn.Module, parts: Iterable[Tensor]) -> None:
        self.model = model
        self.parts = iter(parts)
        self.logits: list[Tensor] = []

    def __call__(self) -> None:
        with torch.inference_mode():
            self.logits.append(self.model(next(self.parts)))


def measured(
    vit: nn.Module, data: Collages, keeps: Sequence[KeepOption], recipes: Sequence[str], rounds: int
) -> tuple[list[Row], Timing]:
    """Measure all rows; a recipe that cannot reach a budget gets a row that says why.

    Each round shows every model the same part of the images, so that one pass gives times and answers.

    Returns:
        The rows, the bare model first, then budget by budget; and the time of the bare model against
        itself, which measures the noise.
    """
    rows, models = _attached(vit, keeps, recipes)
    parts = data.images.tensor_split(rounds)
    shown = [
        parts[0],
        *parts,
    ]  # a model's first call is slower: it is a warm-up, and does not count
    names = [str(index) for index in models]
    # Half a round apart, the two bare models measure the drift of the machine within a round.
    middle = (len(names) + 1) // 2
    order = [*names[:middle], AGAIN, *names[middle:]]
    turns = {name: _Turns(vit if name == AGAIN else models[int(name)], shown) for name in order}
    times = _timed(turns, rounds)
    right = {name: _right(torch.cat(turns[name].logits[1:]), data) for name in names}
    for name in names:
        scores = {
            what: _score(right[name][what], right["0"][what]) for what in ("marked", "counts")
        }
        rows[int(name)] = replace(rows[int(name)], time=times[name], **scores)
    return rows, times[AGAIN]


def _timed(turns: Mapping[str, _Turns], rounds: int) -> dict[str, Timing]:
    """Time them under a progress bar, which is drawn between the calls and never during one."""
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("showing collages", total=len(turns) * (rounds + 1))

        def advance() -> None:
            progress.advance(task)
            progress.refresh()

        return interleaved(turns, rounds=rounds, baseline="0", between=advance)


def _attached(
    vit: nn.Module, keeps: Sequence[KeepOption], recipes: Sequence[str]
) -> tuple[list[Row], dict[int, nn.Module]]:
    """A row for every pair, and by its index the model with the recipe attached, where it can be."""
    rows = [Row(BARE, tokens=find_adapter(vit).tokens() or 0)]
    models: dict[int, nn.Module] = {0: vit}
    for keep in keeps:
        for recipe in recipes:
            model = deepcopy(vit)
            row = Row(recipe, keep, is_control(recipe))
            try:
                budget: TokenBudget = build(recipe, keep=keep.value).attach(model).plan()
            except TokenzooError as error:
                short = "out of reach" if isinstance(error, BudgetError) else "does not fit"
                rows.append(replace(row, problem=str(error), short=short))
                continue
            models[len(rows)] = model
            rows.append(replace(row, tokens=budget.features, flops=budget.flops))
    return rows, models


def _right(logits: Tensor, data: Collages) -> dict[str, Tensor]:
    """Return the accuracy on each collage, `[b]` for each question."""
    each = [
        accuracy(
            logits[i : i + 1],
            Collages(data.images[i : i + 1], data.digits[i : i + 1], data.marked[i : i + 1]),
        )
        for i in range(len(logits))
    ]
    return {what: torch.tensor([one[what] for one in each]) for what in each[0]}


def _score(right: Tensor, bare: Tensor) -> Score:
    """Sum up what is right `[b]`, b > 1, against the bare model's on the same images."""
    n = len(right)
    value, change = right.double().mean().item(), right.double() - bare.double()
    paired = NORMAL * change.std().item() / math.sqrt(n)
    return Score(value, margin(value, n), change.mean().item(), paired)


def margin(share: float, count: int) -> float:
    """Half of the 95 % interval of a share of `count` independent cases (Agresti and Coull).

    For the mean of several answers per case it is an upper bound.
    """
    share = (share * count + 2) / (count + 4)
    return NORMAL * math.sqrt(share * (1 - share) / (count + 4))
