"""Every tower of `SPECS`, whatever its library: against itself with masks, and by its own attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tokenzoo
from tests.adapters.hf.models import PREFIX as HF_PREFIX
from tests.adapters.models import gap, largest
from tests.conformance.specs import SPECS, TIMM, fresh, method, run
from tokenzoo import Recipe, Stage, Step
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.parts import Scorer
from tokenzoo.schedules import Skip
from tokenzoo.testing import PROPERTIES, Models, Run

TOWERS = [name for name, spec in SPECS.items() if spec.tokens]
MULTIHEAD = [name for name in TOWERS if name.startswith(("torchvision", "open_clip"))]
HF = [name for name in TOWERS if not name.startswith(("timm", *MULTIHEAD))]
PREFIX = {
    **{f"timm {case.family}": case.prefix for case in TIMM},
    "siglip without a head": 0,
    **HF_PREFIX,
}
"""Of all others it is 1: CLS."""
BIASED = ("BEiT", "relative positions")
"""They add something to the logits."""


def features(name: str, model: Any) -> Tensor:
    """What leaves the tower, before its pooling."""
    given = SPECS[name].give(model)
    with torch.no_grad():
        if name in HF:
            return model(**given).last_hidden_state
        return model.forward_features(**given)


class Attention(TorchFunctionMode):
    """Sees all fused attentions of a pass, and may change the masks they are given."""

    def __init__(self, change: Callable[[int, Tensor, Tensor | None], Any] | None = None) -> None:
        super().__init__()
        self.change = change
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v, *rest = args
        mask = rest[0] if rest else kwargs.pop("attn_mask", None)
        if self.change is not None:
            mask = self.change(len(self.calls), k, mask)
        self.calls.append((q, k, mask))
        return func(q, k, v, mask, **kwargs)


@pytest.mark.parametrize("name", TOWERS)
def test_the_adapter_describes_the_tower(name: str) -> None:
    model, spec = fresh(name), SPECS[name]
    adapter = find_adapter(model)
    assert (adapter.prefix, adapter.tokens()) == (PREFIX.get(name, 1), spec.tokens)
    assert (adapter.width, len(adapter.blocks())) == (48, 5)
    known = None if adapter.dynamic_size or name in HF else (7, 7)  # others have the grid of a pass
    assert [adapter.grid(49), adapter.grid(48)] == [known, None]
    keys = [key for key, _ in model.named_parameters() if not key.startswith("head.")]
    with_cls = any("cls_" in key or "class_" in key for key in keys)
    assert ("cls_attention" in adapter.provides) == with_cls
    block = model.get_submodule(adapter.blocks()[0].name)
    mlp = block.ffn if name == "aimv2" else block.mlp
    shapes = [tuple(weight.shape) for weight in mlp.parameters() if weight.ndim == 2]
    if shapes == [(shapes[0][0], 48), (48, shapes[0][0])]:  # no gate
        assert adapter.mlp_dim == shapes[0][0]


@pytest.mark.parametrize("name", [name for name in TOWERS if name not in MULTIHEAD])
def test_dropped_tokens_are_as_good_as_masked(name: str) -> None:
    """What is left sees what it would see if the others were masked: positions are right."""
    model = fresh(name)
    with tokenzoo.build(largest(2, 20)).attach(model, trace=True) as attached:
        found = features(name, model)
        keep = attached.record.keep  # [b, prefix + 20]
    rows = keep[..., None].expand(-1, -1, 48)

    def mask_dropped(call: int, key: Tensor, mask: Tensor | None) -> Tensor | None:
        if call <= 2:
            return mask
        gone = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool).scatter(1, keep, False)
        bias = torch.zeros(key.shape[0], 1, 1, key.shape[2]).masked_fill(gone[:, None, None], -1e9)
        return bias if mask is None else mask + bias

    with Attention(mask_dropped):
        expected = features(name, model).gather(1, rows)
    assert gap(found, expected) <= 1e-5
    assert gap(features(name, model).gather(1, rows), expected) > 1e-3


class Seen(Scorer):
    """Remembers the evidence that it is shown."""

    needs = frozenset({"received_attention", "attention"})

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def score(self, evidence: Evidence) -> Tensor:
        n = evidence.x.shape[1]
        some = torch.tensor([[0, 5, n - 1]]).expand(evidence.x.shape[0], -1)
        self.found.append(
            {
                "received": evidence.received_attention,
                "patches": evidence.attention.received("patches"),
                "rows": evidence.rows(some),
            }
        )
        return evidence.received_attention


@pytest.mark.parametrize(
    "name",
    [
        *("timm ViT", "timm ViT, rotary by head", "timm BEiT", "timm BEiT, shared bias"),
        *("timm shared relative positions", "dinov3_vit"),
    ],
)
def test_the_attention_that_is_shown_is_the_models_own(name: str) -> None:
    """Rotary angles and biases are in it; at the second site also those of fewer tokens."""
    model, scorer = fresh(name, 6), Seen()
    step = Step(Stage.BLOCK, Skip(), SelectAssign(TopK(scorer), Drop()), Identity())
    tokenzoo.build(Recipe(step, keep=20)).attach(model)
    scorer.found.clear()
    with Attention() as seen:
        features(name, model)
    sites = seen.calls[1::2]
    assert len(sites) == len(scorer.found) == 3
    p = PREFIX.get(name, 1)
    for (q, k, mask), found in zip(sites, scorer.found, strict=True):
        logits = q @ k.mT * q.shape[-1] ** -0.5
        weights = (logits if mask is None else logits + mask).softmax(-1)  # [b, h, n, n]
        torch.testing.assert_close(found["received"], weights.mean((1, 2))[:, p:])
        torch.testing.assert_close(found["patches"], weights[:, :, p:].mean((1, 2))[:, p:])
        rows = weights[:, :, [p, p + 5, weights.shape[-1] - 1], p:]
        torch.testing.assert_close(found["rows"], rows)


@pytest.mark.parametrize("recipe", ["evoprune", "tome", "random"])
@pytest.mark.parametrize("name", [*MULTIHEAD, "clip", "siglip", "dinov3_vit"])
def test_restored_features_leave_the_pooled_output_alone(name: str, recipe: str) -> None:
    model = fresh(name)
    given, last = SPECS[name].give(model), find_adapter(model).blocks()[-1].name
    lengths: list[int] = []
    pooled: list[Tensor] = []
    for restore in (False, True):
        with method(name, recipe).attach(model, restore=restore) as attached, torch.no_grad():
            handle = model.get_submodule(last).register_forward_hook(
                lambda module, args, out: lengths.append(out.shape[1])
            )
            out = model(**given)
            handle.remove()
            pooled.append(out.pooler_output if name in HF else out)
            p = attached.adapter.prefix
            whole = attached.adapter.tokens()
            assert lengths[-1] == p + (whole if restore else attached.plan().features)
            if restore and name in HF:
                states = model(**given, output_hidden_states=True).hidden_states
                assert {state.shape[1] for state in states} == {p + whole}
    assert gap(pooled[1], pooled[0]) <= 1e-5


@pytest.mark.parametrize(
    "name",
    [
        *(*MULTIHEAD, "timm EVA-02", "timm ViT, rotary by head", "timm BEiT, shared bias"),
        "timm relative positions, post-norm",
    ],
)
@pytest.mark.parametrize("prop", ["gradients_flow", "pooled_by_mass"])
def test_properties_of_adapters(name: str, prop: str) -> None:
    """Of those whose positions learn, or whose pooling is special; of others see tests/properties."""
    (x,) = SPECS[name].give(fresh(name)).values()
    PROPERTIES[prop](Models(lambda: fresh(name), x), Run(0.5))


@pytest.mark.parametrize("prop", ["identity_kept", "counts_planned", "detached_bare"])
@pytest.mark.parametrize("recipe", ["uniform", "pool"])
@pytest.mark.parametrize("name", ["timm ViT", "timm SigLIP", "timm ViT, registers and a mean"])
def test_controls_have_the_properties(name: str, recipe: str, prop: str) -> None:
    (x,) = SPECS[name].give(fresh(name)).values()
    PROPERTIES[prop](Models(lambda: fresh(name), x, recipe), Run(0.25))


@pytest.mark.parametrize("name", HF)
@pytest.mark.parametrize("recipe", ["tome", "evoprune"])
def test_eager_attention_reduces_as_the_fused_one(name: str, recipe: str) -> None:
    outs: list[Tensor] = []
    for base in ("sdpa", "eager"):
        model = fresh(name)
        model.set_attn_implementation(base)
        method(name, recipe).attach(model)
        outs.append(features(name, model))
    assert gap(outs[0], outs[1]) <= 1e-4


@pytest.mark.parametrize("name", TOWERS)
def test_what_is_received_comes_with_the_attention(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU EvoPrune's importance is a column of the map that the output is computed from."""

    def refuse(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError(args, kwargs)

    model = fresh(name)
    with tokenzoo.build("evoprune", keep=16).attach(model):
        expected = run(name, model)
        monkeypatch.setattr("tokenzoo.attention.received_attention", refuse)
        if any(word in name for word in BIASED):
            with pytest.raises(AssertionError):
                run(name, model)
        else:
            assert torch.equal(run(name, model)[0], expected[0])
