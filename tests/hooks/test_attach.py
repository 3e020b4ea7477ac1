"""Attaching: what is refused, in which words, and that nothing is left; and every way of running."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import tokenzoo
from tests.adapters.models import (
    CLIP,
    DEIT3,
    DINO_REG,
    GAP,
    REG_GAP,
    SIGLIP,
    VIT,
    gap,
    images,
    traces,
)
from tests.adapters.models import one_thread as one_thread
from tokenzoo import plugins
from tokenzoo.errors import (
    AttachError,
    BadArgumentError,
    BudgetError,
    MissingEvidenceError,
    TokenzooError,
    UnsupportedModelError,
)
from tokenzoo.matchers import Drop, GridCentres, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Explicit, Once, Skip
from tokenzoo.scorers import CLSAttention, FeatureNorm


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@contextmanager
def refused(
    model: nn.Module, kind: type[TokenzooError], *words: str, x: Tensor | None = None
) -> Iterator[None]:
    """What is done inside raises this error with these words, and the model stays as it was."""
    before = None if x is None else run(model, x)
    left = traces(model)
    with pytest.raises(TokenzooError) as caught:
        yield
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value)
    assert traces(model) == left
    assert _get_current_function_mode_stack() == []
    if before is not None:
        assert torch.equal(run(model, x), before)


def dropping(scorer: Any, **options: Any) -> tokenzoo.Recipe:
    """Keep the tokens with the highest scores, in every other block."""
    return Recipe(
        Step(Stage.BLOCK, Skip(), SelectAssign(TopK(scorer), Drop()), Identity()), **options
    )


# ----------------------------------------------------------------------------------- refusals


class ConvNet(nn.Module):
    """A model that no adapter supports."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x)).mean((2, 3)))


def test_an_unknown_model() -> None:
    model = ConvNet()
    words = ("no adapter supports", f"{__name__}.ConvNet", "timm", "vision tower", "reduce()")
    with refused(model, UnsupportedModelError, *words, x=torch.randn(1, 3, 32, 32)):
        tokenzoo.build("evoprune").attach(model)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", None, torch.nn.functional.relu])
def test_what_is_no_module(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"is not a torch\.nn\.Module"):
        tokenzoo.build("evoprune").attach(model)


@pytest.mark.parametrize("how", ["wrapped", "in place", "a block", "a block in place"])
def test_a_compiled_model(how: str) -> None:
    model = VIT.build(depth=2)
    target = model
    if how == "wrapped":
        target = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    elif how == "a block":
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    else:
        model.blocks[1].compile(backend="eager")
    with refused(model, AttachError, "compiled", "attach first, then compile"):
        tokenzoo.build("evoprune", keep=0.5).attach(target)


def test_a_second_recipe() -> None:
    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    first = tokenzoo.build("evoprune", keep=50).attach(model)
    words = ("attached already", "Bipartite", "detach()", "replace=True")
    with refused(model, AttachError, *words, x=x):
        tokenzoo.build("tome", keep=20).attach(model)
    assert first.counts[-1] == 50

    second = tokenzoo.build("tome", keep=20).attach(model, replace=True)
    alone = VIT.build()
    tokenzoo.build("tome", keep=20).attach(alone)
    assert torch.equal(run(model, x), run(alone, x))
    assert second.counts[-1] == 20
    assert "detached from" in repr(first)
    assert "attached to" in repr(second)
    first.detach()  # of no effect on the second
    assert torch.equal(run(model, x), run(alone, x))
    second.detach()
    assert traces(model) == []
    assert torch.equal(run(model, x), bare)


def test_a_second_recipe_that_does_not_fit_leaves_the_first() -> None:
    model = SIGLIP.build()
    x = images(model)
    first = tokenzoo.build("evoprune", keep=50).attach(model)
    with refused(model, MissingEvidenceError, "cls_attention", x=x):
        tokenzoo.build(dropping(CLSAttention())).attach(model, replace=True)
    with refused(model, BudgetError, "out of reach", x=x):
        tokenzoo.build("evoprune", keep=1).attach(model, replace=True)
    assert model._tokenzoo_attached is first


def test_a_second_recipe_that_fails_the_proof_gives_the_first_back() -> None:
    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    first = tokenzoo.build("uniform", keep=50).attach(model)
    for block in model.blocks:
        block.attn.fused_attn = False
    expected = run(model, x)
    for _ in range(2):
        with pytest.raises(AttachError, match="0 fused attention calls"):
            tokenzoo.build("evoprune", keep=50).attach(model, replace=True)
        assert model._tokenzoo_attached is first
        assert torch.equal(run(model, x), expected)
        assert first.counts[-1] == 50
    first.detach()
    assert traces(model) == []
    assert gap(run(model, x), bare) <= 1e-5


@pytest.mark.parametrize(("name", "stage"), [("divprune", "PROJECTED"), ("cdpruner", "PROJECTED")])
def test_a_stage_that_the_model_does_not_have(name: str, stage: str) -> None:
    model = VIT.build()
    words = (f"Stage.{stage}", "VisionTransformer", "block, features, image", "zoo.reduce(x, ...)")
    with refused(model, AttachError, *words, x=images(model)):
        tokenzoo.build(name, keep=20).attach(model)


def test_a_single_block_is_named_by_the_schedule() -> None:
    model = VIT.build()
    step = Step(Stage.BLOCK(3), Once(), SelectAssign(GridCentres(), Drop()), Identity())
    with refused(model, AttachError, "Stage.BLOCK(3)", "schedule", x=images(model)):
        tokenzoo.build(Recipe(step, keep=50)).attach(model)


def test_a_step_at_the_image_stands_alone() -> None:
    model = VIT.build()
    match = SelectAssign(GridCentres(), Drop())
    steps = (Step(stage, Once(), match, Identity()) for stage in (Stage.IMAGE, Stage.BLOCK))
    with refused(model, AttachError, "must be the only step", x=images(model)):
        tokenzoo.build(Recipe(*steps, keep=49)).attach(model)


def test_evidence_that_the_model_does_not_show() -> None:
    model = SIGLIP.build()
    words = ("needs cls_attention", "VisionTransformer provide", "received_attention")
    with refused(model, MissingEvidenceError, *words, x=images(model)):
        tokenzoo.build(dropping(CLSAttention(), keep=20)).attach(model)
    with refused(VIT.build(), MissingEvidenceError, "needs cls_attention@-2"):
        tokenzoo.build(dropping(CLSAttention(layer=-2), keep=20)).attach(VIT.build())
    assert tokenzoo.build(dropping(CLSAttention(), keep=20)).attach(VIT.build()).plan().features


@pytest.mark.parametrize("name", ["evoprune", "tome"])
def test_an_attention_that_is_not_fused(name: str) -> None:
    model = VIT.build()
    for block in model.blocks:
        block.attn.fused_attn = False
    x = images(model)
    words = ("0 fused attention calls", "blocks.0.attn", "set fused_attn = True")
    with refused(model, AttachError, *words, x=x):
        tokenzoo.build(name).attach(model)
    for control in ("uniform", "pool", "random"):
        with tokenzoo.build(control, keep=49).attach(model) as attached:
            run(model, x)
            assert attached.counts[-1] == 49


def test_an_attention_that_is_not_fused_and_should_see_masses() -> None:
    """Nothing is asked of the attention but the bias, and the bias is never left out in silence."""
    model = VIT.build()
    x = images(model)
    step = tokenzoo.build("pool", keep=50).recipe.steps[0]
    attached = tokenzoo.build(Recipe(step, keep=50, proportional_attention=True)).attach(model)
    run(model, x)
    for block in model.blocks:
        block.attn.fused_attn = False
    with pytest.raises(AttachError, match="0 fused attention calls"):
        run(model, x)
    assert _get_current_function_mode_stack() == []
    attached.detach()

    model = SIGLIP.build()
    tokenzoo.build(Recipe(step, keep=50, proportional_attention=True)).attach(model)
    model.attn_pool.fused_attn = False
    with pytest.raises(AttachError, match="0 fused attention calls in the pooling"):
        run(model, images(model))


@pytest.mark.parametrize(("name", "fewest"), [("evoprune", 13), ("tome", 1)])
def test_a_budget_out_of_reach(name: str, fewest: int) -> None:
    model = VIT.build()
    x = images(model)
    if fewest > 1:
        words = (f"keep={fewest - 1} of 196", f"the fewest possible is {fewest}")
        with refused(model, BudgetError, *words, x=x):
            tokenzoo.build(name, keep=fewest - 1).attach(model)
    attached = tokenzoo.build(name, keep=fewest).attach(model)
    run(model, x)
    assert attached.counts[-1] == fewest


def test_a_schedule_that_does_not_fit_the_depth() -> None:
    model = VIT.build(depth=4)
    step = Step(Stage.BLOCK, Explicit((1,) * 5), SelectAssign(GridCentres(), Drop()), Identity())
    with refused(model, BadArgumentError, "depth of 4", "at most 4", x=images(model)):
        tokenzoo.build(Recipe(step)).attach(model)


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = copy.deepcopy(VIT.build(depth=2))
    with refused(model, AttachError, "inference mode"):
        tokenzoo.build("evoprune", keep=0.5).attach(model)


def test_a_plugin_that_fails() -> None:
    """The proof is passed, everything is installed, and then somebody else's hook raises."""

    class Plugin:
        @tokenzoo.hookimpl
        def tokenzoo_attached(self, attached: Any) -> None:
            raise ArithmeticError("not mine")

    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    with plugins.registered(Plugin()):
        with pytest.raises(ArithmeticError, match="not mine"):
            tokenzoo.build("evoprune").attach(model)
        assert traces(model) == []
        assert torch.equal(run(model, x), bare)
    first = tokenzoo.build("tome").attach(model)
    with plugins.registered(Plugin()):
        with pytest.raises(ArithmeticError, match="not mine"):
            tokenzoo.build("evoprune").attach(model, replace=True)
        assert model._tokenzoo_attached is first


# ------------------------------------------------------------------------------ before and after


def test_with_detaches_even_after_an_error() -> None:
    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    with tokenzoo.build("evoprune", keep=40).attach(model) as attached:
        assert attached.model is model
        assert gap(run(model, x), bare) > 1e-3
        assert attached.counts[-1] == 40
    assert traces(model) == []
    assert torch.equal(run(model, x), bare)
    with pytest.raises(ArithmeticError), tokenzoo.build("tome").attach(model):
        raise ArithmeticError
    assert traces(model) == []
    attached.detach()
    assert torch.equal(run(model, x), bare)


def test_state_dict_and_parameters_are_the_bare_models() -> None:
    for case in (VIT, SIGLIP, REG_GAP):
        model = case.build()
        keys = list(model.state_dict())
        names = [name for name, _ in model.named_modules()]
        parameters = [id(parameter) for parameter in model.parameters()]
        for name in ("evoprune", "downsample"):
            with tokenzoo.build(name, keep=0.25).attach(model):
                run(model, images(model))
                assert list(model.state_dict()) == keys
                assert [name for name, _ in model.named_modules()] == names
                assert [id(parameter) for parameter in model.parameters()] == parameters
                case.build().load_state_dict(model.state_dict())


def test_the_plugin_hook_is_called_once() -> None:
    told: list[Any] = []

    class Plugin:
        @tokenzoo.hookimpl
        def tokenzoo_attached(self, attached: Any) -> None:
            told.append((attached, attached.model, attached.recipe, attached.plan().features))

    model = VIT.build()
    with plugins.registered(Plugin()):
        attached = tokenzoo.build("evoprune", keep=40).attach(model)
        run(model, images(model))
        run(model, images(model))
        attached.detach()
        with pytest.raises(BudgetError):
            tokenzoo.build("evoprune", keep=1).attach(model)
    assert told == [(attached, model, attached.recipe, 40)]


def test_what_is_asked_before_a_pass() -> None:
    model = VIT.build()
    attached = tokenzoo.build("evoprune").attach(model)
    for name in ("counts", "mass", "record"):
        with pytest.raises(AttachError, match="has not run in this thread"):
            getattr(attached, name)
    run(model, images(model))
    assert attached.counts[-1] == 49
    with pytest.raises(AttachError, match="trace=True"):
        attached.record  # noqa: B018
    attached.detach()

    whole = tokenzoo.build("evoprune", keep=1.0).attach(model, trace=True)
    run(model, images(model))
    for name in ("mass", "record"):
        with pytest.raises(AttachError, match="nothing was reduced"):
            getattr(whole, name)


@pytest.mark.parametrize("name", ["evoprune", "tome", "random"])
def test_the_record_leads_from_the_first_tokens_to_the_last(name: str) -> None:
    model = DINO_REG.build()
    attached = tokenzoo.build(name, keep=30).attach(model, trace=True)
    run(model, images(model))
    record = attached.record
    record.check()
    assert record.keep.shape == (2, 35)
    assert record.dst.shape == (2, 201)
    assert torch.equal(record.keep[:, :5], torch.arange(5).expand(2, 5))
    counted = torch.stack([row[row >= 0].bincount(minlength=35) for row in record.dst])
    assert torch.equal(attached.mass, counted.float())
    assert (record.dst < 0).any() == (name == "random")


# -------------------------------------------------------------------------------- ways of running


@pytest.mark.parametrize("name", ["evoprune", "tome", "uniform"])
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    for case in (VIT, CLIP, SIGLIP):
        model = case.build()
        x = images(model, batch=4)
        tokenzoo.build(name, keep=30).attach(model)
        together = run(model, x)
        for i in range(4):
            assert gap(run(model, x[i : i + 1]), together[i : i + 1]) <= 1e-5
        assert gap(run(model, x.flip(0)), together.flip(0)) <= 1e-5


@pytest.mark.parametrize("case", [VIT, GAP, SIGLIP], ids=lambda case: case.name)
def test_a_copy_is_attached_to_itself(case: Any) -> None:
    model = case.build()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build("tome", keep=50).attach(model)
    expected = run(model, x)

    other = copy.deepcopy(model)
    mine = other._tokenzoo_attached
    assert mine is not attached
    assert mine.model is other
    with pytest.raises(AttachError, match="has not run"):
        mine.counts  # noqa: B018
    assert torch.equal(run(other, x), expected)
    assert mine.counts[-1] == 50

    # It runs its own weights, and nobody else's.
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    changed = run(other, x)
    assert gap(changed, expected) > 1e-3
    assert torch.equal(run(model, x), expected)
    fresh = case.build()
    fresh.load_state_dict(other.state_dict())
    tokenzoo.build("tome", keep=50).attach(fresh)
    assert torch.equal(run(fresh, x), changed)

    mine.detach()
    assert traces(other) == []
    assert torch.equal(run(model, x), expected)
    attached.detach()
    assert torch.equal(run(model, x), bare)


@pytest.mark.parametrize("case", [VIT, GAP, SIGLIP], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["evoprune", "tome", "downsample"])
def test_a_pickled_model_comes_back_attached(case: Any, name: str) -> None:
    model = case.build()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build(name, keep=0.16 if case is GAP else 0.25).attach(model)
    expected = run(model, x)

    for back in (pickle.loads(pickle.dumps(model)), _saved(model)):
        mine = back._tokenzoo_attached
        assert mine is not attached
        assert mine.model is back
        assert torch.equal(run(back, x), expected)
        assert mine.counts == attached.counts
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert torch.equal(run(back, x), expected)
        with torch.no_grad():
            for parameter, saved in zip(model.parameters(), back.parameters(), strict=True):
                parameter.copy_(saved)
        mine.detach()
        assert traces(back) == []
        assert torch.equal(run(back, x), bare)


def _saved(model: nn.Module) -> Any:
    """There and back through a file, as whole models are saved."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_compiled_equals_eager() -> None:
    """Of two blocks it reduces the first, and weighs in the second."""
    torch._dynamo.reset()
    model = REG_GAP.build(depth=2, img_size=128)
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build("evoprune", keep=40, start=0).attach(model)
    expected = run(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert gap(run(compiled, x), expected) <= 1e-5
    assert attached.counts == attached.plan().blocks
    assert gap(run(compiled, x + 1), run(model, x + 1)) <= 1e-5
    attached.detach()
    assert gap(run(compiled, x), bare) <= 1e-5  # it is compiled anew
    torch._dynamo.reset()


def test_compiled_with_an_attention_that_pools() -> None:
    torch._dynamo.reset()
    model = SIGLIP.build(depth=1, img_size=96)
    x = images(model)
    tokenzoo.build("tome", keep=20).attach(model)
    expected = run(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert gap(run(compiled, x), expected) <= 1e-5
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_exported_equals_eager(strict: bool) -> None:
    torch._dynamo.reset()
    model = DEIT3.build(depth=2, img_size=96)
    x = images(model)
    tokenzoo.build("evoprune", keep=20, start=0).attach(model)
    expected = run(model, x)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict)
    assert gap(run(program.module(), x), expected) <= 1e-5
    assert gap(run(program.module(), x + 1), run(model, x + 1)) <= 1e-5
    torch._dynamo.reset()


def test_two_attached_models_and_a_bare_one_in_three_threads() -> None:
    one, two, three = VIT.build(), CLIP.build(), VIT.build()
    tokenzoo.build("tome", keep=30).attach(one)
    tokenzoo.build("evoprune", keep=60).attach(two)
    jobs = [(model, images(model, seed=i)) for i, model in enumerate((one, two, three))]
    assert _in_threads(jobs, [run(model, x) for model, x in jobs]) == []


def test_the_same_model_in_two_threads() -> None:
    model = VIT.build(dynamic_img_size=True)
    attached = tokenzoo.build("tome", keep=0.25).attach(model)
    sizes = ((224, 224), (160, 160))
    jobs = [(model, images(model, seed=i, size=size)) for i, size in enumerate(sizes)]
    expected = [run(model, x) for model, x in jobs]
    here = attached.counts
    assert _in_threads(jobs, expected) == []
    assert attached.counts == here  # the last pass of this thread


def _in_threads(jobs: list[tuple[nn.Module, Tensor]], expected: list[Tensor]) -> list[Any]:
    """Run each job ten times in a thread of its own, at the same time; returns what went wrong."""
    wrong: list[Any] = []
    start = threading.Barrier(len(jobs))

    def work(index: int) -> None:
        model, x = jobs[index]
        start.wait()
        for _ in range(10):
            try:
                out = run(model, x)
                if not torch.equal(out, expected[index]):
                    wrong.append((index, gap(out, expected[index])))
            except Exception as error:
                wrong.append((index, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_a_pass_within_a_pass() -> None:
    """A hook in the middle of the model runs the same model on another image."""
    model = VIT.build(dynamic_img_size=True)
    x, other = images(model), images(model, seed=1, size=(160, 160))
    tokenzoo.build("tome", keep=0.25).attach(model)
    expected, inner_expected = run(model, x), run(model, other)
    inner: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner[0] = run(model, other)

    handle = model.blocks[3].register_forward_hook(hook)
    assert torch.equal(run(model, x), expected)
    assert torch.equal(inner[0], inner_expected)
    handle.remove()


def test_wrapped_for_data_parallel_training() -> None:
    model = VIT.build()
    x = images(model)
    attached = tokenzoo.build("evoprune", keep=40).attach(nn.DataParallel(model))
    assert attached.model is model
    run(model, x)
    assert attached.counts[-1] == 40


def test_inference_mode() -> None:
    model = VIT.build()
    x = images(model)
    attached = tokenzoo.build("evoprune", keep=40).attach(model)
    expected = run(model, x)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    assert attached.counts[-1] == 40


@pytest.mark.parametrize("name", ["evoprune", "tome", "uniform"])
def test_an_empty_batch_and_a_single_token(name: str) -> None:
    model = VIT.build()
    tokenzoo.build(name).attach(model)
    assert run(model, images(model)[:0]).shape == (0, 10)

    tiny = VIT.build(img_size=16)
    x = images(tiny)
    bare = run(tiny, x)
    attached = tokenzoo.build(name).attach(tiny)
    assert gap(run(tiny, x), bare) <= 1e-5
    assert attached.counts == (1,) * 8


def test_tokens_that_are_not_numbers_never_raise() -> None:
    model = VIT.build()
    x = images(model)
    x[0, :, :16, :16] = torch.nan
    x[1, :, 50, 50] = torch.inf
    for name in ("evoprune", "tome", "uniform"):
        with tokenzoo.build(name, keep=40).attach(model) as attached:
            run(model, x)
            assert attached.counts[-1] == 40


@pytest.mark.parametrize("name", ["evoprune", "tome"])
def test_maps_of_fewer_tokens_than_the_grid_are_refused(name: str) -> None:
    """A quarter of the tokens has just the numbers of a grid with a quarter of the channels."""
    model = DINO_REG.build()
    x = images(model)
    with torch.no_grad():
        _, bare = model.forward_intermediates(x, indices=[0, 7])
        attached = tokenzoo.build(name, keep=49).attach(model)
        for options in ({}, {"intermediates_only": True}, {"return_prefix_tokens": True}):
            with pytest.raises(AttachError, match=r"restore=True, or use output_fmt='NLC'"):
                model.forward_intermediates(x, indices=[7], **options)
        with pytest.raises(AttachError, match="restore=True"):
            model.forward_intermediates(x, indices=[7], output_dict=True)
        with pytest.raises(AttachError, match="restore=True"):
            model.get_intermediate_layers(x, reshape=True)

        _, features = model.forward_intermediates(x, indices=[0, 7], output_fmt="NLC")
        counts = attached.plan().blocks
        assert [y.shape[1] for y in features] == [counts[0], counts[7]]
        attached.detach()

        tokenzoo.build(name, keep=1.0).attach(model)
        _, whole = model.forward_intermediates(x, indices=[0, 7])
        assert all(gap(y, z) <= 1e-5 for y, z in zip(whole, bare, strict=True))


def test_score_by_norm_is_followed_exactly() -> None:
    """A selection whose outcome is known: the largest of the tokens after the attention."""
    model = VIT.build(depth=2)
    x = images(model)
    attached = tokenzoo.build(dropping(FeatureNorm(), keep=10)).attach(model, trace=True)
    seen: list[Tensor] = []
    model.blocks[1].attn.register_forward_hook(lambda module, args, out: seen.append(out))
    inputs: list[Tensor] = []
    model.blocks[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    run(model, x)
    after = inputs[-1] + seen[-1]
    for image in range(2):
        norms = after[image, 1:].norm(dim=-1)
        largest = sorted(range(196), key=lambda i: -float(norms[i]))[:10]
        assert attached.record.keep[image, 1:].tolist() == [i + 1 for i in sorted(largest)]


def test_an_interrupt_inside_an_attention_leaves_no_tap_for_long() -> None:
    """torch calls no hook after Ctrl-C; the next attached pass closes what was left open."""
    model = VIT.build()
    x = images(model)
    attached = tokenzoo.build("tome").attach(model)
    expected = run(model, x)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.blocks[3].attn.qkv.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(model, x)
    handle.remove()
    assert _get_current_function_mode_stack()  # so that this test could fail
    # Another attention of another length is left alone in between.
    q = torch.randn(2, 3, 7, 8)
    assert F.scaled_dot_product_attention(q, q, q).shape == q.shape
    assert torch.equal(run(model, x), expected)
    assert not _get_current_function_mode_stack()
    attached.detach()


def test_a_model_of_any_image_size_has_the_grid_of_the_pass() -> None:
    """The number of tokens does not say which grid they are: 7 x 28 is not 14 x 14."""
    model = VIT.build(dynamic_img_size=True)
    square, flat = images(model), images(model, size=(112, 448))
    attached = tokenzoo.build("pool", keep=0.25).attach(model, trace=True)
    for _ in range(2):
        for x, rows, columns in ((square, 14, 14), (flat, 7, 28)):
            run(model, x)
            assert attached.counts[-1] == 49
            joined = attached.record.dst[0, 1:].view(rows, columns)
            assert torch.equal(joined[0], joined[1])  # a cell is two rows high ...
            assert int(joined[0, 0]) == int(joined[0, 1])  # ... and two or three columns wide
            assert not torch.equal(joined[1], joined[2])
    attached.detach()
    with tokenzoo.build("downsample").attach(model) as attached:
        run(model, images(model))
        assert attached.counts[-1] == 49


def test_a_model_without_weights_is_refused() -> None:
    model = VIT.build().to("meta")
    with pytest.raises(AttachError, match="meta device"):
        tokenzoo.build("tome").attach(model)
    assert not traces(model)


def test_an_exported_pass_is_not_the_last_pass() -> None:
    model = VIT.build()
    attached = tokenzoo.build("tome").attach(model)
    x = images(model)
    run(model, x)
    torch.export.export(model, (x,), strict=False)
    assert attached.mass.sum().item() == pytest.approx(2 * 197)
