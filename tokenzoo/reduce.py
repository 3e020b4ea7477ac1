"""A reduction: a schedule's count, a matcher's token map, a merger's arithmetic.

`reduce_site` is one reduction, on a model or on bare tensors; `reduce` is for bare tensors, and checks its
arguments first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from tokenzoo._core.tensors import NUMBERS, check_dense, check_dtype
from tokenzoo._core.validation import is_kind
from tokenzoo.errors import BadArgumentError, BudgetError, MissingEvidenceError
from tokenzoo.evidence import Evidence, Layer, layer_of
from tokenzoo.evidence_inputs import EvidenceInputs, check_layers, gather_evidence
from tokenzoo.kernels.choice import transformed
from tokenzoo.recipe import Recipe, Step
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens, shape_of


def reduce_site(
    step: Step,
    tokens: Tokens,
    evidence: Evidence,
    keep: int,
    *,
    check: bool = False,
    ordered: bool = False,
) -> tuple[Tokens, TokenMap]:
    """Reduce the tokens of one site to `keep` patch tokens; the prefix is never touched.

    Args:
        step: whose matcher and merger are used.
        tokens: prefix and n patch tokens, `[b, prefix + n, c]`.
        evidence: about the n patch tokens.
        keep: patch tokens that stay.
        check: whether to check the token map before it is used (`TokenMap.check`).
        ordered: whether the kept tokens are put in the order of their positions.

    Returns:
        The reduced tokens `[b, prefix + keep, c]` and the token map of the whole sequence.

    Raises:
        BadArgumentError: the matcher returns something else than a token map from n tokens to `keep`, or,
            where it is checked, an inconsistent one.
    """
    reduced, plan = reduce_patches(step, tokens, evidence, keep, check=check, ordered=ordered)
    return reduced, plan.after_prefix(tokens.prefix)


def reduce_patches(
    step: Step,
    tokens: Tokens,
    evidence: Evidence,
    keep: int,
    *,
    check: bool = False,
    ordered: bool = False,
) -> tuple[Tokens, TokenMap]:
    """Do the same as `reduce_site`; return the token map of the patch tokens alone."""
    if _whole(step, evidence, keep):
        b, n = evidence.x.shape[:2]
        return tokens, TokenMap.identity(b, n, device=evidence.x.device)
    plan = _matched(step, evidence, keep)
    if check:
        plan.check()
    if ordered:
        plan = plan.by_position()
    return step.merger.merge(tokens.patches, plan, evidence).with_prefix_of(tokens), plan


def _whole(step: Step, evidence: Evidence, keep: int) -> bool:
    """Whether nothing is to be removed: then no part runs, and all tokens stay as they are."""
    n = evidence.x.shape[1]
    return keep == n and (n == 0 or not step.matcher.ragged)


def _matched(step: Step, evidence: Evidence, keep: int) -> TokenMap:
    """Run the matcher, without gradients unless a part learns, and check what it returns."""
    if step.learns or not torch.is_grad_enabled():
        plan = step.matcher.match(evidence, keep)
    else:
        with torch.no_grad():
            plan = step.matcher.match(evidence, keep)
    n = evidence.x.shape[1]
    is_map = is_kind(plan, TokenMap)
    if not is_map or (plan.tokens, plan.kept) != (n, keep):
        found = f"one from {plan.tokens} to {plan.kept}" if is_map else repr(plan)
        raise BadArgumentError(
            f"{step.matcher!r} must return a TokenMap from {n} tokens to {keep}, and returns {found}"
        )
    return plan


@dataclass(frozen=True)
class Reduced:
    """The result of `reduce`.

    Attributes:
        x: the remaining tokens `[b, m, c]`, prefix first.
        mass: how many input tokens each stands for `[b, m]`.
        plan: the token map; its indices count the whole input. Where the count depends on the data,
            `plan.lengths [b]` of the m tokens are real; the others are padding with mass 0.
    """

    x: Tensor
    mass: Tensor
    plan: TokenMap

    def unmerge(self, y: Tensor, fill: float = 0.0) -> Tensor:
        """Copy `y [b, m, ...]` back to the input tokens: `[b, n, ...]`; dropped tokens receive `fill`."""
        check_dense("y", y)
        if is_kind(y, Tensor):
            check_dtype("y", y, NUMBERS, "it has numbers of the usual dtypes")
            if y.device != self.x.device:
                raise BadArgumentError(f"y is on {y.device}; the tokens are on {self.x.device}")
        return self.plan.unmerge(y, fill)


def reduce(
    recipe: Recipe,
    x: Tensor,
    *,
    protected: Tensor | None = None,
    mass: Tensor | None = None,
    prefix: int = 0,
    at: Mapping[Layer, Mapping[str, Any]] | None = None,
    **inputs: Unpack[EvidenceInputs],
) -> Reduced:
    """Apply a recipe of one step to tensors, without a model; see `Method.reduce` for the arguments."""
    if len(recipe.steps) != 1:
        raise BadArgumentError(
            f"this recipe has {len(recipe.steps)} steps, but tensors are one site; use one step: "
            "tokenzoo.build(Recipe(recipe.steps[0], keep=...)).reduce(x, ...)"
        )
    if recipe.keep is None:
        recipe.wanted(1)  # raises its own error about flops=
        raise BadArgumentError("keep=None; on tensors the schedule is not used: pass keep=")
    step = recipe.steps[0]
    tokens = Tokens.of(x, mass=mass, prefix=prefix)
    check_layers({} if at is None else at)
    if protected is not None:
        check_protected(protected, tokens)
        if x.shape[0] == 0:
            protected = None  # there is no image whose tokens it could protect
        elif x.shape[0] > 1:
            return _each_alone(recipe, tokens, protected, {} if at is None else at, inputs)
    evidence = gather_evidence(tokens, {} if at is None else at, inputs)
    if protected is None:
        check_needs(step, evidence)
        reduced, plan = reduce_site(step, tokens, evidence, _reachable(recipe, tokens, 0))
        return Reduced(reduced.x, reduced.mass, plan)
    held = protected[:, prefix:].nonzero()[None, :, 1]  # [1, held]
    free = (~protected[:, prefix:]).nonzero()[None, :, 1]  # [1, free]
    # Parts do not see protected tokens, so no part can remove one.
    others = evidence.take(free) if held.shape[1] else evidence
    check_needs(step, others, subset=held.shape[1] > 0)
    keep = _reachable(recipe, tokens, held.shape[1])
    if whole := _whole(step, others, keep):
        plan = TokenMap.identity(1, keep, device=x.device)
    else:
        plan = _matched(step, others, keep)
    plan = plan.with_held(free, held)
    if whole:
        return Reduced(tokens.x, tokens.mass, plan.after_prefix(prefix))
    reduced = step.merger.merge(tokens.patches, plan, evidence).with_prefix_of(tokens)
    return Reduced(reduced.x, reduced.mass, plan.after_prefix(prefix))


WITHOUT = " without protected=: a subset of the tokens has no grid, frames or softmax"


def check_needs(step: Step, evidence: Evidence, *, subset: bool = False) -> None:
    """Raise if the parts of a step need what this evidence does not have.

    `subset` means that the evidence is about the unprotected tokens only.

    Raises:
        MissingEvidenceError: names what is missing and what is there.
    """
    missing = sorted(step.needs - evidence.provides)
    if missing:
        arguments = ", ".join(
            f"at={{{layer_of(name)!r}: {{{name.partition('@')[0]!r}: ...}}}}"
            if "@" in name
            else ("queries=..., keys=..." if name == "attention" else f"{name}=...")
            for name in missing
        )
        raise MissingEvidenceError(
            f"{step.matcher!r} needs {', '.join(missing)}, and the tensors passed provide "
            f"{', '.join(sorted(evidence.provides))}: pass {arguments}{WITHOUT if subset else ''}"
        )


def check_protected(protected: Tensor, tokens: Tokens) -> None:
    """Raise unless there is one bool per token.

    Raises:
        BadArgumentError: another shape or dtype.
    """
    check_dense("protected", protected)
    shape = tuple(tokens.x.shape[:2])
    dtype = getattr(protected, "dtype", None)
    if shape_of(protected) != shape or dtype != torch.bool:
        raise BadArgumentError(
            f"protected has shape {shape_of(protected)} and dtype {dtype}; it must be one bool "
            f"for each token: shape {shape}, dtype torch.bool"
        )
    if transformed():
        raise BadArgumentError(
            "protected= inside a transform of torch.func (vmap, grad): the number of tokens depends "
            "on its values, which a transform hides; call reduce outside of it, or without protected="
        )
    if protected.device != tokens.x.device or protected.device.type == "meta":
        raise BadArgumentError(
            f"protected is on {protected.device}; its values are read, so it must be on the device of x, "
            f"{tokens.x.device}, and not on meta"
        )


def _reachable(recipe: Recipe, tokens: Tokens, held: int) -> int:
    """Return the number of patch tokens to keep in addition to `held` ones.

    Raises:
        BudgetError: one step cannot reduce that far.
    """
    step, total = recipe.steps[0], tokens.x.shape[1] - tokens.prefix
    keep = recipe.wanted(total)
    fewest = held + (step.matcher.min_tokens(total - held, tokens.prefix) if total > held else 0)
    if keep < fewest:
        protected = f", {held} of them protected" if held else ""
        raise BudgetError(
            f"keep={recipe.keep!r} is {keep} of {total} patch tokens{protected}; one step of "
            f"{type(step.matcher).__name__} goes down to {fewest}: keep at least that many, or reduce "
            "the result again"
        )
    return keep - held


def _each_alone(
    recipe: Recipe,
    tokens: Tokens,
    protected: Tensor,
    at: Mapping[Layer, Mapping[str, Any]],
    inputs: EvidenceInputs,
) -> Reduced:
    """Reduce one image at a time, since the number of protected tokens can differ between images."""

    def image(values: Mapping[str, Any], i: int) -> dict[str, Any]:
        return {k: v[i : i + 1] if isinstance(v, Tensor) else v for k, v in values.items()}

    results = [
        reduce(
            recipe,
            tokens.x[i : i + 1],
            mass=tokens.mass[i : i + 1],
            prefix=tokens.prefix,
            protected=protected[i : i + 1],
            at={layer: image(values, i) for layer, values in at.items()},
            **cast("EvidenceInputs", image(inputs, i)),
        )
        for i in range(tokens.x.shape[0])
    ]
    plans = [r.plan for r in results]
    lengths = [plan.lengths for plan in plans if plan.lengths is not None]
    plan = TokenMap(
        torch.cat([plan.keep for plan in plans]),
        torch.cat([plan.dst for plan in plans]),
        torch.cat(lengths) if lengths else None,
        complete=all(plan.complete for plan in plans),
    )
    return Reduced(torch.cat([r.x for r in results]), torch.cat([r.mass for r in results]), plan)
