"""The data of one site: tokens, all evidence about them, and a budget.

The numbers come from a generator with a seed, so `Example.drawn(...)` with the arguments that a failure
shows is the same example again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tokenzoo.evidence import TEXT, Evidence, Layer
from tokenzoo.evidence_inputs import gather_evidence
from tokenzoo.recipe import Recipe
from tokenzoo.reduce import Reduced, reduce
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens

Kind = Literal["distinct", "repeated", "equal"]
KINDS: tuple[Kind, ...] = ("distinct", "repeated", "equal")

_ATTENTION = (
    *("received_attention", "cls_attention", "last_attention"),
    *("text_attention", "text_rotation"),
)
PER_TOKEN = ("x", "mass", "keys", "queries", "values", *_ATTENTION, "protected")
ABOUT_TEXT = ("text", "text_keys")
_REAL = ("x", "keys", "queries", "values", *_ATTENTION, *ABOUT_TEXT)
# Of the tokens; 1 for the others.
_AXIS = {
    "text_attention": 3,
    **dict.fromkeys(("keys", "queries", "values", "cls_attention", "last_attention"), 2),
    "text_rotation": 2,
}


@dataclass(frozen=True, repr=False)
class Example:
    """The tokens of one site, all evidence about them, and a budget.

    As in `Method.reduce`, tensors are about the whole input of N tokens, prefix tokens first.

    Attributes:
        x: `[b, N, c]`.
        mass: `[b, N]`, ones for the prefix.
        keys: `[b, h, N, d]`.
        queries: `[b, h, N, d]`.
        values: `[b, h, N, d]`.
        received_attention: `[b, N]`.
        cls_attention: `[b, h, N]`.
        last_attention: `[b, h, N]`.
        text_attention: `[b, h, t, N]`.
        text_rotation: `[b, t, N]`.
        text: `[b, t, c]`; the hidden states of the text tokens, too, for what asks for "x@text".
        text_keys: `[b, h, t, d]`, for "keys@text".
        protected: `[b, N]` bool, what a caller might protect; only used where a property says so.
        grid: of the patch tokens; its rows serve as frames, too.
        prefix: number of prefix tokens.
        keep: patch tokens to keep, a count or a fraction.
        story: the code that makes it.
    """

    x: Tensor
    mass: Tensor
    keys: Tensor
    queries: Tensor
    values: Tensor
    received_attention: Tensor
    cls_attention: Tensor
    last_attention: Tensor
    text_attention: Tensor
    text_rotation: Tensor
    text: Tensor
    text_keys: Tensor
    protected: Tensor
    grid: tuple[int, int]
    prefix: int
    keep: int | float
    story: str

    @classmethod
    def drawn(
        cls,
        *,
        images: int = 2,
        grid: tuple[int, int] = (3, 4),
        prefix: int = 1,
        heads: int = 2,
        width: int = 3,
        channels: int = 5,
        dtype: torch.dtype = torch.float64,
        kind: Kind = "distinct",
        keep: int | float = 0.5,
        seed: int = 0,
    ) -> Example:
        """Make an example; `kind` says whether the tokens of an image are distinct, few, or all equal."""
        arguments = dict(locals())
        del arguments["cls"]
        generator = torch.Generator().manual_seed(seed)
        b, n = images, prefix + grid[0] * grid[1]
        models = {"distinct": n, "repeated": min(3, n), "equal": 1}[kind]
        model = torch.randint(models, (b, n), generator=generator)
        if kind == "distinct":
            model = torch.arange(n).expand(b, n)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        def per_token(*heads_and_width: int, axis: int = 1) -> Tensor:
            values = normal(b, n, *heads_and_width)
            index = model.view(b, n, *[1] * len(heads_and_width)).expand_as(values)
            return values.gather(1, index).movedim(1, axis).contiguous()

        mass = torch.randint(1, 5, (b, n), generator=generator).float()
        mass[:, :prefix] = 1
        protected = torch.rand(b, n, generator=generator) < 0.3
        return cls(
            x=per_token(channels),
            mass=mass,
            keys=per_token(heads, width, axis=2),
            queries=per_token(heads, width, axis=2),
            received_attention=per_token().softmax(-1),
            cls_attention=per_token(heads, axis=2).softmax(-1),
            text=normal(b, 2, channels),
            text_keys=normal(b, heads, 2, width),
            last_attention=per_token(heads, axis=2).softmax(-1),
            values=per_token(heads, width, axis=2),
            # How much of it goes to the image differs from head to head.
            text_attention=per_token(heads, 2, axis=3).sigmoid() / n,
            text_rotation=per_token(2, axis=2),
            protected=protected,
            grid=grid,
            prefix=prefix,
            keep=keep,
            story=f"Example.drawn({', '.join(f'{k}={v!r}' for k, v in arguments.items())})",
        )

    def __repr__(self) -> str:
        return self.story

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the story for Hypothesis, not the numbers."""
        del cycle
        printer.text(self.story)

    @property
    def images(self) -> int:
        """Images in the batch (b)."""
        return self.x.shape[0]

    @property
    def patches(self) -> int:
        """Patch tokens (n = N - prefix)."""
        return self.x.shape[1] - self.prefix

    @property
    def tokens(self) -> Tokens:
        """The tokens, prefix first."""
        return Tokens.of(self.x, mass=self.mass, prefix=self.prefix)

    def shown(self) -> dict[str, Any]:
        """All evidence, as `reduce` takes it."""
        names = ("keys", "queries", "values", *_ATTENTION, "text", "grid")
        return {
            **{name: getattr(self, name) for name in names},
            "frames": self.grid[0],
            "depth": 0.5,
        }

    def evidence(self, needs: frozenset[str] = frozenset()) -> Evidence:
        """The evidence about the patch tokens, with the layers that `needs` names."""
        return gather_evidence(self.tokens, self.layers(needs), self.shown())

    def reduce(self, recipe: Recipe, *, protected: Tensor | None = None) -> Reduced:
        """Apply a recipe of one step."""
        return reduce(
            recipe,
            self.x,
            mass=self.mass,
            prefix=self.prefix,
            protected=protected,
            at=self.layers(recipe.needs),
            **self.shown(),
        )

    def layers(self, needs: frozenset[str]) -> dict[Layer, dict[str, Any]]:
        """Return the argument `at=`: every layer in `needs` has the evidence of this one.

        All but "text", which is about the tokens of the text.
        """
        text = {"x": self.text, "keys": self.text_keys}
        shown = {"x": self.x, **self.shown()}
        return {layer: text if layer == TEXT else shown for layer in layers_in(needs)}

    def wish(self, keep: int | float) -> Example:
        """Return the example with another `keep`."""
        return replace(self, keep=keep, story=f"{self.story}.wish({keep!r})")

    def image(self, index: int) -> Example:
        """Return an example of one image of the batch."""
        names = (*PER_TOKEN, *ABOUT_TEXT)
        alone = {name: getattr(self, name)[index : index + 1] for name in names}
        return replace(self, **alone, story=f"{self.story}.image({index})")

    def double(self) -> Example:
        """Return the example in float64."""
        return self._changed(lambda values: values.double(), "double()")

    def to(self, dtype: torch.dtype) -> Example:
        """Return the example in another dtype; masses stay float32."""
        return self._changed(lambda values: values.to(dtype), f"to({dtype})")

    def backwards(self) -> Example:
        """Reverse the order of tokens in all evidence; a part that reads features decides differently."""
        turned = {
            name: getattr(self, name).flip(_AXIS.get(name, 1))
            for name in _REAL
            if name not in ABOUT_TEXT
        }
        return replace(self, **turned, story=f"{self.story}.backwards()")

    def scaled(self, factor: float) -> Example:
        """All features times a factor; 0 makes them all zero."""
        return self._changed(lambda values: values * factor, f"scaled({factor!r})")

    def nudged(self, by: float = 1e-9, seed: int = 0) -> Example:
        """Every number changed by a relative `by` or so: where that changes a decision, it was a tie."""
        generator = torch.Generator().manual_seed(seed)

        def nudge(values: Tensor) -> Tensor:
            noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
            return values * (1 + by * noise.to(values.dtype))

        return self._changed(nudge, f"nudged({by!r}, {seed})")

    def _changed(self, change: Callable[[Tensor], Tensor], story: str) -> Example:
        changed = {name: change(getattr(self, name)) for name in _REAL}
        return replace(self, **changed, story=f"{self.story}.{story}")

    def after(self, plan: TokenMap) -> Example:
        """Return the example of the next site: the evidence of the tokens that `plan` keeps."""
        index = plan.keep.clamp_min(0)
        left = plan.kept - self.prefix
        taken = {name: _taken(getattr(self, name), index, name) for name in PER_TOKEN}
        return replace(self, **taken, grid=(1, left), story=f"{self.story}.after(...)")

    def alone(self) -> Example:
        """Return the first patch token of each image alone, without prefix."""
        first = torch.full((self.images, 1), self.prefix)
        taken = {name: _taken(getattr(self, name), first, name) for name in PER_TOKEN}
        return replace(self, **taken, grid=(1, 1), prefix=0, keep=1, story=f"{self.story}.alone()")

    def poisoned(self, patches: list[int], value: float = float("nan")) -> Example:
        """Put NaN or infinity into all evidence of some patch tokens.

        Attention is NaN there whatever the value: a softmax never yields an infinity.
        """
        index = torch.tensor(patches, dtype=torch.long) + self.prefix
        changed: dict[str, Tensor] = {}
        for name in ("x", "keys", "queries", "values"):
            changed[name] = getattr(self, name).index_fill(_AXIS.get(name, 1), index, value)
        for name in _ATTENTION:
            changed[name] = getattr(self, name).index_fill(_AXIS.get(name, 1), index, float("nan"))
        story = f"{self.story}.poisoned({patches}, float({str(value)!r}))"
        return replace(self, **changed, story=story)


def layers_in(needs: frozenset[str]) -> set[Layer]:
    """The layers that needs such as "cls_attention@-2" or "x@clip" name."""
    layers = {need.partition("@")[2] for need in needs} - {""}
    return {int(name) if name.lstrip("+-").isdigit() else name for name in layers}


def _taken(values: Tensor, index: Tensor, name: str) -> Tensor:
    axis = _AXIS.get(name, 1)
    shape = [1] * values.ndim
    shape[0], shape[axis] = index.shape
    size = list(values.shape)
    size[axis] = index.shape[1]
    return values.gather(axis, index.view(shape).expand(size))
