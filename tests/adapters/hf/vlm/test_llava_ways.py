"""Where whole models are deployed: by a device map, trained, quantised, compiled, in parts.

The ways of running that all models share are in tests/conformance.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.utils import counters

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import gap, one_thread  # noqa: F401
from tokenzoo.errors import AttachError

RECIPES: dict[str, dict[str, Any]] = {
    "evoprune": {"keep": 16},
    "tome": {"keep": 16},  # proportional attention in the tower
    "divprune": {"keep": 16},  # after the projector
    "fastv": {"keep": 0.25},  # in the language model
}
LLAVAS: dict[str, Callable[..., Any]] = {"llava": hf.llava, "onevision": hf.llava_onevision}
EACH = pytest.mark.parametrize("name", RECIPES)
BOTH = pytest.mark.parametrize("kind", LLAVAS)
ORDERS = pytest.mark.parametrize("first", ["attach", "other"])


def build(name: str) -> tokenzoo.Method:
    return tokenzoo.build(name, **RECIPES[name])


@dataclass(frozen=True)
class Run:
    """What a model says: logits, and answers without their prompts."""

    logits: Tensor
    answers: Tensor

    def near(self, other: Run, tolerance: float = 0.0) -> bool:
        """Whether another run said the same."""
        alike = self.logits.shape == other.logits.shape and torch.equal(self.answers, other.answers)
        return alike and gap(self.logits, other.logits) <= tolerance


def run(model: Any, inputs: Any) -> Run:
    with torch.no_grad():
        logits = model(**inputs).logits
        said = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(said[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    return Run(logits, said[:, inputs["input_ids"].shape[1] :])


@cache
def given(kind: str) -> dict[str, Tensor]:
    """A padded batch: an image, and none."""
    temple = hf.photos()[0]
    return dict(hf.inputs(LLAVAS[kind](), ["what is the <image> ?", "the cat"], [[temple], []]))


@cache
def expected(kind: str, name: str | None) -> Run:
    """What a model that is nothing but attached says; without a name, the bare model."""
    model = LLAVAS[kind]()
    if name is not None:
        build(name).attach(model)
    return run(model, given(kind))


def hooked(model: Any) -> list[str]:
    """What an attachment leaves on a model; the hooks of transformers itself stay where they are."""
    names = [
        f"{path}.{key}"
        for path, module in model.named_modules()
        for key in vars(module)
        if "tokenzoo" in key or key in ("generate", "pack_image_features", "apply_pooling")
    ]
    for path, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        names += [path for hook in hooks if "tokenzoo" in str(hook)]
    configs = (model.config, model.config.vision_config, model.config.text_config)
    return names + [c._attn_implementation for c in configs if "tokenzoo" in c._attn_implementation]


# --------------------------------------------------------------------------------- accelerate


def dispatched(model: Any, folder: Path) -> None:
    """A device_map with two places, as `from_pretrained(device_map=...)` makes it."""
    places = {name: "disk" for name, _ in model.model.named_children()}
    places = {f"model.{name}": place for name, place in places.items()}
    places |= {"model.vision_tower": "cpu", "lm_head": "cpu"}
    if hasattr(model.model, "image_newline"):
        places["model.image_newline"] = "cpu"
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder)
    assert model.hf_device_map == places


@BOTH
@EACH
@ORDERS
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match")  # image_newline
def test_dispatched_by_a_device_map_it_is_the_same(
    kind: str, name: str, first: str, tmp_path: Path
) -> None:
    model = LLAVAS[kind]()
    if first == "other":
        dispatched(model, tmp_path)
    with build(name).attach(model):
        if first == "attach":
            dispatched(model, tmp_path)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert run(model, given(kind)).near(expected(kind, name))
    assert run(model, given(kind)).near(expected(kind, None))


# ------------------------------------------------------------------------------------ training


def labelled(kind: str) -> dict[str, Tensor]:
    """With labels at the words, and none at padding and placeholders."""
    inputs = given(kind)
    ids = inputs["input_ids"]
    nowhere = (inputs["attention_mask"] == 0) | (ids == hf.IMAGE)
    return {**inputs, "labels": ids.masked_fill(nowhere, -100)}


def gradients(model: Any, *batches: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of several forwards and one backward."""
    model.zero_grad()
    torch.stack([model(**batch).loss * (i + 1) for i, batch in enumerate(batches)]).sum().backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        gap(one[k], other[k]) <= 1e-5 * float(other[k].abs().max()) for k in one
    )


@EACH
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_are_right_or_refused(name: str) -> None:
    """Which of them depends on the version of transformers; where tokens leave in the tower: refused."""
    model = hf.llava().train()
    build(name).attach(model)
    plain = gradients(model, labelled("llava"))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    found = refused = None
    try:
        found = gradients(model, labelled("llava"))
    except AttachError as error:
        refused = str(error)
    if refused is None:
        assert name in ("divprune", "fastv")
        assert same(found or {}, plain)
    else:
        assert name != "divprune"
        assert "use_reentrant=False" in refused
    model.gradient_checkpointing_disable()
    assert same(gradients(model, labelled("llava")), plain)


@EACH
def test_distributed_data_parallel(name: str, tmp_path: Path) -> None:
    model = hf.llava().train()
    build(name).attach(model)
    plain = gradients(model, labelled("llava"))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        # The tower's last block is read by nobody, in the bare model too.
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        for _ in range(2):
            found = gradients(wrapped, labelled("llava"))
            assert same({k.removeprefix("module."): grad for k, grad in found.items()}, plain)
        again = build(name).attach(wrapped, replace=True)  # what is inside is attached to
        assert again.model is model
        found = gradients(wrapped, labelled("llava"))
        assert same({k.removeprefix("module."): grad for k, grad in found.items()}, plain)
    finally:
        torch.distributed.destroy_process_group()


@EACH
def test_trainer_is_a_loop_by_hand(name: str, tmp_path: Path) -> None:
    batch = labelled("llava")
    model, by_hand = hf.llava(), hf.llava().train()
    build(name).attach(model)
    build(name).attach(by_hand)
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
    for key, value in by_hand.state_dict().items():
        assert gap(model.state_dict()[key], value) <= 1e-5, key


# -------------------------------------------------------------------------- adapters of weights


def adapted(model: Any) -> Any:
    """LoRA on queries and values of tower and language model, with weights that matter."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return wrapped


@EACH
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_lora_before_and_after(name: str) -> None:
    inputs = given("llava")
    first, then = hf.llava(), hf.llava()
    attached = build(name).attach(first)
    one = adapted(first)
    said = run(one, inputs)
    assert gap(said.logits, expected("llava", name).logits) > 1e-2
    two = adapted(then)
    bare = run(two, inputs)
    build(name).attach(two)
    assert run(two, inputs).near(said)
    one.train()
    loss = one(**labelled("llava")).loss
    loss.backward()
    learnt = [k for k, p in one.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert all("lora_" in key for key in learnt)
    assert any("vision_tower" in key for key in learnt)
    assert any("language_model" in key for key in learnt)
    merged = one.eval().merge_and_unload()
    assert merged is first
    assert run(merged, inputs).near(said, 1e-3)
    attached.detach()
    assert hooked(merged) == []
    assert run(merged, inputs).near(bare, 1e-3)


@EACH
@ORDERS
@pytest.mark.skipif(
    not hasattr(torch.ao.quantization, "quantize_dynamic"), reason="this torch has no such function"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_linear_layers(name: str, first: str) -> None:
    def quantise(model: Any) -> None:
        language = model.model.language_model
        torch.ao.quantization.quantize_dynamic(language, {nn.Linear}, torch.qint8, inplace=True)
        assert type(language.layers[0].mlp.up_proj) is not nn.Linear

    model, inputs = hf.llava(), given("llava")
    if first == "other":
        quantise(model)
        attached = build(name).attach(model)
    else:
        attached = build(name).attach(model)
        quantise(model)
    said = run(model, inputs)
    exact = expected("llava", name)
    assert said.logits.shape == exact.logits.shape
    attached.detach()
    bare = run(model, inputs)
    twin = hf.llava()
    quantise(twin)
    assert run(twin, inputs).near(bare)
    build(name).attach(twin)
    assert run(twin, inputs).near(said)
    assert gap(said.logits, bare.logits[:, -said.logits.shape[1] :]) > 1e-3


# ------------------------------------------------------------------------------------ compiled


def compiled(model: Any, part: str, inplace: bool) -> Any:
    tower = part.endswith("tower")
    options: dict[str, Any] = {"backend": "aot_eager" if tower else "eager", "fullgraph": tower}
    module = model.get_submodule(part)
    if inplace:
        module.compile(**options)
        return model
    made = torch.compile(module, **options)
    owner, _, last = part.rpartition(".")
    setattr(model.get_submodule(owner), last, made)
    return model


COMPILED = [
    ("model.vision_tower", True, "evoprune"),
    ("model.language_model", False, "fastv"),
    ("", True, "divprune"),
]


@pytest.mark.parametrize(("part", "inplace", "name"), COMPILED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_after_attach_it_is_the_same(part: str, inplace: bool, name: str) -> None:
    """The tower without a graph break: fullgraph=True would raise."""
    # Each step has its layers, and no more: of the tower, all but the last are read.
    seen = {"num_hidden_layers": 3 if name == "evoprune" else 2}
    said_by = {"num_hidden_layers": 3 if name == "fastv" else 1}
    model = hf.llava(vision=seen, text=said_by)
    inputs = given("llava")
    zoo = tokenzoo.build("evoprune", keep=32, start=0) if name == "evoprune" else build(name)

    def said() -> list[Tensor]:
        """Logits, and those of the next tokens, by the cache; of a whole model the first alone."""
        options = {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad():
            found = [model(**inputs).logits]
            return found if part == "" else [*found, *model.generate(**inputs, **options).logits]

    bare = said()  # transformers puts hooks of its own on a model at its first run, under a lock
    torch._dynamo.reset()
    counters.clear()
    try:
        with zoo.attach(model):
            wanted = said()
            compiled(model, part, inplace)
            for one, other in zip(said(), wanted, strict=True):
                assert gap(one, other) <= 1e-4
            assert counters["stats"]["unique_graphs"] > 0
            with pytest.raises(AttachError, match="attach first, then compile"):
                zoo.attach(model, replace=True)
        for one, other in zip(said(), bare, strict=True):
            assert gap(one, other) <= 1e-4
    finally:
        torch._dynamo.reset()


# ------------------------------------------------------------------------- copies, and again


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("evoprune", "vision_tower"),
        ("tome", "vision_tower.encoder.layers.1"),
        ("divprune", "multi_modal_projector"),
        ("fastv", "language_model"),
    ],
)
def test_a_copy_of_a_part_is_refused(name: str, part: str) -> None:
    """Detached, the model would be bare, and the copy, which PEFT puts in its place, would reduce."""
    model = hf.llava()
    with build(name).attach(model), pytest.raises(AttachError, match="a part of Llava"):
        copy.deepcopy(model.model.get_submodule(part))
    copy.deepcopy(model.model.get_submodule(part))
    wrapped = nn.ModuleDict({"inside": model})
    build(name).attach(model)
    twin = copy.deepcopy(wrapped)["inside"]
    assert run(twin, given("llava")).near(expected("llava", name))


class BoomError(Exception):
    """An error of somebody else."""


class Stops(transformers.StoppingCriteria):
    """Raises after the first token."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise BoomError


@EACH
def test_an_error_between_two_tokens_leaves_nothing_behind(name: str) -> None:
    """The next call may be about something else."""
    model, inputs = hf.llava(), given("llava")
    build(name).attach(model)
    run(model, inputs)
    with pytest.raises(BoomError):
        model.generate(**inputs, max_new_tokens=2, stopping_criteria=[Stops()])
    words = hf.inputs(model, ["the cat"])
    with build(name).attach(hf.llava()) as fresh:
        assert run(model, words).near(run(fresh.model, words))
    assert run(model, inputs).near(expected("llava", name))
