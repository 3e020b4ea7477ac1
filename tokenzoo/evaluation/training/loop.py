"""A plain training loop: seeded, resumable, and safe to interrupt.

The loss is that of the task, the distance from the bare model's outputs, and the penalties of the learned
parts. Every step follows from its number alone (batch, noise, learning rate, tokens to keep), so a training
that was interrupted and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
from torch import Tensor, nn

import tokenzoo
from tokenzoo._core.kinds import Count, Index, NonNegative, Positive, Range, Words
from tokenzoo._core.options import check_fields
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.training import checkpoint
from tokenzoo.evaluation.training.checkpoint import Curve
from tokenzoo.evaluation.training.tasks import TrainingTask
from tokenzoo.hooks.handle import Attached
from tokenzoo.hooks.reduction import Event
from tokenzoo.learned import SoftMatcher, modules, parts_that_learn
from tokenzoo.parts import walk
from tokenzoo.zoo import Method

LEVELS = 8
"""Numbers of tokens through which an annealed training goes."""


@dataclass(frozen=True)
class Training:
    """How a recipe is trained.

    Args:
        steps: in all.
        rate: highest learning rate of the parts (Adam); it warms up for a twentieth of the steps, and falls
            to 0 by a cosine.
        seed: of the noise in the parts.
        task: weight of the task's loss.
        teacher: weight of the distance from the bare model.
        penalty: weight of the parts' own losses. (DynamicViT: 2)
        tune_model: train the model, too; else it is frozen.
        model_rate: highest learning rate of the model.
        anneal: share of the steps in which the tokens to keep fall from nearly all to the recipe's.
        every: steps between two checkpoints and scores.

    Raises:
        BadArgumentError: a value that cannot work.
    """

    steps: Count = 1000
    rate: Positive = 1e-3
    seed: Index = 0
    task: NonNegative = 1.0
    teacher: NonNegative = 1.0
    penalty: NonNegative = 2.0
    tune_model: bool = False
    model_rate: Positive = 1e-4
    anneal: Annotated[float, Range(0, 1), Words("a share of the steps, from 0 to 1")] = 0.0
    every: Count = 200

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Progress:
    """What `tell` receives after each step: the steps done, of how many, and what was noted of the last."""

    step: int
    steps: int
    noted: dict[str, float]


class Interrupted(Exception):  # noqa: N818  what happened, and no error
    """SIGINT came, and the checkpoint was written."""


def train(
    method: Method,
    task: TrainingTask,
    how: Training | None = None,
    *,
    path: Path | None = None,
    tell: Callable[[Progress], object] | None = None,
) -> Curve:
    """Train the parts of a recipe on a task; its model is left bare, with its own mode.

    Args:
        method: whose parts learn; their weights are changed.
        task: batches, losses, and the model.
        how: numbers.
        path: of a checkpoint, which is written, and from which the training goes on if it is there.
        tell: is called after each step.

    Returns:
        The losses of all steps, and scores at some.

    Raises:
        BadArgumentError: there is nothing to train, a checkpoint is of another training, or the recipe
            cannot be annealed.
        Interrupted: SIGINT came; with a checkpoint the training can go on.
    """
    how, model = how or Training(), task.model
    parts = modules(method.recipe.steps)
    if not parts and not how.tune_model:
        raise BadArgumentError(
            f"{method!r} has no parts that learn: train the model with it, tune_model=True (--tune-model)"
        )
    soft = any(isinstance(part, SoftMatcher) for part in walk(method.recipe.steps))
    if how.anneal and soft:
        raise BadArgumentError(
            f"anneal={how.anneal}: the weights of {method!r} are for one number of tokens; leave it out"
        )
    with ExitStack() as stack:
        stack.enter_context(_restored(model, tuned=how.tune_model))
        teacher = deepcopy(model).eval() if how.tune_model else None
        run = stack.enter_context(_Run.on(method, task, how, teacher))
        return _steps(run, path, tell, stack.enter_context(_interrupts()))


def _steps(
    run: _Run,
    path: Path | None,
    tell: Callable[[Progress], object] | None,
    asked: Callable[[], bool],
) -> Curve:
    how, curve, done = run.how, Curve(), 0
    learning = nn.ModuleList(run.learning)
    if path is not None and path.exists():
        done, curve = checkpoint.read(path, run.about, learning, run.optimiser)
    for step in range(done, how.steps):
        noted = run.step(step)
        done = step + 1
        stops = asked() and done < how.steps
        if done % how.every == 0 or done == how.steps:
            noted |= {f"score {name}": value for name, value in run.score().items()}
        curve.append(noted)
        if path is not None and (stops or done % how.every == 0 or done == how.steps):
            checkpoint.write(path, run.about, done, curve, learning, run.optimiser)
        if tell is not None:
            tell(Progress(done, how.steps, noted))
        if stops:
            raise Interrupted(f"stopped after {done} of {how.steps} steps")
    return curve


class _Run:
    """A method on a model, while it is trained."""

    def __init__(
        self, method: Method, task: TrainingTask, how: Training, teacher: Any | None
    ) -> None:
        self.method, self.task, self.how, self.teacher = method, task, how, teacher
        self.events: list[Event] = []
        self.attached = self._attach(method)
        self.full = self.attached.plan().tokens
        self.keep = self.wanted = method.recipe.wanted(self.full)
        self.learning: list[nn.Module] = [*modules(method.recipe.steps)]
        groups: list[dict[str, Any]] = []
        if any(True for module in self.learning for _ in module.parameters()):
            own = [p for module in self.learning for p in module.parameters()]
            groups.append({"params": own, "peak": how.rate})
        if how.tune_model:
            self.learning.append(task.model)
            groups.append({"params": [*task.model.parameters()], "peak": how.model_rate})
        self.optimiser = torch.optim.Adam([{**group, "lr": 0.0} for group in groups])
        self.about = f"{method!r} on {task.name}: {asdict(how)}"

    @classmethod
    @contextmanager
    def on(
        cls, method: Method, task: TrainingTask, how: Training, teacher: Any | None
    ) -> Generator[_Run]:
        """Attach, and detach at the end."""
        run = cls(method, task, how, teacher)
        try:
            yield run
        finally:
            run.attached.detach()

    def step(self, step: int) -> dict[str, float]:
        """Take one step; returns the losses."""
        how = self.how
        self._anneal(step)
        share = _rate(step, how.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = share * group["peak"]
        images, known = self.task.batch(step)
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            torch.manual_seed(how.seed * 1_000_003 + step)  # pyright: ignore[reportUnknownMemberType]
            losses = self._losses(images, known)
        total = sum(losses.values(), torch.zeros(()))
        self.optimiser.zero_grad()
        total.backward()  # pyright: ignore[reportUnknownMemberType]
        self.optimiser.step()  # pyright: ignore[reportUnknownMemberType]
        noted = {name: float(value.detach()) for name, value in losses.items()}
        return {"step": step + 1, "loss": sum(noted.values()), "keep": self.keep, **noted}

    def score(self) -> dict[str, float]:
        """Return the scores of the task, with the recipe's own tokens, in eval mode."""
        self._keep(self.wanted)
        self.attached.eval()
        return self.task.score(self.task.model)

    def _losses(self, images: Tensor, known: Any) -> dict[str, Tensor]:
        how, task = self.how, self.task
        with torch.no_grad(), self.attached.paused():
            self.attached.eval()
            wanted = (self.teacher or task.model)(images)
        self.attached.train()
        self.events.clear()
        output = task.model(images)
        losses = {"teacher": how.teacher * task.distance(output, wanted)}
        loss = task.loss(output, known)
        if loss is not None:
            losses["task"] = how.task * loss
        penalties = [
            value
            for event in self.events
            for part in parts_that_learn(self.method.recipe.steps)
            if (value := part.penalty(event.evidence, event.kept)) is not None
        ]
        if penalties:
            losses["penalty"] = how.penalty * torch.stack(penalties).mean()
        return losses

    def _anneal(self, step: int) -> None:
        """Go to the number of tokens of a step."""
        last = self.how.anneal * self.how.steps
        level = LEVELS if step >= last else 1 + int(step / last * (LEVELS - 1))
        self._keep(
            max(self.wanted, round(self.full * (self.wanted / self.full) ** (level / LEVELS)))
        )

    def _keep(self, keep: int) -> None:
        if keep == self.keep:
            return
        self.attached.detach()
        self.attached = self._attach(tokenzoo.build(self.method.recipe, keep=keep))
        self.keep = keep

    def _attach(self, method: Method) -> Attached:
        self.task.model.train()  # it is attached in order to be trained
        return method.attach(self.task.model, on_reduce=self.events.append)


def _rate(step: int, steps: int) -> float:
    """Return the share of the highest learning rate at a step: warm-up, then a cosine down to 0."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


@contextmanager
def _restored(model: nn.Module, *, tuned: bool) -> Generator[None]:
    """Freeze a model unless it is tuned; at the end it is in its own mode, with its own parameters free."""
    training, free = model.training, [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(tuned)
    try:
        yield
    finally:
        model.train(training).requires_grad_(False)
        for parameter in free:
            parameter.requires_grad_(True)


@contextmanager
def _interrupts() -> Generator[Callable[[], bool]]:
    """Note SIGINT instead of raising; the second one raises as usual. Yields whether it came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
