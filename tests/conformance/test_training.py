"""Every model of `SPECS`, attached, is trained: checkpointed, in parallel, by a Trainer, with LoRA."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from tests.adapters.hf import models as hf
from tests.adapters.models import gap
from tests.conformance.specs import SOME, SPECS, Inputs, expected, fresh, method, other, run, same
from tokenzoo.errors import AttachError

LATE = ("visionzip", "divprune", "fastv")  # no block of the tower gets fewer tokens


def gradients(name: str, model: Any, *calls: Inputs) -> dict[str, Tensor]:
    """Of several forwards and one backward."""
    model.zero_grad()
    outs = [SPECS[name].read(model(**call)) for call in calls]
    generator = torch.Generator().manual_seed(0)
    torch.stack(
        [(out * torch.randn(out.shape, generator=generator)).mean() for out in outs]
    ).sum().backward()
    grads = {key: p.grad for key, p in model.named_parameters()}
    return {key.removeprefix("module."): g.clone() for key, g in grads.items() if g is not None}


def near(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    # A gradient may be zero but for rounding: that of the bias of keys, which softmax takes no notice of.
    rounding = 1e-7 * max(float(grad.abs().max()) for grad in wanted.values())
    for key, grad in wanted.items():
        most = 1e-5 * float(grad.abs().max()) + rounding
        assert torch.allclose(found[key], grad, rtol=1e-4, atol=most), key


@pytest.mark.parametrize(("name", "recipe"), [case for case in SOME if SPECS[case[0]].checkpoint])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_")  # renamed in 5.23
def test_checkpointing_changes_no_gradient(name: str, recipe: str) -> None:
    """Reentrant it is refused, or right: of `LATE`, in some versions of transformers."""
    model, spec = fresh(name).train(), SPECS[name]
    if name == "dinov3_vit":  # its positions shift at random in training
        model.config.pos_embed_rescale = None
    method(name, recipe).attach(model)
    calls = spec.give(model), other(name, model)
    plain = gradients(name, model, *calls)
    assert all(bool(grad.isfinite().all()) for grad in plain.values())
    assert spec.checkpoint is not None
    try:
        spec.checkpoint(model, True)
        near(gradients(name, model, *calls), plain)
        assert recipe in LATE
    except (AttachError, ValueError) as error:  # torch gives a reentrant block no keyword arguments
        assert recipe != "divprune"
        assert re.search("use_reentrant=False|Unexpected keyword arguments", str(error))  # noqa: PT017
    finally:
        spec.checkpoint(model, False)
    assert _get_current_function_mode_stack() == []
    runs: list[int] = []
    model.get_submodule(spec.second).register_forward_pre_hook(lambda *_: runs.append(1))
    near(gradients(name, model, *calls), plain)
    assert len(runs) == 4  # it really recomputes


PARALLEL = ("timm ViT", "timm ViT, registers and a mean", "qwen2_5_vl tower", "llava")


@pytest.mark.parametrize(("name", "recipe"), [case for case in SOME if case[0] in PARALLEL])
@pytest.mark.parametrize("first", ["attach", "wrap"])
def test_distributed_data_parallel(name: str, recipe: str, first: str, tmp_path: Path) -> None:
    model = fresh(name).train()
    given, zoo = SPECS[name].give(model), method(name, recipe)
    attached = zoo.attach(model)
    plain = gradients(name, model, given)
    if first == "wrap":
        attached.detach()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        # LLaVA's tower has a last block that is read by nobody, in the bare model too.
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=name == "llava")
        attached = attached if first == "attach" else zoo.attach(wrapped)
        near(gradients(name, wrapped, given), plain)
        with pytest.raises(AttachError, match="attached already"):
            zoo.attach(wrapped)
        again = zoo.attach(wrapped, replace=True)
        assert again.model is attached.model is model
        near(gradients(name, wrapped, given), plain)
    finally:
        torch.distributed.destroy_process_group()


def labelled() -> Inputs:
    """LLaVA's inputs with labels at the words, and none at padding and placeholders."""
    given = SPECS["llava"].give(None)
    ids = given["input_ids"]
    nowhere = (given["attention_mask"] == 0) | (ids == hf.IMAGE)
    return {**given, "labels": ids.masked_fill(nowhere, -100)}


@pytest.mark.parametrize("recipe", ["evoprune", "fastv"])  # labels lose places before or in the LLM
def test_trainer_is_a_loop_by_hand(recipe: str, tmp_path: Path) -> None:
    batch = labelled()
    model, by_hand = fresh("llava"), fresh("llava").train()
    method("llava", recipe).attach(model)
    method("llava", recipe).attach(by_hand)
    losses: list[float] = []
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=1e-3)
    for _ in range(3):
        loss = by_hand(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            max_steps=3,
            logging_steps=1,
            optim="sgd",
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            per_device_train_batch_size=2,
            disable_tqdm=True,
        ),
        data_collator=lambda rows: dict(batch),
        train_dataset=[{}] * 6,
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < losses[0]
    same([*model.state_dict().values()], [*by_hand.state_dict().values()], 1e-5)


def adapted(model: Any) -> Any:
    """LoRA on queries and values of tower and language model, with weights that matter."""
    import peft

    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return wrapped


@pytest.mark.parametrize("recipe", SPECS["llava"].recipes)
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_lora_before_and_after(recipe: str) -> None:
    first, then = fresh("llava"), fresh("llava")
    attached = method("llava", recipe).attach(first)
    one, two = adapted(first), adapted(then)
    reduced, bare = run("llava", one), run("llava", two)
    method("llava", recipe).attach(two)
    same(run("llava", two), reduced)
    assert gap(reduced[0], expected("llava", recipe)[0]) > 1e-2
    one.train()(**labelled()).loss.backward()
    learnt = [k for k, p in one.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert all("lora_" in key for key in learnt)
    assert any("vision_tower" in key for key in learnt)
    assert any("language_model" in key for key in learnt)
    merged = one.eval().merge_and_unload()
    assert merged is first
    same(run("llava", merged), reduced, 1e-3)
    attached.detach()
    same(run("llava", merged), bare, 1e-3)
