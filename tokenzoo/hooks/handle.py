"""A recipe on a model: what it plans, what the last pass did, and how it comes off again."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn

from tokenzoo._core.validation import check_count
from tokenzoo.adapter import Adapter, TokenPlan
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import AttachError
from tokenzoo.hooks.installer import MARK as MARK
from tokenzoo.hooks.installer import Installer
from tokenzoo.hooks.passes import Passes
from tokenzoo.hooks.reduction import Options
from tokenzoo.hooks.report import PassReport, left_of, reports
from tokenzoo.hooks.summary import summary
from tokenzoo.learned import modules
from tokenzoo.recipe import Recipe
from tokenzoo.token_map import TokenMap

When = Literal["always", "eval", "train"]


class Attached:
    """A recipe on a model. Use it as a context manager, or call `detach()`.

    Attributes:
        model: the model, which is used as before.
        recipe: the parts and the numbers.
        adapter: what knows the model.
        options: `trace`, `restore`, `debug`, `on_reduce`.
        when: in which mode of the model it works: "always", "eval" or "train".
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, adapter: Adapter, *, options: Options, when: When
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.adapter = adapter
        self.options = options
        self.when: When = when
        self._installer = Installer(model, adapter, options, recipe.proportional_attention)
        self._passes = Passes(recipe, adapter, options, self._is_active, self._installer.carry)
        self._last = self._passes.last
        # As many entries as there are paused() blocks. No thread-local: a compiled model would not look.
        self._pauses: list[None] = []

    @property
    def active(self) -> bool:
        """Whether a pass would reduce: nothing is paused, and the model is in the right mode."""
        mode = self.when == "always" or self.model.training == (self.when == "train")
        return mode and not self._pauses

    def _is_active(self) -> bool:
        return self.active

    @property
    def restores(self) -> bool:
        """Whether whatever reads the tower finds all tokens: by `restore=True`, or by the recipe."""
        return self.options.restore or self.recipe.all_back

    @property
    def learned(self) -> nn.ModuleList:
        """The modules of the recipe's learned parts; an optimiser is given their `parameters()`."""
        found = nn.ModuleList(modules(self.recipe.steps))
        found.training = self.model.training
        return found

    def train(self, mode: bool = True) -> Attached:
        """Put the model and the recipe's learned parts into training mode, or with False out of it."""
        self.model.train(mode)
        self.learned.train(mode)
        return self

    def eval(self) -> Attached:
        """Put the model and the recipe's learned parts into evaluation mode."""
        return self.train(False)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within the `with` block nothing is reduced, in any thread; nothing is detached either.

        A model under `torch.compile` is compiled once more for that; an exported one is what it was.
        """
        self._pauses.append(None)
        try:
            yield
        finally:
            self._pauses.pop()

    def plan(self, tokens: int | None = None, frames: int = 1) -> TokenBudget:
        """The patch tokens after each block.

        Args:
            tokens: of an image or a frame; None: of one of the model's own size.
            frames: of the video, where this is a frame.
        """
        if tokens is None:
            tokens = self.adapter.tokens()
        if tokens is None:
            raise AttachError(
                "this model takes images of any size: pass the number of patch tokens, as in plan(196)"
            )
        return self._passes.budget(check_count("tokens", tokens), check_count("frames", frames))

    def visual_tokens(self, tokens: int, frames: int = 1) -> int:
        """Count the tokens that the language model reads of an image, or of a frame of a video.

        A recipe that works over frames alone leaves an image whole. Of a video it leaves `frames` times as
        many as of a frame, and these may lie in some of its frames only.

        Args:
            tokens: patch tokens of the image or frame.
            frames: of the video; 1: it is an image.
        """
        plan = self.plan(tokens)
        over_frames = self._passes.steps.joins_frames and plan.features == plan.tokens
        return plan.tokens if over_frames and frames == 1 else plan.visual

    @property
    def token_plan(self) -> TokenPlan:
        """`visual_tokens`, and whether they are a mean over the frames of a video."""
        return TokenPlan(self.visual_tokens, self._passes.steps.joins_frames)

    @property
    def passes(self) -> tuple[PassReport, ...]:
        """What the last pass of this thread did, by the grid of its images; of a batch there is one.

        Raises:
            AttachError: there was none yet, or the last one did not reach the last block.
        """
        if self._last.state is None:
            raise AttachError(STOPPED if self._last.began else NOT_RUN)
        return reports(self._last.state)

    @property
    def counts(self) -> tuple[int, ...]:
        """Patch tokens after each block in the last pass of this thread; () if the tower is left alone.

        Raises:
            AttachError: there was none yet, or it had images of several grids (see `passes`).
        """
        if not self._reaches:
            return ()
        return self._passed().counts

    @property
    def features(self) -> int:
        """Patch tokens of an image that left the tower, and the projector, in the last pass of this thread.

        Raises:
            AttachError: there was none yet, or the recipe leaves the tower alone.
        """
        if not self._reaches:
            raise AttachError(
                "this recipe does not reduce in the tower or its projector; attached.prompts has the "
                "number of visual tokens of each prompt that were left in the language model"
            )
        return self._passed().features

    @property
    def mass(self) -> Tensor:
        """How many input tokens each token of the last pass stands for, `[b, n]`, prefix included."""
        mass = self._passed().mass
        self._passes.check_outside()
        if mass is None:
            raise AttachError(
                "every token stands for itself after the last forward pass: nothing was reduced in it, or "
                "the recipe brought all tokens back"
            )
        return mass

    @property
    def record(self) -> TokenMap:
        """From the first tokens to the last ones of the last pass; needs `attach(..., trace=True)`."""
        record = self._passed().record
        if not self.options.trace:
            raise AttachError("token maps are recorded only with attach(..., trace=True)")
        self._passes.check_outside()
        if record is None:
            raise AttachError("nothing was reduced in the last forward pass")
        return record

    @property
    def left(self) -> tuple[Tensor, ...]:
        """Of each image of the last pass, which of its patch tokens are left: `[m]`, in their order.

        Tokens are counted from 0, in raster order. A merged token is the one that the others were merged
        into. Of a packed tower this is always known, of others with `attach(..., trace=True)`.

        Raises:
            AttachError: there was no pass yet, it is not known, or a token is none of the image's.
        """
        if self._last.state is None:
            raise AttachError(STOPPED if self._last.began else NOT_RUN)
        self._passes.check_outside()
        return left_of(self._last.state)

    @property
    def prompts(self) -> tuple[int, ...]:
        """Visual tokens of each prompt that were left in the language model, in the last pass here.

        Raises:
            AttachError: there was none yet, or the recipe has no step in the language model.
        """
        if self._last.prompts is None:
            raise AttachError(
                "no prompt with images was reduced in the language model in this thread: the recipe has no "
                "step there (stage 'llm'), or the model has not run"
            )
        return self._last.prompts

    def note_prompts(self, counts: tuple[int, ...]) -> None:
        """For adapters: say how many visual tokens of each prompt are left in the language model."""
        self._last.prompts = counts

    def shorten(self, inputs: Any) -> Any:
        """What the processor of a multimodal model returned, with prompts that are short from the start.

        It is optional: the model shortens the prompts that it is given, and gives them back whole. Use it
        where lengths matter before the model runs: batching, serving, a count of tokens.

        Args:
            inputs: a mapping of arguments, as `processor(...)` returns it.

        Returns:
            A mapping of the same kind; `input_ids`, masks, labels and token types are shorter.

        Raises:
            AttachError: the model reads no prompts.
            BadArgumentError: the placeholders are not those that the model's processor writes.
        """
        short = self.adapter.shorten(self, inputs)
        return short if type(inputs) is dict else type(inputs)(short)

    def summary(self, tokens: int | None = None) -> str:
        """What is attached to what, and what it does: lines of text.

        Args:
            tokens: patch tokens of an image; None: the model's own size.
        """
        return summary(self, self._last, tokens)

    def detach(self) -> None:
        """Take the recipe off; the model is the bare one again, bit for bit. Idempotent."""
        self._installer.uninstall(self)

    def install(self, *, prove: bool = True) -> None:
        """Prove and install everything, or raise and leave the model as it was; see `Method.attach`."""
        self._installer.install(self, self._passes, prove=prove)

    def prove(self) -> None:
        """Make up for the proof that `attach(..., prove=False)` has left out.

        The hooks are taken off and put on again, since the bare blocks are what is compared with.

        Raises:
            AttachError: the model failed the proof, and is bare now; or nothing is attached.
        """
        if not self.installed:
            raise AttachError("this recipe is detached: attach it again, which proves it")
        self._installer.uninstall(self)
        self.install()

    @property
    def installed(self) -> bool:
        """Whether it is on the model."""
        return bool(self._installer.undo)

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        """The copy that a copy of the whole model is attached with.

        Raises:
            AttachError: only a part of the model is copied: its hooks would reduce for good.
        """
        inside = {id(module) for module in self.model.modules()}
        first = next((key for key in memo if key in inside), id(self.model))
        if first != id(self.model):
            raise AttachError(
                f"a part of {type(self.model).__name__} is copied while a recipe is attached; the copy "
                "would always reduce: copy the whole model, or attach later (PEFT's modules_to_save copies)"
            )
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(deepcopy(self.__dict__, memo))
        return twin

    def __repr__(self) -> str:
        state = "attached to" if self.installed else "detached from"
        return f"<{self.recipe!r} {state} {type(self.model).__name__}>"

    @property
    def _reaches(self) -> bool:
        """Whether the recipe has a step at the tower or its projector."""
        return bool(len(self._passes.sites())) or self._passes.steps.projected is not None

    def _passed(self) -> PassReport:
        several = self.passes
        if len(several) != 1:
            raise AttachError(
                f"the last forward pass had images of {len(several)} grids ("
                f"{', '.join(str(one.tokens) for one in several)} tokens): attached.passes has one "
                "report for each"
            )
        return several[0]


NOT_RUN = "the model has not run in this thread since the recipe was attached"

STOPPED = (
    "the last pass in this thread did not reach the last block that the tower had when the recipe was "
    "attached: it stopped early (an exception, forward_intermediates(stop_early=True)), or blocks were cut "
    "(prune_intermediate_layers): then detach, and attach again"
)


def attached_to(model: nn.Module) -> Attached | None:
    """Return what is attached to a model, or None."""
    return getattr(model, MARK, None)
