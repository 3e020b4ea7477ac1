"""The adapter: where the blocks of a model are, what its sites show, and what must follow fewer tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tokenzoo._core.old_members import OldName, adopt_old_names
from tokenzoo._core.old_names_of_adapters import OLD_NAMES as OLD_NAMES
from tokenzoo.attachment import Attachment as Attachment
from tokenzoo.attachment import EncodedVisual as EncodedVisual
from tokenzoo.attachment import TokenPlan as TokenPlan
from tokenzoo.attachment import VisualTokens as VisualTokens
from tokenzoo.block_path import BlockPath as BlockPath
from tokenzoo.block_path import computed as computed
from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.evidence import Layer
from tokenzoo.layouts import BatchedLayout, TokenLayout
from tokenzoo.layouts.base import Windows
from tokenzoo.parts import Part
from tokenzoo.prompt_methods import PromptMethods


class Adapter(Part, PromptMethods, ABC):
    """One model: where its blocks are, what its sites show, and what must follow the shorter tokens."""

    stages: frozenset[str] = frozenset()
    """Names of the stages where this model can be reduced ("block", "image", ...)."""

    no_other_stage: str = ""
    """Why it has no other stage, for the error that names those that it has: ": its tower is ..."."""

    provides: frozenset[str] = frozenset()
    """Evidence that its sites show."""

    prefix: int = 0
    """Number of prefix tokens (CLS, registers)."""

    width: int = 0
    """Channels c of a token, or of a patch where several patches make a token."""

    mlp_dim: int = 0
    """Width of the MLP's hidden layer (for an MLP of another form: that of a plain one of equal cost)."""

    layout_class: type[TokenLayout] = BatchedLayout
    """How its tokens lie in the tensors between its blocks: `BatchedLayout`, or `PackedLayout` where the
    images of a pass are one sequence of patches."""

    group: int = 1
    """How many patches make one token (p): what the language model reads as one. With `BatchedLayout` they
    are g x g patches of a grid; with `PackedLayout` they follow each other. `keep` counts tokens."""

    reach: tuple[int, ...] = ()
    """Of each block, how many tokens of a full image one token attends with; 0: all; (): all, always."""

    uses_attention_interface: bool = False
    """Whether its attention modules ask for their tap themselves (`tokenzoo.hooks.tap.TAP_ATTR`), because a
    function mode could not see every call of theirs; otherwise the mode is entered around them."""

    projector: str = ""
    """Name of the module that maps the tower's tokens to the language model's, where there is one."""

    projected_prefix: int = 0
    """Number of prefix tokens that reach the projector."""

    reads_prompts: bool = False
    """Whether it is a whole model, which reads prompts with images (`visuals`, `shorten`)."""

    dynamic_size: bool = False
    """Whether one model takes images of several sizes. Then `tokens()` is about the configured size alone:
    a budget that cannot be reached from there is a warning at attach time, and otherwise an error."""

    all_tokens: str = ""
    """Why what reads the tokens after the blocks must be given all of them ("its forward_head is not
    timm's, and ..."), so that only `restore=True` is right; "": it need not be."""

    positional: bool = False
    """Whether positions act inside its attention (rotary, relative): then every pass carries `places`,
    and what the attention adds to its logits for all tokens is gathered for those that are left."""

    records: bool = False
    """Whether it reads plans (`SizeBucket.plan`) after the last block: they are put together for it."""

    follow = OldName("adapt_block_inputs")
    followers = OldName("passthrough_modules")
    trial = OldName("probe_inputs")
    shows = OldName("provides_at")
    hidden = OldName("mlp_dim")
    watched = OldName("uses_attention_interface")
    reaching = OldName("projected_prefix")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adopt_old_names(cls, OLD_NAMES)

    @abstractmethod
    def blocks(self) -> tuple[BlockPath, ...]:
        """The blocks of the tower, in order; the reader of the features comes after the last."""

    def passthrough_modules(self) -> tuple[str, ...]:
        """Names of the modules after the blocks that return all tokens (the final norm)."""
        return ()

    def adapt_block_inputs(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Other inputs of a block, made to fit the tokens that are left.

        Args:
            extra: its further arguments.
            options: its keyword arguments.
            places: int64, which of the first tokens are left (`TokenLayout.places`). In a batch `[b, n]`:
                which of the first tokens and patches, prefix included, each row stands for. In a packed
                sequence `[t]`, ascending: tokens of the sequence. None: all are there, or this adapter is
                not `positional`.

        Raises:
            AttachError: a mask, or something else that is made for all tokens and is not understood.
        """
        del places
        if any(isinstance(value, Tensor) or value is True for value in (*extra, *options.values())):
            raise AttachError(
                "a block was called with an attention mask, which covers all tokens, but fewer are "
                "left: call the model without a mask, or detach first"
            )
        return extra, options

    def probe_inputs(self, index: int) -> tuple[int, dict[str, Any]]:
        """For the proof at attach time: tokens to try block `index` on, and its keyword arguments.

        Few are enough, unless the block takes only as many as the image has. Of a packed sequence the first
        half is one segment, the second half another.
        """
        del index
        return 8, {}

    def provides_at(self, stage: str) -> frozenset[str]:
        """The evidence at the sites of a stage."""
        del stage
        return self.provides

    def layer(self, name: Layer) -> int | None:
        """Index, among `blocks()`, of the block that a recipe means by `cls_attention@name`, or None.

        A step at the features or after the projector can use the evidence of other blocks.
        """
        depth = len(self.blocks())
        return name % depth if isinstance(name, int) and -depth <= name < depth else None

    def tokens(self) -> int | None:
        """Patch tokens of the model's own image size, if it has one; groups, where patches are grouped."""
        return None

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """(rows, columns) of that many patch tokens of the current pass, if they are a grid.

        Of groups, where patches are grouped.
        """
        del tokens
        return None

    def layout(self, x: Tensor) -> TokenLayout:
        """How the tokens of this pass lie in the tensor that enters the first block.

        Args:
            x: that tensor: `[b, prefix + n * p, c]`, or a packed sequence `[r, c]`.

        Raises:
            AttachError: the tensor does not hold the tokens of the images of this pass.
        """
        patches = x.shape[1] - self.prefix
        tokens = patches // self.group
        grid = self.grid(tokens)
        if self.group > 1 and (grid is None or patches % self.group):
            raise AttachError(
                f"{patches} patches enter the first block and do not form a whole grid of groups of "
                f"{self.group} patches: give the model images whose sides are whole numbers of groups"
            )
        return BatchedLayout.of(
            tokens, prefix=self.prefix, group=self.group, grid=grid, positional=self.positional
        )

    def windows(self, index: int, options: dict[str, Any]) -> Windows | None:
        """The windows in which block `index` of a packed tower attends.

        Args:
            index: of the block.
            options: the keyword arguments of its attention, for the tokens that are left.

        Returns:
            Their boundaries `[s + 1]` in patches, and the most patches of one; None: each image attends to
            all of itself.
        """
        del index, options
        return None

    def entering(self, tokens: int) -> int:
        """How many of the rows that enter the first block are patches of the image.

        Args:
            tokens: rows that enter, without the prefix tokens that this adapter knows.

        Returns:
            What the model's patch embedding made in this pass; `tokens` where the adapter cannot tell.
            Anything else than `tokens` is an error of the pass: prompts, or other tokens of a subclass.
        """
        return tokens

    def with_prefix(self, prefix: int) -> Adapter:
        """The same adapter for a model with more prefix tokens than its class has (visual prompts).

        Args:
            prefix: how many tokens come before the patches, CLS and registers counted.

        Raises:
            BadArgumentError: fewer than the model has by itself, or this adapter takes none.
        """
        raise BadArgumentError(
            f"prefix={prefix!r}: {type(self).__name__} sets the number of prefix tokens itself "
            f"({self.prefix}); leave prefix= out"
        )

    def install(self, proportional: bool) -> Callable[[], None] | None:
        """Make whatever pools the tokens count their mass; returns the function that undoes it.

        A mean is always taken by mass; an attention that pools gets its bias where `proportional`.
        """
        del proportional
        return None

    def shrink(self, wanted: Callable[[int], int]) -> Callable[[], None]:
        """Make the model shrink its images: `wanted` maps an image's patch tokens to those to keep.

        Returns:
            The function that undoes it.

        Raises:
            BadArgumentError: the model has no stage "image".
        """
        del wanted
        raise BadArgumentError(f"{type(self).__name__} cannot shrink the images of its model")
