"""Training: what learns, that it is seeded, and that an interruption changes nothing of the result."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tokenzoo
from tests.cli.calling import small_vit as small_vit
from tests.refusals import refused
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.training import (
    DigitsTask,
    FolderTask,
    Interrupted,
    Progress,
    Training,
    train,
)
from tokenzoo.tools import digits

pytestmark = [
    pytest.mark.filterwarnings("ignore::tokenzoo.errors.UntrainedWarning"),
    pytest.mark.usefixtures("small_vit"),
]
SHORT = Training(steps=4, every=2)


@pytest.fixture
def task() -> DigitsTask:
    return DigitsTask(batch=3, samples=4)


def method(name: str = "dynamicvit", **options: Any) -> tokenzoo.Method:
    return tokenzoo.build(name, **{"keep": 16, "at": (0, 2), **options})


def weights(trained: tokenzoo.Method) -> dict[str, torch.Tensor]:
    with trained.attach(digits.load_digits_vit()) as attached:
        return {name: p.detach().clone() for name, p in attached.learned.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", ["dynamicvit", "patchmerger", "sinkhorn", "sit"])
def test_the_parts_learn_and_the_model_does_not(name: str, task: DigitsTask) -> None:
    model = task.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, made = weights(method(name)), method(name)
    seen: list[Progress] = []
    curve = train(made, task, SHORT, tell=seen.append)
    assert not same(weights(made), first)
    assert same({**model.state_dict()}, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert not hasattr(model, "_tokenzoo_attached")
    assert [one.step for one in seen] == [1, 2, 3, 4]
    assert [one.noted for one in seen] == curve
    assert {"loss", "teacher", "task", "keep"} <= curve[0].keys()
    assert ("penalty" in curve[0]) == (name == "dynamicvit")
    assert ["score counts" in noted for noted in curve] == [False, True, False, True]


def test_a_loss_falls(task: DigitsTask) -> None:
    curve = train(method("sit"), task, Training(steps=40, every=40, rate=3e-3, task=0.0))
    losses = [noted["teacher"] for noted in curve]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_seed_says_all_and_the_callers_generator_is_left_alone(task: DigitsTask) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 7)  # has no say
        state, made = torch.get_rng_state(), method()
        curve = train(made, task, Training(steps=3, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        found.append((curve, weights(made)))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])
    assert not same(found[0][1], found[2][1])


def interrupting(at: int) -> Any:
    def tell(now: Progress) -> None:
        if now.step == at:
            signal.raise_signal(signal.SIGINT)

    return tell


@pytest.mark.parametrize("tuned", [False, True])
def test_interrupted_and_resumed_is_uninterrupted(
    tuned: bool, task: DigitsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Training(steps=6, every=4, tune_model=tuned, anneal=0.5)
    start = {key: value.clone() for key, value in task.model.state_dict().items()}
    found = []
    for stops in (False, True):
        task.model.load_state_dict(start)
        made, path, curve = method(), tmp_path / f"{stops}.safetensors", None
        handler = signal.getsignal(signal.SIGINT)
        if stops:
            with pytest.raises(Interrupted, match="stopped after 3 of 6 steps"):
                train(made, task, how, path=path, tell=interrupting(2))
            assert [*tmp_path.glob("*.part")] == []
            made = method()  # another process has neither these weights nor the model's
            task.model.load_state_dict(start)
        curve = train(made, task, how, path=path)
        assert signal.getsignal(signal.SIGINT) is handler
        found.append((curve, weights(made), {**task.model.state_dict()}))
        found[-1] = (found[-1][0], found[-1][1], {k: v.clone() for k, v in found[-1][2].items()})
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])
    assert same(found[0][2], found[1][2])
    assert same(found[0][2], start) != tuned


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT: a shell lets processes in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_is_not_waited_for(task: DigitsTask, interruptible: None) -> None:
    def tell(now: Progress) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(method(), task, SHORT, tell=tell)
    assert not hasattr(task.model, "_tokenzoo_attached")


def test_it_also_runs_in_another_thread(task: DigitsTask) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(train(method(), task, SHORT)))
    thread.start()
    thread.join()
    assert len(found[0]) == 4


def test_a_checkpoint_is_of_one_training(task: DigitsTask, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    train(method(), task, SHORT, path=path)
    for other, how in ((method(keep=15), SHORT), (method(), Training(steps=5, every=2))):
        call = partial(train, other, task, how, path=path)
        refused(call, "another training", "Delete it")
    path.write_bytes(path.read_bytes()[:-9])
    refused(lambda: train(method(), task, SHORT, path=path), "not a checkpoint", "Delete it")


def test_annealing_goes_through_fewer_and_fewer_tokens(task: DigitsTask) -> None:
    made = method("evit", at=(0, 2))
    curve = train(made, task, Training(steps=10, every=5, tune_model=True, anneal=0.8))
    keeps = [noted["keep"] for noted in curve]
    assert keeps == sorted(keeps, reverse=True)
    assert keeps[0] > 50
    assert keeps[-2:] == [16, 16]
    assert len(set(keeps)) > 4
    refused(
        lambda: train(method("sit"), task, Training(anneal=0.5)), "anneal", "one number of tokens"
    )


def test_there_must_be_something_to_train(task: DigitsTask) -> None:
    refused(lambda: train(method("evit"), task, SHORT), "--tune-model")


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"rate": 0.0},
        {"anneal": 1.5},
        {"teacher": -1.0},
        {"tune_model": 1},
        {"seed": -1},
    ],
)
def test_bad_numbers(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    refused(lambda: Training(**options), f"{name}={value!r}")


def test_a_folder_teaches_without_labels(tmp_path: Path) -> None:
    for i in range(12):
        pixels = torch.randint(0, 255, (40, 48, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    task = FolderTask("vit_tiny_patch16_224", tmp_path, batch=2, count=12)
    curve = train(tokenzoo.build("sit", keep=20), task, Training(steps=1))
    assert curve[0].keys() == {"step", "loss", "keep", "teacher", "score likeness"}
    assert task.batch(3)[0].shape == (2, 3, 224, 224)
    assert torch.equal(task.batch(3)[0], task.batch(3)[0])
    for i in range(5):
        (tmp_path / f"{i}.png").unlink()
    refused(lambda: FolderTask("vit_tiny_patch16_224", tmp_path), "7 images", kind=BadArgumentError)
