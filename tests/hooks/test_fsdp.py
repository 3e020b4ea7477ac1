"""Models that torch shards over processes: attach first, then shard; the other order is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
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
from tests.adapters.models import gap
from tests.conformance.specs import SPECS, fresh, method, other
from tokenzoo.errors import AttachError
from tokenzoo.hooks.sharding import Carrying

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")
ALONE = pytest.mark.usefixtures("alone")


@dataclass
class Subject:
    """A model of the conformance suite, in training, with a recipe on it if one is named."""

    name: str
    recipe: str | None = "evoprune"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = fresh(self.name, 3).train()
        self.layers = [
            layer
            for module in self.model.modules()
            if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) >= 3
            for layer in module
        ]
        if self.name == "timm ViT with a mean":
            self.layers.append(self.model.fc_norm)
        # What the second process is given is other than what the first one is.
        self.inputs = [SPECS[self.name].give(self.model), other(self.name, self.model)]
        if self.recipe is not None:
            self.attached = method(self.name, self.recipe, 0.6).attach(self.model, **self.options)

    def forward(self, rank: int = 0, run: Any = None) -> Tensor:
        return SPECS[self.name].read((run or self.model)(**self.inputs[rank]))

    def step(self, rank: int = 0, run: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The output of a forward, and the gradients of one backward."""
        out = self.forward(rank, run)
        out.float().square().sum().backward()
        grads = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        grads = {
            name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()
            for name, grad in grads.items()
        }
        self.model.zero_grad()
        return out.detach(), grads

    def shard(self, **options: Any) -> None:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in self.layers:
            fully_shard(layer, mesh=mesh, **options)
        fully_shard(self.model, mesh=mesh)


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


def same(found: tuple[Tensor, Any], wanted: tuple[Tensor, Any], tolerance: float) -> None:
    assert gap(found[0], wanted[0]) <= tolerance
    assert found[1].keys() == wanted[1].keys()
    largest = max(float(grad.abs().max()) for grad in wanted[1].values())
    for name, grad in wanted[1].items():
        assert float((found[1][name] - grad).abs().max()) <= tolerance * largest, name


def trains_and_evaluates(name: str, rank: int, size: int, **options: Any) -> None:
    """Outputs are those of the same model on one process, gradients the mean of those of all batches."""
    whole = Subject(name, options=options)
    steps = [whole.step(seed) for seed in range(size)]
    mean = {key: sum(grads[key] for _, grads in steps) / size for key in steps[0][1]}
    subject = Subject(name, options=options)
    subject.shard()
    for _ in range(2):
        same(subject.step(rank), (steps[rank][0], mean), 1e-5)
    with torch.no_grad():
        for one in (subject, whole):
            one.model.eval()
        assert gap(subject.forward(rank), whole.forward(rank)) <= 1e-5
    assert subject.attached.counts[-1] < subject.attached.passes[0].tokens


@ALONE
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm ViT", {}),
        ("timm ViT with a mean", {"restore": True}),
        ("siglip", {}),
        ("siglip", {"restore": True}),
        ("llava", {}),
    ],
)
def test_attach_then_shard(name: str, options: dict[str, Any]) -> None:
    trains_and_evaluates(name, 0, 1, **options)


def test_two_processes(tmp_path: Path) -> None:
    """This one, and one more."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        together(tmp_path, 0)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, said


def together(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    with processes(folder, rank, 2):
        for name in ("timm ViT with a mean", "llava"):
            trains_and_evaluates(name, rank, 2)


HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
POLICIES: dict[str, tuple[dict[str, Any], float]] = {
    "casts in and out": ({"mp_policy": HALF}, 0.1),
    "gathered once": ({"reshard_after_forward": False}, 0),
    "offloaded": ({"offload_policy": CPUOffloadPolicy(pin_memory=False)}, 0),
}


@ALONE
@pytest.mark.parametrize("policy", POLICIES)
def test_policies(policy: str) -> None:
    options, tolerance = POLICIES[policy]
    subject = Subject("timm ViT")
    wanted = subject.step()
    subject.shard(**options)
    same(subject.step(), wanted, tolerance)


@ALONE
@pytest.mark.parametrize("name", ["timm ViT", "siglip"])
def test_checkpointed_and_sharded_in_groups(name: str) -> None:
    subject, spec = Subject(name), SPECS[name]
    wanted = subject.step()
    assert spec.checkpoint is not None
    spec.checkpoint(subject.model, False)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(subject.layers[:2], mesh=mesh)
    fully_shard(subject.model, mesh=mesh)
    same(subject.step(), wanted, 1e-5)


@ALONE
def test_detached_it_is_the_bare_sharded_model() -> None:
    wanted = Subject("timm ViT", recipe=None).step()
    subject = Subject("timm ViT")
    subject.shard()
    subject.step()
    assert carried(subject.model)
    subject.attached.detach()
    assert not carried(subject.model)
    found = subject.step()
    assert torch.equal(found[0], wanted[0])
    same(found, wanted, 0)


def carried(model: nn.Module) -> list[Any]:
    found = [(m._forward_pre_hooks, m._forward_hooks) for m in model.modules()]
    hooks = [hook for pair in found for some in pair for hook in some.values()]
    return [hook for hook in hooks if isinstance(hook, Carrying)]


@ALONE
@pytest.mark.parametrize("name", ["timm ViT", "llava"])
@pytest.mark.parametrize("how", ["blocks", "a larger model"])
def test_shard_then_attach_is_refused(name: str, how: str) -> None:
    subject = Subject(name, recipe=None)
    mesh = init_device_mesh("cpu", (1,))
    if how == "blocks":
        fully_shard(subject.layers[0], mesh=mesh)
    else:
        fully_shard(nn.Sequential(subject.model), mesh=mesh)
    with pytest.raises(AttachError, match=r"is sharded by .*attach first, then shard"):
        method(name, "evoprune").attach(subject.model)


@ALONE
def test_a_second_recipe_comes_before_sharding_too() -> None:
    subject = Subject("timm ViT")
    subject.shard()
    for replace in (False, True):
        with pytest.raises(AttachError, match="attach first, then shard"):
            tokenzoo.build("tome", keep=8).attach(subject.model, replace=replace)
    subject.step()
    assert subject.attached.counts == subject.attached.plan().blocks


@ALONE
@pytest.mark.filterwarnings("ignore:.*past_key_values")
def test_generate_is_registered_or_refused() -> None:
    subject = Subject("llava")
    model = subject.model.eval()
    given: dict[str, Any] = {**subject.inputs[0], "max_new_tokens": 3, "do_sample": False}
    wanted = model.generate(**given)
    subject.shard()
    with pytest.raises(AttachError, match=r"register_fsdp_forward_method\(model, 'generate'\)"):
        model.generate(**given)
    register_fsdp_forward_method(model, "generate")
    for _ in range(2):
        assert torch.equal(model.generate(**given), wanted)


@ALONE
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["timm ViT", "siglip", "llava"])
def test_fsdp1_around_an_attached_model_or_refused(name: str) -> None:
    def wrap(subject: Subject) -> Any:
        return FullyShardedDataParallel(
            subject.model,
            auto_wrap_policy=ModuleWrapPolicy({type(layer) for layer in subject.layers}),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )

    subject = Subject(name)
    wanted, gradients = subject.step()
    wrapped = wrap(subject)
    out, found = subject.step(run=wrapped)
    assert gap(out, wanted) <= 1e-5
    sums = [sum(float(grad.abs().sum()) for grad in some.values()) for some in (found, gradients)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)
    assert subject.attached.counts[-1] < subject.attached.passes[0].tokens
    late = Subject(name, recipe=None)
    for target in (wrap(late), late.model):
        with pytest.raises(AttachError, match=r"FSDP.*attach first, then shard"):
            method(name, "evoprune").attach(target)


if __name__ == "__main__":
    together(Path(sys.argv[1]), 1)
