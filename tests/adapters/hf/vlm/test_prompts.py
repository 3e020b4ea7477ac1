"""More tokens than patches: prompts (visual prompt tuning) are an error, or declared with `prefix=`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf.models import pixels, tower
from tests.adapters.models import BEIT, DINOV3, REG_GAP, SIGLIP, VIT, Case, gap, images
from tests.adapters.test_torchvision_vit import open_clip_vit, torchvision_vit
from tokenzoo.errors import AttachError, BadArgumentError

PROMPTS = 5


def prompted(x: Tensor, at: int) -> Tensor:
    """Tokens `[b, n, c]` with prompts after the first `at`."""
    prompts = torch.linspace(-2, 2, PROMPTS * x.shape[2]).view(1, PROMPTS, -1)
    return torch.cat([x[:, :at], prompts.expand(len(x), -1, -1), x[:, at:]], 1)


class Prompted(VisionTransformer):
    """As code for prompt tuning on timm does it."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        return prompted(super()._pos_embed(x), 1)


def subclass(depth: int = 4) -> Any:
    model = VIT.build(img_size=96, depth=depth)
    model.__class__ = Prompted
    return model


def hooked(model: Any, path: str, at: int, *, before: bool = False) -> Any:
    """A model with prompts in what one of its modules returns, or is given."""
    module = model.get_submodule(path)
    if before:
        module.register_forward_pre_hook(lambda module, args: (prompted(args[0], at), *args[1:]))
    else:
        module.register_forward_hook(lambda module, args, out: prompted(out, at))
    return model


# Prefix tokens of the class, and the model.
MODELS: dict[str, tuple[int, Callable[[], Any]]] = {
    "timm, a subclass": (1, subclass),
    "timm, a hook": (0, lambda: hooked(SIGLIP.build(img_size=96, depth=4), "norm_pre", 0)),
    "torchvision": (1, lambda: hooked(torchvision_vit(4), "encoder.dropout", 1)),
    "open_clip": (1, lambda: hooked(open_clip_vit(4, pool_type="avg"), "ln_pre", 1)),
    **{
        name: (prefix, lambda name=name, prefix=prefix: hooked(tower(name), "embeddings", prefix))
        for name, prefix in (("clip", 1), ("siglip2", 0), ("dinov2_with_registers", 4))
    },
    "dinov3_vit": (4, lambda: hooked(tower("dinov3_vit"), "embeddings", 4)),
}


def run(model: nn.Module) -> None:
    with torch.no_grad():
        if hasattr(model, "config"):
            model(**pixels(model))
        else:
            model(images(model))


@pytest.mark.parametrize("kind", MODELS)
def test_prompts_are_an_error_until_they_are_declared(kind: str) -> None:
    prefix, make = MODELS[kind]
    model = make()
    attached = tokenzoo.build("tome", keep=12).attach(model)
    with pytest.raises(AttachError, match=rf"{PROMPTS} more.*prefix={prefix + PROMPTS}\)"):
        run(model)
    attached.detach()
    for recipe in ("tome", "random"):
        zoo = tokenzoo.build(recipe, keep=12)
        with zoo.attach(model, trace=True, prefix=prefix + PROMPTS) as attached:
            run(model)
            assert attached.counts == attached.plan().blocks
            assert attached.counts[-1] == 12
            kept = attached.record.keep[:, : prefix + PROMPTS]
            assert torch.equal(kept, torch.arange(prefix + PROMPTS).expand_as(kept))
            assert bool((attached.mass[:, : prefix + PROMPTS] == 1).all())


def test_prompts_of_a_step_after_the_last_block_too() -> None:
    """There the first spliced block is the last one."""
    model = subclass()
    tokenzoo.build("fastervlm", keep=12).attach(model)
    with pytest.raises(AttachError, match=r"prefix=6\)"):
        run(model)


def test_prompts_that_a_hook_of_the_first_block_puts_in_are_an_error() -> None:
    model = hooked(VIT.build(img_size=96, depth=4), "blocks.0", 1, before=True)
    with pytest.raises(AttachError, match=r"blocks\.0 returns 13 tokens where 9 are"):
        tokenzoo.build("tome", keep=12).attach(model)
    model = VIT.build(img_size=96, depth=4)
    tokenzoo.build("tome", keep=12).attach(model)
    hooked(model, "blocks.0", 1, before=True)
    with pytest.raises(AttachError, match=r"blocks\.0 has 42 tokens where 37 are"):
        run(model)


@pytest.mark.parametrize(
    ("case", "prefix", "what"),
    [
        (VIT, 0, "prefix=0; it must be an int >= 1"),
        (VIT, True, "prefix=True"),
        (VIT, 2.0, "prefix=2.0"),
        (BEIT, 6, "a bias for each pair of places"),
        (DINOV3, 10, "rotates all tokens but the first 5"),
    ],
)
def test_a_prefix_that_cannot_be(case: Case, prefix: Any, what: str) -> None:
    with pytest.raises(BadArgumentError, match=what):
        tokenzoo.build("tome", keep=12).attach(case.build(depth=1), prefix=prefix)


def test_declared_prompts_compile_and_export() -> None:
    model = subclass(depth=1)
    x = images(model)
    tokenzoo.build("tome", keep=20).attach(model, prefix=6)
    with torch.no_grad():
        eager = model(x)
        torch.compiler.reset()
        assert gap(torch.compile(model, fullgraph=True, backend="eager")(x), eager) <= 1e-5
        assert gap(torch.export.export(model, (x,)).module()(x), eager) <= 1e-5


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_patches_that_timm_itself_drops_are_no_error(rate: float) -> None:
    """With registers, images of any size, and patch dropout in training."""
    model = REG_GAP.build(depth=3, dynamic_img_size=True, patch_drop_rate=rate).train()
    attached = tokenzoo.build("tome", keep=0.5).attach(model)
    for height, width in ((96, 64), (64, 80)):
        model(torch.randn(2, 3, height, width))
        there = max(1, int(height * width // 256 * (1 - rate)))
        assert attached.passes[0].tokens == there
