"""Which recipe runs on which model: docs/recipes/matrix.md is what is found here.

    python -m tests.adapters.test_matrix        # writes the page anew

Every recipe is attached to a small model of every family, and run. It runs, with exactly the tokens that
were planned, or the answer is an error of ours, whose reason is in the table. There is no third outcome.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch

import tokenzoo
from benchmarks.make_recipe_pages import MATRIX, matrix, ours
from tests.adapters.hf import models as hf_models
from tests.adapters.hf.vlm import qwen as hf_qwen
from tests.adapters.models import EVA02, SIGLIP, VIT, images
from tests.adapters.test_torchvision_vit import open_clip_vit, torchvision_vit
from tokenzoo.attachment import EVERY
from tokenzoo.budget import resolve_keep
from tokenzoo.errors import AttachError, MissingEvidenceError, UnsupportedModelError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.plugins import find
from tokenzoo.tools.transformers_loading import inputs

REFUSED = (AttachError, MissingEvidenceError, UnsupportedModelError)
KEEP = 0.25
DEPTH, LAYERS = 10, 25  # so many blocks and layers, that each recipe finds those that it names
BY = 'runs with `attention_source="received"`'


def tower(name: str) -> Callable[[], Any]:
    """A tower of transformers."""
    return lambda: hf_models.tower(name, num_hidden_layers=DEPTH)


def whole(make: Callable[..., Any], **vision: Any) -> Callable[[], Any]:
    """A multimodal model of transformers."""
    return lambda: make(vision=vision, text={"num_hidden_layers": LAYERS})


MODELS: dict[str, Callable[[], Any]] = {
    "ViT (timm)": lambda: VIT.build(depth=DEPTH, img_size=96),
    "SigLIP (timm)": lambda: SIGLIP.build(depth=DEPTH, img_size=96),
    "EVA-02 (timm)": lambda: EVA02.build(depth=DEPTH, img_size=84),
    "ViT (torchvision)": lambda: torchvision_vit(DEPTH),
    "CLIP (open_clip)": lambda: open_clip_vit(DEPTH),
    "CLIP (transformers)": tower("clip"),
    "SigLIP (transformers)": tower("siglip"),
    "DINOv2 (transformers)": tower("dinov2"),
    "LLaVA-1.5": whole(hf_models.llava, num_hidden_layers=DEPTH),
    "LLaVA-OneVision": whole(hf_models.llava_onevision, num_hidden_layers=DEPTH),
    "Qwen2-VL": whole(hf_qwen.qwen2_vl, depth=DEPTH),
    "Qwen2.5-VL": whole(hf_qwen.qwen2_5_vl, depth=DEPTH),
}

INTRO = f"""# Which recipe runs on which model

Each recipe with its defaults and `keep={KEEP}` on a small model of each family, with random weights. It is
attached and run by `tests/adapters/test_matrix.py`, which holds that this table is what comes out
(`python -m tests.adapters.test_matrix` writes it anew).

- **runs**: exactly as many tokens were left as `plan()` had said.
- **runs with `attention_source="received"`**: the model shows no CLS attention; the option takes received
  attention.
- Everything else is the reason of the error that `attach` raises. *needs ...*: the model does not show this
  evidence there. *no stage ...*: this model is not reduced there (a tower alone has no projector and no
  language model; only a tower has an image of its own). *needs frames*: it reduces whole videos, and this
  model has none, or takes them as images (`attach(..., frames=8)`).
- **runs on videos**: it reduces whole videos; an image, as here, keeps all its tokens (docs/video.md).

Recipes with learned parts run here with weights that are not trained (docs/learning.md). On bare tensors
every recipe works: `zoo.reduce`.

"""

SHORT = (
    (r"this recipe needs (.+?) at Stage", "needs {}"),
    (r"this recipe works at Stage\.(\w+)", "no stage {}"),
    (r"this recipe makes (new) tokens, which have no position", "no place for {} tokens"),
    (r"How many tokens stay (comes) from the data", "its count {} from the data"),
    (r"learned parts are made for (images of one size)", "needs {}"),
    (r"positions='(compact)' at layer", "positions cannot be made {}"),
)
"""Errors in a few words; of any other the whole message."""


def call(model: Any) -> tuple[Callable[[], Any], Any]:
    """A pass over two images, or two prompts with one each; what such an image is in a prompt, or None."""
    if not hasattr(model, "config"):
        x = images(model)
        return lambda: model(x), None
    adapter = find_adapter(model)
    given = inputs(model, adapter, 2)
    visuals = adapter.visuals(given, EVERY) if adapter.reads_prompts else {}
    return lambda: model(**given), next((of[0] for of in visuals.values()), None)


def outcome(name: str, model: Any, **options: Any) -> str:
    """ "runs", or why not; every other error goes through."""
    recipe = tokenzoo.build(name, keep=KEEP, **options)
    run, visual = call(model)
    try:
        with recipe.attach(model) as attached, torch.no_grad():
            run()
            check_counts(attached, visual)
            if visual is not None and leaves_whole(attached, visual):
                return "runs on videos"
    except REFUSED as error:
        why = reason(str(error))
        has_option = "attention_source" in signature(find("recipes", name)).parameters
        if "cls_attention" in why and has_option and not options:
            by = outcome(name, model, attention_source="received")
            return BY if by == "runs" else why
        return why
    return "runs"


def leaves_whole(attached: Any, visual: Any) -> bool:
    """Whether it is about videos alone: an image keeps all its tokens."""
    over_frames = any("frames" in step.needs for step in attached.recipe.steps)
    patches = attached.adapter.tokens() or visual.patches
    return over_frames and attached.visual_tokens(patches) == patches


def check_counts(attached: Any, visual: Any) -> None:
    """There were as many tokens as planned, after the blocks and in the prompts."""
    if attached.recipe.steps[-1].stage.name == "llm":
        (left,) = set(attached.prompts)
        if visual.units == 1 and not visual.fixed:
            assert left == resolve_keep(KEEP, visual.full)
        assert 0 < left < visual.full / 2  # of crops with newlines between them
    if attached.counts:
        patches = attached.adapter.tokens() or visual.patches
        plan = attached.plan(patches)
        assert attached.counts == plan.blocks
        assert attached.features == attached.visual_tokens(patches)
        back = attached.recipe.all_back
        least = plan.blocks[-1] if back else plan.llm or plan.visual
        assert least == resolve_keep(KEEP, patches)
        assert plan.visual == patches or not back


def reason(message: str) -> str:
    """An error in a few words."""
    for pattern, words in SHORT:
        found = re.search(pattern, message)
        if found:
            return words.format(found[1].lower())
    return message


def found(model: str) -> dict[str, str]:
    """What comes out for each recipe on a model."""
    made = MODELS[model]()
    return {name: outcome(name, made) for name in ours()}


def page() -> str:
    """The text of the page, as it is found now."""
    columns = [found(model) for model in MODELS]
    lines = [f"| recipe | {' | '.join(MODELS)} |", f"|---|{'---|' * len(MODELS)}"]
    lines += [f"| `{name}` | {' | '.join(c[name] for c in columns)} |" for name in ours()]
    return INTRO + "\n".join(lines) + "\n"


@pytest.mark.parametrize("model", MODELS)
def test_the_table_is_what_comes_out(model: str) -> None:
    table = matrix(MATRIX.read_text())
    assert {name: cells[model] for name, cells in table.items()} == found(model)


def test_the_page_has_every_recipe_and_model() -> None:
    text = MATRIX.read_text()
    assert text.startswith(INTRO)
    table = matrix(text)
    assert [*table] == ours()
    assert all([*cells] == [*MODELS] for cells in table.values())
    cells = [cell for row in table.values() for cell in row.values()]
    assert cells.count("runs") > len(cells) / 3
    assert all(len(cell) < 60 for cell in cells)  # every reason is a short one
    for name, row in table.items():
        # What reduces clips is refused on images.
        assert any("runs" in cell or "frames" in cell for cell in row.values()), name


def test_other_errors_and_other_counts_are_no_answers(monkeypatch) -> None:
    model = MODELS["ViT (timm)"]()
    with tokenzoo.build("tome", keep=0.5).attach(model) as attached:
        call(model)[0]()
        with pytest.raises(AssertionError):
            check_counts(attached, None)
    monkeypatch.setattr("tokenzoo.zoo.attach", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outcome("tome", model)


if __name__ == "__main__":
    torch.set_num_threads(1)
    MATRIX.write_text(page())
