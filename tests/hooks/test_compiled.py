"""torch.compile and torch.export of attached models, and of what changes after it was compiled.

Every family of models is compiled and exported in tests/conformance/test_compiled.py.
"""

from __future__ import annotations

import copy
import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo import config
from torch.overrides import _get_current_function_mode_stack

import tokenzoo
from tests.adapters.models import DEIT3, GAP, SIGLIP, VIT, gap, images
from tests.compiling import clean_compiler as clean_compiler
from tests.compiling import graphs
from tests.hooks.running import blocks_of, made, run, tiny
from tokenzoo.errors import AttachError

pytestmark = pytest.mark.usefixtures("clean_compiler")
compiled: Any = partial(torch.compile, backend="eager", fullgraph=True)


@pytest.mark.parametrize(
    ("case", "name", "options"),
    [(VIT, "evoprune", {"start": 0}), (VIT, "downsample", {}), (SIGLIP, "tome", {})],
    ids=["token", "image", "attention pooling"],
)
def test_a_compiled_model_follows_pauses_and_modes(
    case: Any, name: str, options: dict[str, Any]
) -> None:
    """No stale graph: each state has its own, and the first is found again."""
    model = tiny(case)
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build(name, keep=8, **options).attach(model, when="eval")
    reduced = run(model, x)
    assert gap(reduced, bare) > 1e-3
    fast = compiled(model)
    for _ in range(2):
        assert gap(run(fast, x), reduced) <= 1e-5
        assert attached.counts[-1] == 8
        with attached.paused():
            assert gap(run(fast, x), bare) <= 1e-5
            assert attached.counts == (16, 16)
        model.train()
        assert gap(run(fast, x), bare) <= 1e-5
        assert attached.counts == (16, 16)
        model.eval()
    assert graphs() == 3


def test_a_compiled_model_restores() -> None:
    model = tiny()
    x = images(model)
    tokenzoo.build("evoprune", keep=9, start=0).attach(model, restore=True)
    with torch.no_grad():
        expected = model.forward_features(x)
        assert gap(compiled(model.forward_features)(x), expected) <= 1e-5


def test_debug_cannot_be_compiled_without_graph_breaks() -> None:
    """It looks at values: an error with fullgraph=True, a graph break without, and never silence."""
    model = tiny()
    x = images(model)
    tokenzoo.build("pool", keep=4).attach(model, debug=True)
    expected = run(model, x)
    bad = x.clone()
    bad[1, 0, 0, 0] = torch.nan
    with pytest.raises(Exception, match="cannot be compiled with fullgraph=True: attach"):
        run(compiled(model), x)
    broken = torch.compile(model, backend="eager")
    assert gap(run(broken, x), expected) <= 1e-5
    with pytest.raises(AttachError, match=r"blocks\.1; .*token 0 of image 1"):
        run(broken, bad)
    assert _get_current_function_mode_stack() == []


def test_a_compiled_pass_is_a_pass() -> None:
    """Its counts, masses and record are told, in every thread, and are not those of an earlier pass."""
    model = tiny()
    batches = [images(model, seed=i) for i in range(2)]
    zoo = tokenzoo.build("tome", keep=6)
    expected: list[tuple[Any, ...]] = []
    with zoo.attach(model, trace=True) as attached:
        for x in batches:
            expected.append((run(model, x), attached.counts, attached.mass, attached.record.dst))
    assert not torch.equal(expected[0][2], expected[1][2])
    attached = zoo.attach(model, trace=True)
    fast, wrong = compiled(model), list[BaseException]()

    def check() -> None:
        try:
            for x, (out, counts, mass, dst) in zip(batches, expected, strict=True):
                assert gap(run(fast, x), out) <= 1e-5
                assert attached.counts == counts
                assert torch.equal(attached.mass, mass)
                assert torch.equal(attached.record.dst, dst)
        except BaseException as error:
            wrong.append(error)

    check()
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert wrong == []
    assert graphs() == 1


def test_graph_breaks_change_nothing() -> None:
    """Somebody's hooks look at values, and torch compiles what is before, between and after them."""
    model = tiny(GAP)
    x = images(model)
    attached = tokenzoo.build("tome", keep=6).attach(model)
    expected, counts = run(model, x), attached.counts
    seen: list[float] = []
    for place in ("blocks.0", "blocks.0.mlp", "blocks.1.attn.proj"):
        model.get_submodule(place).register_forward_hook(
            lambda module, args, out: seen.append(float(out.sum()))
        )
    assert gap(run(torch.compile(model, backend="eager"), x), expected) <= 1e-5
    assert len(seen) == 3
    assert attached.counts == counts
    assert _get_current_function_mode_stack() == []


def test_models_of_one_class_do_not_run_what_was_compiled_for_each_other() -> None:
    """torch does not look whether hooks came or went since."""
    model, other = tiny(), tiny()
    x = images(model)
    bare = run(model, x)
    with config.patch(skip_nnmodule_hook_guards=True):  # as before the first attach
        early = compiled(model)
        assert gap(run(early, x), bare) <= 1e-5
        attached = tokenzoo.build("tome", keep=5).attach(model)
        reduced = run(model, x)
        assert gap(reduced, bare) > 1e-2
        late = compiled(copy.deepcopy(model))
        assert gap(run(late, x), reduced) <= 1e-5
        assert gap(run(early, x), reduced) <= 1e-5
        assert gap(run(compiled(other), x), bare) <= 1e-5
        attached.detach()
        assert gap(run(early, x), bare) <= 1e-5
        assert gap(run(late, x), reduced) <= 1e-5  # the copy is still attached


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_an_exported_model_is_the_model_and_its_tracing_no_pass(strict: bool) -> None:
    model = DEIT3.build(depth=2, img_size=96)
    x = images(model)
    attached = tokenzoo.build("evoprune", keep=20, start=0).attach(model)
    expected, mass = run(model, x), attached.mass
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict).module()
    assert torch.equal(attached.mass, mass)
    assert gap(run(program, x), expected) <= 1e-5
    assert gap(run(program, x + 1), run(model, x + 1)) <= 1e-5


def by_method(block: Any, blocks: Any) -> None:
    block.compile(backend="eager")


def by_wrapper(block: Any, blocks: Any) -> None:
    index = next(i for i, one in enumerate(blocks) if one is block)
    blocks[index] = torch.compile(block, backend="eager")


def attention_only(block: Any, blocks: Any) -> None:
    names = [name for name, _ in block.named_children() if "att" in name and "norm" not in name]
    block.get_submodule(names[0]).compile(backend="eager")


@pytest.mark.parametrize(
    ("tower", "name", "how"),
    [
        ("timm ViT", "visionzip", by_wrapper),
        ("timm ViT", "uniform", attention_only),
        ("torchvision", "tome", by_method),
        ("siglip", "random", by_wrapper),
        ("qwen2_vl tower", "tome", by_method),
    ],
)
@torch.no_grad()
def test_a_block_that_is_compiled_by_itself_is_refused(tower: str, name: str, how: Any) -> None:
    model, call = made(tower)
    bare, blocks = call(), blocks_of(model, 2)
    attached = tokenzoo.build(name, keep=0.5).attach(model)
    how(list(blocks)[-1], blocks)
    with pytest.raises(AttachError, match=r"compiled by itself.*Compile the whole model"):
        call()
    attached.detach()
    with torch.compiler.set_stance("force_eager"):  # nothing of ours refuses any more
        assert gap(call(), bare) <= 1e-5


@torch.no_grad()
def test_what_is_around_the_blocks_may_be_compiled() -> None:
    model, call = made("timm ViT")
    tokenzoo.build("tome", keep=0.5).attach(model)
    expected = call()
    blocks_of(model, 2).compile(backend="eager", fullgraph=True)
    assert gap(call(), expected) <= 1e-5
