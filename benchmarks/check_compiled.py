"""Eager, compiled and exported outputs of attached models: do they agree?

    python benchmarks/check_compiled.py --out docs/results/compiled-cpu.json

torch.compile runs with its default backend and fullgraph=True, which raises at the first graph break;
torch.export is saved to a file and loaded from it. Gaps are the largest difference, relative to the largest
output; above 1e-4, the command fails. Models are four blocks deep, with random weights; a quarter of an
hour on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import tokenzoo
from tokenzoo import Recipe, Stage, Step
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Skip
from tokenzoo.scorers import ReceivedAttention

SIZES = {"num_classes": 10, "depth": 4, "embed_dim": 96, "num_heads": 3, "img_size": 112}
MODELS = {
    "timm deit3_small (plain)": lambda: timm.create_model("deit3_small_patch16_224", **SIZES),
    "timm eva02_tiny (rotary)": lambda: timm.create_model("eva02_tiny_patch14_224", **SIZES),
    "timm beit_base (bias)": lambda: timm.create_model("beit_base_patch16_224", **SIZES),
    "torchvision ViT": lambda: torchvision.models.VisionTransformer(
        image_size=112,
        patch_size=16,
        num_layers=4,
        num_heads=3,
        hidden_dim=96,
        mlp_dim=384,
        num_classes=10,
    ),
}
GAPS = ("compiled against eager", "exported, saved, loaded against eager")
SELECTION = SelectAssign(TopK(ReceivedAttention()), Drop())
RECIPES = {
    "evoprune": tokenzoo.build("evoprune").recipe,
    "tome": tokenzoo.build("tome").recipe,
    "selection by received attention": Recipe(Step(Stage.BLOCK, Skip(), SELECTION, Identity())),
}


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def lively(model: nn.Module) -> nn.Module:
    """LayerScale of an untrained model hides everything: give it the size that it has in a trained one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "gamma" in name:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.ndim == 1:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
            elif "head" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return model.eval()


def row(model: nn.Module, recipe: Recipe, keep: int) -> dict[str, object]:
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bare = model(x)
        with tokenzoo.build(recipe, keep=keep).attach(model) as attached:
            eager = model(x)
            counts = attached.counts
            compiled = torch.compile(model, fullgraph=True)(x)
            file = io.BytesIO()
            torch.export.save(torch.export.export(model, (x,)), file)
            file.seek(0)
            exported = torch.export.load(file).module()(x)
    return {
        "counts": counts,
        "eager against bare": gap(eager, bare),
        "compiled against eager": gap(compiled, eager),
        "exported, saved, loaded against eager": gap(exported, eager),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, make in MODELS.items():
        model = lively(make())
        for recipe_name, recipe in RECIPES.items():
            found = row(model, recipe, arguments.keep)
            rows.append({"model": name, "recipe": recipe_name, **found})
            print(
                f"{name:26} {recipe_name:32} {found['counts']} "
                f"compiled {found['compiled against eager']:.1e} "
                f"exported {found['exported, saved, loaded against eager']:.1e}",
                flush=True,
            )
    if arguments.out:
        content = {
            "command": f"python benchmarks/check_compiled.py {' '.join(sys.argv[1:])}",
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
            "device": "cpu",
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")
    if any(value > 1e-4 for found in rows for key, value in found.items() if key in GAPS):
        sys.exit("an output differs from the eager one")


if __name__ == "__main__":
    main()
