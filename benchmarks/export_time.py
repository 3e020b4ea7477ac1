"""An exported tower in OpenVINO Runtime and as an AOTInductor library: equal to torch, and how fast.

python -m benchmarks.export_time --model vit_small_patch16_224 --keep 0.25 --out FILE.json

The bare model (`keep=1.0`) and the model with the recipe are exported the same way and timed in turn. The
weights are random. OpenVINO reads the ONNX file of `tokenzoo export`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openvino
import timm
import torch
from torch import Tensor

import tokenzoo
from benchmarks.recorded import show
from tokenzoo.tools.model_loading import randomise
from tokenzoo.tools.onnx import export
from tokenzoo.tools.timing import interleaved

Call = Callable[[Tensor], Tensor]


def in_openvino(zoo: Any, vit: Any, images: Tensor, folder: Path) -> Call:
    """Export to ONNX, and compile for the CPU on one thread in float32."""
    core = openvino.Core()
    file = export(zoo, vit, images, folder / "vit.onnx", dynamic=False).path
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(file), "CPU", options)
    return lambda x: torch.from_numpy(model(x.numpy())[0])


def in_aot_inductor(zoo: Any, vit: Any, images: Tensor, folder: Path) -> Call:
    """Export with torch.export, and compile to a library."""
    with zoo.attach(vit), torch.no_grad():
        program = torch.export.export(vit, (images,))
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "vit.pt2"))
    return torch._inductor.aoti_load_package(file)


ENGINES = {"OpenVINO": in_openvino, "AOTInductor": in_aot_inductor}


def measured(engine: str, vit: Any, recipe: str, keep: float, rounds: int) -> dict[str, Any]:
    """Export with and without the recipe, compare with torch, and time in turn."""
    images = torch.randn(2, 3, 224, 224)
    zoo, bare = tokenzoo.build(recipe, keep=keep), tokenzoo.build(recipe, keep=1.0)
    with torch.inference_mode(), zoo.attach(vit) as attached:
        expected, plan = vit(images), attached.plan()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        small = ENGINES[engine](zoo, vit, images, Path(first))
        whole = ENGINES[engine](bare, vit, images, Path(second))
        with torch.inference_mode():
            error = (small(images) - expected).abs().max() / expected.abs().max()
            calls = {"bare": lambda: whole(images), "recipe": lambda: small(images)}
            time = interleaved(calls, rounds=rounds, baseline="bare")["recipe"]
    return {
        "engine": engine,
        "error": float(f"{float(error):.2g}"),
        "floor": round(plan.flops, 3),
        "time": [round(value, 3) for value in (time.ratio, time.low, time.high)],
    }


def main() -> None:
    """Measure every engine, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--recipe", default="evoprune")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vit = timm.create_model(given.model).eval()
    randomise(vit)
    rows = [measured(engine, vit, given.recipe, given.keep, given.rounds) for engine in ENGINES]
    found = {
        "command": f"python -m benchmarks.export_time --model {given.model} --keep {given.keep}",
        "recipe": given.recipe,
        "versions": {name: version(name) for name in ("torch", "timm", "openvino", "onnx")},
        "rows": rows,
    }
    show(found, given.out)


if __name__ == "__main__":
    main()
