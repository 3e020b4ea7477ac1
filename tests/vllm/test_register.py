"""The plugin where vLLM looks for it: nothing without a recipe, an error where it cannot serve one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tokenzoo_adapters import vllm as ours
from tokenzoo_adapters.vllm.recipe import VARIABLE, check_server, served

import tokenzoo
from tokenzoo.errors import AttachError, BadArgumentError, MissingDependencyError


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "recipe.json"
    tokenzoo.build("evoprune", keep=16).save(path)
    monkeypatch.setenv(VARIABLE, str(path))
    return path


class Registry:
    """As vLLM's, of one architecture."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.registered: dict[str, str] = {}

    def register_model(self, architecture: str, name: str) -> None:
        self.registered[architecture] = name

    def resolve_model_cls(self, architecture: str, config: Any) -> tuple[type, str]:
        del config
        return self.kind, architecture


def fake(monkeypatch: pytest.MonkeyPatch, kind: type, version: str = "0.32.0") -> Registry:
    """Put a vLLM into the place of the real one."""
    registry = Registry(kind)

    class Runner:
        uses_mrope = True
        is_multimodal_pruning_enabled = False

        proved = False

        def load_model(self) -> str:
            return "loaded"

        def get_model(self) -> Any:
            return self

        def prove_recipe(self) -> None:
            self.proved = True

    library = ModuleType("vllm")
    vars(library).update(__version__=version, ModelRegistry=registry)
    platforms = ModuleType("vllm.platforms")
    vars(platforms)["current_platform"] = SimpleNamespace(is_cpu=lambda: True)
    worker = ModuleType("vllm.v1.worker.cpu_model_runner")
    vars(worker)["CPUModelRunner"] = Runner
    for module in (library, platforms, worker):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return registry


def test_the_entry_point_leads_here() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (value,) = project["entry-points"]["vllm.general_plugins"].values()
    assert EntryPoint("tokenzoo", value, "vllm.general_plugins").load() is ours.register


def test_importing_and_registering_without_a_recipe_imports_nothing() -> None:
    code = (
        "import sys; from tokenzoo_adapters.vllm import register; register(); "
        "sys.exit('vllm' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", **_paths()})


def _paths() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}


def test_our_class_takes_the_place_of_the_backend(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del recipe
    registry = fake(monkeypatch, type(ours.OURS, (), {}))
    ours.register()
    ours.register()  # vLLM may call it again
    assert registry.registered == {ours.BACKEND: f"tokenzoo_adapters.vllm.model:{ours.OURS}"}
    assert registry.resolve_model_cls("A", None)[1] == "A"
    runner: Any = sys.modules["vllm.v1.worker.cpu_model_runner"].CPUModelRunner()
    assert runner.load_model() == "loaded"
    assert runner.is_multimodal_pruning_enabled
    assert runner.proved


def test_a_class_of_vllm_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del recipe
    registry = fake(monkeypatch, type("LlavaForConditionalGeneration", (), {}))
    ours.register()
    with pytest.raises(AttachError, match=r"LlavaFor.*add --model-impl transformers"):
        registry.resolve_model_cls("A", None)


@pytest.mark.parametrize("version", ["0.9.1", "0.31.2"])
def test_a_version_that_is_too_old_is_refused(
    version: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del recipe
    fake(monkeypatch, object, version)
    with pytest.raises(AttachError, match=f"vLLM {version} is too old"):
        ours.register()


def test_a_version_without_a_name_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del recipe
    fake(monkeypatch, object)
    monkeypatch.delattr("vllm.ModelRegistry")
    with pytest.raises(AttachError, match=r"vLLM 0.32.0 has no vllm\.ModelRegistry"):
        ours.register()


def test_a_recipe_without_vllm_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del recipe
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match="vllm is not installed"):
        ours.register()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fastv", "works at .*in the language model"),
        ("cdpruner", "by the text of the prompt"),
        ("dynamicvit", "parts that learn"),
    ],
)
def test_recipes_that_cannot_be_served(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenzoo.build(name).save(tmp_path / "recipe.json")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "recipe.json"))
    with pytest.raises(AttachError, match=words):
        ours.register()


@pytest.mark.parametrize(
    ("parallel", "rest", "words"),
    [
        ({"tensor_parallel_size": 2}, {}, "tensor_parallel_size=2"),
        ({"pipeline_parallel_size": 3}, {}, "pipeline_parallel_size=3"),
        ({}, {"speculative_config": object()}, "speculative decoding"),
        ({}, {"compile_mm_encoder": True}, "compile_mm_encoder"),
    ],
)
def test_servers_that_were_not_tried(
    parallel: dict[str, int], rest: dict[str, Any], words: str
) -> None:
    plain = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    compiling = SimpleNamespace(compile_mm_encoder=rest.get("compile_mm_encoder", False))
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**{**plain, **parallel}),
        speculative_config=rest.get("speculative_config"),
        compilation_config=compiling,
    )
    with pytest.raises(AttachError, match=words):
        check_server(config)


def test_a_file_that_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(BadArgumentError, match="is not set"):
        served()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.json"))
    with pytest.raises(BadArgumentError, match="is not a saved recipe"):
        ours.register()


def test_another_recipe_has_another_digest(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = served()
    other = recipe.with_name("other.json")
    tokenzoo.build("evoprune", keep=17).save(other)
    monkeypatch.setenv(VARIABLE, str(other))
    assert served().digest != first.digest
    same = recipe.with_name("same.json")
    same.write_bytes(recipe.read_bytes())
    monkeypatch.setenv(VARIABLE, str(same))
    assert served().digest == first.digest
