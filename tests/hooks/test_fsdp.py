"""Models that torch shards over processes: attach first, then shard; the other order is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import GAP, VIT, gap, randomise
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import AttachError
from tokenzoo.hooks.sharding import Carrying

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")


@dataclass(frozen=True)
class Subject:
    """A model to train.

    Attributes:
        model: with random weights, always the same.
        layers: its blocks, each of which is sharded.
        inputs: the arguments of a step, by a seed.
    """

    model: Any
    layers: list[nn.Module]
    inputs: Callable[[int], dict[str, Any]]

    def step(self, run: Any = None, seed: int = 0) -> Tensor:
        """What one forward and one backward computes."""
        out = (run or self.model)(**self.inputs(seed))
        out = out if isinstance(out, Tensor) else out[0 if out.get("loss") is not None else 1]
        out.float().square().sum().backward()
        return out.detach()

    def gradients(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            grad: Any = parameter.grad
            if grad is not None:
                found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()
        self.model.zero_grad()
        return found

    def shard(self, **options: Any) -> None:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in self.layers:
            fully_shard(layer, mesh=mesh, **options)
        fully_shard(self.model, mesh=mesh)


def pixels(name: str) -> Callable[[int], dict[str, Any]]:
    return lambda seed: {
        name: torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    }


def timm_vit() -> Subject:
    model = VIT.build(depth=3, img_size=64).train()
    return Subject(model, list(model.blocks), pixels("x"))


def timm_mean() -> Subject:
    model = GAP.build(depth=3, img_size=64).train()
    return Subject(model, [*model.blocks, model.fc_norm], pixels("x"))


def siglip() -> Subject:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    size |= {"num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    model: Any = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**size))
    return Subject(randomise(model).train(), list(model.encoder.layers), pixels("pixel_values"))


def llava() -> Subject:
    model = hf.llava().train()
    layers = [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]

    def inputs(seed: int) -> dict[str, Any]:
        given = dict(hf.inputs(model, ["see <image> and say"], [[hf.photos()[seed]]]))
        return {**given, "labels": given["input_ids"].clone()}

    return Subject(model, layers, inputs)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "timm": timm_vit,
    "timm, mean": timm_mean,
    "siglip": siglip,
    "llava": llava,
}
KEEP = {"timm": 8, "timm, mean": 8, "siglip": 8, "llava": 0.3}


def attached(kind: str, recipe: str = "evoprune", **options: Any) -> tuple[Subject, Any]:
    subject = SUBJECTS[kind]()
    return subject, tokenzoo.build(recipe, keep=KEEP[kind]).attach(subject.model, **options)


@contextmanager
def processes(folder: Path, rank: int = 0, size: int = 1) -> Iterator[None]:
    """This process as one of several."""
    method = f"file://{folder / 'meeting'}"
    options: dict[str, Any] = {"rank": rank, "world_size": size, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=method, **options)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    with processes(tmp_path):
        yield


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in wanted.items():
        assert float((found[name] - grad).abs().max()) <= tolerance * largest, name


def trains_and_evaluates(kind: str, rank: int, size: int, **options: Any) -> None:
    """Outputs are those of the same model on one process, gradients the mean of those of all batches."""
    whole, _ = attached(kind, **options)
    outputs = [whole.step(seed=seed) for seed in range(size)]
    wanted = {name: grad / size for name, grad in whole.gradients().items()}
    subject, recipe = attached(kind, **options)
    subject.shard()
    for _ in range(2):
        assert gap(subject.step(seed=rank), outputs[rank]) <= 1e-5
        same(subject.gradients(), wanted, 1e-5)
    with torch.no_grad():
        for subjects in (subject, whole):
            subjects.model.eval()
        found, exact = (one.model(**one.inputs(rank)) for one in (subject, whole))
    pick = (lambda out: out) if isinstance(found, Tensor) else (lambda out: out[1])
    assert gap(pick(found), pick(exact)) <= 1e-5
    assert recipe.counts[-1] < recipe.passes[0].tokens


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", SUBJECTS)
def test_attach_then_shard(kind: str) -> None:
    trains_and_evaluates(kind, 0, 1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["timm, mean", "siglip"])
def test_attach_then_shard_with_all_tokens_restored(kind: str) -> None:
    trains_and_evaluates(kind, 0, 1, restore=True)


def test_two_processes(tmp_path: Path) -> None:
    """This one, and one more."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(tmp_path)]
    other = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        together(tmp_path, 0)
        _, said = other.communicate(timeout=120)
    finally:
        other.kill()
    assert other.returncode == 0, said


def together(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    with processes(folder, rank, 2):
        for kind in (
            "timm",
            "llava",
        ):  # the last has a tower of SigLIP's kind, and a language model
            trains_and_evaluates(kind, rank, 2)


HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
POLICIES: dict[str, tuple[dict[str, Any], float]] = {
    "casts in and out": ({"mp_policy": HALF}, 0.1),
    "gathered once": ({"reshard_after_forward": False}, 0),
    "offloaded": ({"offload_policy": CPUOffloadPolicy(pin_memory=False)}, 0),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("recipe", ["evoprune", "random"])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies(policy: str, recipe: str) -> None:
    options, tolerance = POLICIES[policy]
    whole, _ = attached("timm", recipe)
    wanted = whole.step()
    gradients = whole.gradients()
    subject, _ = attached("timm", recipe)
    subject.shard(**options)
    assert gap(subject.step(), wanted) <= tolerance
    same(subject.gradients(), gradients, tolerance)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["timm", "siglip"])
def test_checkpointed_and_sharded_in_groups(kind: str) -> None:
    whole, _ = attached(kind)
    wanted = whole.step()
    gradients = whole.gradients()
    subject, _ = attached(kind)
    if kind == "timm":
        subject.model.set_grad_checkpointing()
    else:
        subject.model.gradient_checkpointing_enable({"use_reentrant": False})
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(subject.layers[:2], mesh=mesh)
    fully_shard(subject.model, mesh=mesh)
    assert gap(subject.step(), wanted) <= 1e-5
    same(subject.gradients(), gradients, 1e-5)


@pytest.mark.usefixtures("alone")
def test_detached_it_is_the_bare_sharded_model() -> None:
    bare = timm_vit()
    wanted = bare.step()
    gradients = bare.gradients()
    subject, recipe = attached("timm")
    subject.shard()
    subject.step()
    subject.gradients()
    assert any(isinstance(hook, Carrying) for hook in hooks(subject.model))
    recipe.detach()
    assert not any(isinstance(hook, Carrying) for hook in hooks(subject.model))
    assert torch.equal(subject.step(), wanted)
    same(subject.gradients(), gradients, 0)


def hooks(model: nn.Module) -> list[Any]:
    found = [(m._forward_pre_hooks, m._forward_hooks) for m in model.modules()]
    return [hook for pair in found for some in pair for hook in some.values()]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["timm", "siglip", "llava"])
@pytest.mark.parametrize("how", ["blocks", "a larger model"])
def test_shard_then_attach_is_refused(kind: str, how: str) -> None:
    subject = SUBJECTS[kind]()
    mesh = init_device_mesh("cpu", (1,))
    if how == "blocks":
        fully_shard(subject.layers[0], mesh=mesh)
    else:
        fully_shard(nn.Sequential(subject.model), mesh=mesh)
    with pytest.raises(AttachError, match=r"is sharded by .*attach first, then shard"):
        tokenzoo.build("evoprune", keep=8).attach(subject.model)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("replace", [False, True])
def test_a_second_recipe_comes_before_sharding_too(replace: bool) -> None:
    subject, first = attached("timm")
    subject.shard()
    with pytest.raises(AttachError, match="attach first, then shard"):
        tokenzoo.build("tome", keep=8).attach(subject.model, replace=replace)
    subject.step()
    assert first.counts[-1] == 8


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:.*past_key_values")
def test_generate_is_registered_or_refused() -> None:
    subject, _ = attached("llava")
    model = subject.model.eval()
    given = {key: value for key, value in subject.inputs(0).items() if key != "labels"}
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    wanted = model.generate(**given, **options)
    subject.shard()
    with pytest.raises(AttachError, match=r"register_fsdp_forward_method\(model, 'generate'\)"):
        model.generate(**given, **options)
    register_fsdp_forward_method(model, "generate")
    for _ in range(2):
        assert torch.equal(model.generate(**given, **options), wanted)


# ------------------------------------------------------------------------------------- FSDP1


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["timm", "siglip", "llava"])
def test_fsdp1_around_an_attached_model_or_refused(kind: str) -> None:
    def wrap(subject: Subject) -> Any:
        return FullyShardedDataParallel(
            subject.model,
            auto_wrap_policy=ModuleWrapPolicy({type(layer) for layer in subject.layers}),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )

    whole, _ = attached(kind)
    wanted = whole.step()
    gradients = [grad.abs().sum() for grad in whole.gradients().values()]
    subject, recipe = attached(kind)
    wrapped = wrap(subject)
    assert gap(subject.step(wrapped), wanted) <= 1e-5
    found = [p.grad.abs().sum() for p in wrapped.parameters() if p.grad is not None]
    assert float(sum(found)) == pytest.approx(float(sum(gradients)), rel=1e-4)
    assert recipe.counts[-1] < recipe.passes[0].tokens
    late = SUBJECTS[kind]()
    for target in (wrap(late), late.model):
        with pytest.raises(AttachError, match=r"FSDP.*attach first, then shard"):
            tokenzoo.build("evoprune", keep=8).attach(target)


if __name__ == "__main__":
    together(Path(sys.argv[1]), 1)
