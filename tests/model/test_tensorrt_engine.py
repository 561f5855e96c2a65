"""What can be said of the tensorrt engine without a GPU: every name it uses is TensorRT's, and plans have safe names.

That it runs is tested nowhere but on a GPU: the last test here is skipped elsewhere.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import Checkpoint
from model.engines import load_engine, tensorrt_engine
from model.engines.tensorrt_engine import Gpu, TensorRtSettings, chosen_precision, plan_name
from tests.conftest import SHARED

API_FILE = SHARED / "tensorrt" / "api-11.4.txt"
ONLY_IN_BINDINGS = {"__version__", "IHostMemory"}
"""Used, and not in the list of the API: held against the bindings only, where they can be imported."""

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0))
T4 = Gpu("Tesla T4", (7, 5))

Signatures = dict[str, dict[str, str]]
"""Class → its members → a method's signature, or "" where there is none to know."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of a name of TensorRT's in the engine's source; `call` where it is called."""

    owner: str
    member: str
    line: int
    call: ast.Call | None = None
    result: str | None = None
    """The class that the engine's annotation says the call returns."""


class Uses(ast.NodeVisitor):
    """Collects what of `trt` a module uses: `trt.Class.MEMBER`, and members of whatever is annotated `x: trt.Class`."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[Use] = []
        self.attributes: dict[str, str] = {}
        """Of `self`, for the whole module."""
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                self._note(self.attributes, node.target.attr, node.annotation)
        self.names: dict[str, str] = {}
        self.calls: dict[ast.expr, ast.Call] = {}
        self.results: dict[ast.expr, str] = {}
        self.visit(tree)

    def visit_FunctionDef(self, function: ast.FunctionDef) -> None:
        outer, self.names = self.names, dict(self.names)
        for argument in function.args.args:
            if argument.annotation is not None:
                self._note(self.names, argument.arg, argument.annotation)
        self.generic_visit(function)
        self.names = outer

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._note(self.names, node.target.id, node.annotation)
        if node.value is not None and (kind := _class_of(node.annotation)):
            self.results[node.value] = kind
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.calls[node.func] = node
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self._owner(node.value)
        if owner is not None:
            call = self.calls.get(node)
            self.found.append(Use(owner, node.attr, node.lineno, call, self.results.get(call) if call else None))
        elif isinstance(node.value, ast.Name) and node.value.id == "trt":
            call = self.calls.get(node)
            self.found.append(Use(node.attr, "__init__" if call else "", node.lineno, call))
        self.generic_visit(node)

    def _owner(self, value: ast.expr) -> str | None:
        if isinstance(value, ast.Name):
            return self.names.get(value.id)
        if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
            if value.value.id == "self":
                return self.attributes.get(value.attr)
            if value.value.id == "trt":
                return value.attr
        return None

    def _note(self, names: dict[str, str], name: str, annotation: ast.expr) -> None:
        kind = _class_of(annotation)
        if kind is not None:
            names[name] = kind


def _class_of(annotation: ast.expr) -> str | None:
    match = re.fullmatch(r"trt\.(\w+)", ast.unparse(annotation))
    return match[1] if match else None


def listed_signatures() -> Signatures:
    """What the list of TensorRT 11.4's API says."""
    classes: Signatures = {}
    for line in API_FILE.read_text().splitlines()[1:]:
        if line.startswith("## "):
            members = classes.setdefault(line[3:], {})
        elif match := re.match(r"  \.?(\w+)(\(.*)?", line):
            members[match[1]] = match[2] or ""
    return classes


def bound_signatures(trt: Any) -> Signatures:
    """What the imported bindings say, by their docstrings."""
    classes: Signatures = {"__version__": {}}
    for name, kind in vars(trt).items():
        if inspect.isclass(kind):
            members = classes.setdefault(name, {})
            for member in dir(kind):
                overload = re.match(rf"{member}(\(.*)", getattr(kind, member).__doc__ or "")
                members[member] = overload[1] if overload else ""
    return classes


def problems(uses: list[Use], api: Signatures) -> list[str]:
    """Names that are not there, calls that don't fit their signature, results of another class than annotated."""
    found = []
    for use in uses:
        where = f"line {use.line}: {use.owner}.{use.member}"
        if use.owner not in api:
            found.append(f"line {use.line}: there is no {use.owner}")
        elif use.member and use.member not in api[use.owner]:
            found.append(f"{where} does not exist")
        elif use.call and use.member and not (signature := api[use.owner][use.member]).startswith("(*args"):
            parameters = [name for name in re.findall(r"[(,] (?:\*+)?(\w+):", "( " + signature[1:]) if name != "self"]
            required = len(parameters) - len(re.findall(r" = ", signature))
            given = len(use.call.args) + len(use.call.keywords)
            wrong = [keyword.arg for keyword in use.call.keywords if keyword.arg not in parameters]
            if wrong or not required <= given <= len(parameters):
                found.append(f"{where} takes {parameters}, not {ast.unparse(use.call)}")
            returned = re.search(r"-> tensorrt_bindings\.tensorrt\.(\w+)$", signature)
            if use.result and use.member != "__init__" and (returned is None or returned[1] != use.result):
                found.append(f"{where} returns {signature.split('->')[-1]}, not {use.result}")
    return found


@pytest.fixture(scope="module")
def uses() -> list[Use]:
    return Uses(ast.parse(inspect.getsource(tensorrt_engine))).found


def test_names_and_signatures_are_those_of_the_listed_api(uses: list[Use]) -> None:
    if not API_FILE.is_file():
        pytest.skip(f"no list of TensorRT's API at {API_FILE}")
    listed = [use for use in uses if use.owner not in ONLY_IN_BINDINGS]
    assert problems(listed, listed_signatures()) == []


def test_names_and_signatures_are_those_of_the_bindings(uses: list[Use]) -> None:
    trt = pytest.importorskip(
        "tensorrt_bindings", reason="TensorRT's bindings cannot be imported here", exc_type=ImportError
    )
    assert problems(uses, bound_signatures(trt)) == []


def test_the_collector_sees_what_the_engine_does(uses: list[Use]) -> None:
    """Of each step of compiling and running a name that must be among them, and enough in all."""
    members = {(use.owner, use.member) for use in uses}
    assert members >= {
        ("Builder", "__init__"),
        ("Builder", "build_serialized_network"),
        ("BuilderFlag", "STRICT_NANS"),
        ("OnnxParser", "parse_from_file"),
        ("IOptimizationProfile", "set_shape"),
        ("IBuilderConfig", "hardware_compatibility_level"),
        ("ITimingCache", "serialize"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "get_tensor_dtype"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
        ("DataType", "UINT8"),
    }
    assert len(members) > 40


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("trt.Bilder(logger)", "there is no Bilder"),
        ("trt.Builder()", r"takes \['logger'\]"),
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16 does not exist"),
        ("config.max_workspace_size = 1", "IBuilderConfig.max_workspace_size does not exist"),
        ("config.set_timing_cache(b'')", "takes .*ignore_mismatch"),
        ("config.set_timing_cache(b'', ignore=True)", "takes .*ignore_mismatch"),
        ("x: trt.Runtime = config.get_timing_cache()", "returns .*ITimingCache, not Runtime"),
    ],
)
def test_the_contract_test_can_fail(line: str, problem: str) -> None:
    if not API_FILE.is_file():
        pytest.skip(f"no list of TensorRT's API at {API_FILE}")
    source = f"def f(config: trt.IBuilderConfig, logger: trt.Logger):\n    {line}"
    (found,) = problems(Uses(ast.parse(source)).found, listed_signatures())
    assert re.search(problem, found)


def test_a_plan_is_found_only_by_whom_it_fits(checkpoint: Checkpoint) -> None:
    default, version = TensorRtSettings(), "11.4.0.106"
    name = plan_name(checkpoint, "bf16", H100, version, default)
    assert name.startswith("tensorrt-11.4.0.106-nvidia-h100-80gb-hbm3-sm90-tiny-")
    assert name.endswith("-bf16-b64-256-o3")
    changed = [
        plan_name(checkpoint, "fp16", H100, version, default),
        plan_name(checkpoint, "bf16", T4, version, default),
        plan_name(checkpoint, "bf16", Gpu("NVIDIA H100 80GB HBM3", (9, 1)), version, default),
        plan_name(checkpoint, "bf16", H100, "11.5.0.1", default),
        plan_name(dataclasses.replace(checkpoint, model_id="other-123"), "bf16", H100, version, default),
    ]
    for field, value in {
        "optimal_batch": 32,
        "max_batch": 64,
        "hardware": "ampere_plus",
        "version_compatible": True,
        "optimization_level": 5,
    }.items():
        settings = dataclasses.replace(default, **{field: value})  # type: ignore[arg-type]
        changed.append(plan_name(checkpoint, "bf16", H100, version, settings))
    assert len({name, *changed}) == 1 + len(changed)
    assert {field.name for field in dataclasses.fields(default)} == set(dataclasses.asdict(default))
    assert all(re.fullmatch(r"[\w.-]+", each) for each in (name, *changed))


def test_compatible_plans_are_found_by_all_they_fit(checkpoint: Checkpoint) -> None:
    ampere = TensorRtSettings(hardware="ampere_plus", version_compatible=True)
    a100 = Gpu("NVIDIA A100", (8, 0))
    assert plan_name(checkpoint, "bf16", H100, "11.4.0.106", ampere) == plan_name(
        checkpoint, "bf16", a100, "11.7.1.2", ampere
    )
    assert plan_name(checkpoint, "bf16", H100, "12.0.0.1", ampere) != plan_name(
        checkpoint, "bf16", H100, "11.4.0.106", ampere
    )
    same = TensorRtSettings(hardware="same_compute_capability")
    h200 = Gpu("NVIDIA H200", (9, 0))
    assert plan_name(checkpoint, "bf16", H100, "11.4", same) == plan_name(checkpoint, "bf16", h200, "11.4", same)
    assert plan_name(checkpoint, "bf16", H100, "11.4", same) != plan_name(checkpoint, "bf16", a100, "11.4", same)


def test_precision_follows_the_gpu() -> None:
    assert chosen_precision("auto", H100) == "bf16"
    assert chosen_precision("auto", T4) == "fp16"
    assert chosen_precision("fp32", T4) == "fp32"
    with pytest.raises(ValueError, match="Tesla T4 does not compute in bf16: use precision auto"):
        chosen_precision("bf16", T4)


@pytest.mark.parametrize(
    "wrong", [{"optimal_batch": 0}, {"optimal_batch": 65, "max_batch": 64}, {"optimization_level": 6}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be from"):
        TensorRtSettings(**wrong)


def test_what_is_missing_is_said(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engine, "_WHY_MISSING", "No module named 'tensorrt'", raising=False)
    monkeypatch.setattr(tensorrt_engine, "trt", None)
    with pytest.raises(ValueError, match=r"not installed \(No module named 'tensorrt'\): pip install 'graticule\[tens"):
        load_engine("tensorrt", checkpoint)
    monkeypatch.setattr(tensorrt_engine, "trt", object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        load_engine("tensorrt", checkpoint)


@pytest.mark.skipif(
    tensorrt_engine.trt is None or not torch.cuda.is_available(), reason="needs TensorRT and an NVIDIA GPU"
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_answers_as_torch_does(precision: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Written without a GPU at hand, and so never run by who wrote it."""
    settings = TensorRtSettings(optimal_batch=4, max_batch=8, optimization_level=0)
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (33, 32, 32, 3), dtype=np.uint8)
    expected = load_engine("torch", checkpoint, precision="fp32")
    for _ in range(2):  # built, then from the cache
        engine = load_engine("tensorrt", checkpoint, cache_dir=tmp_path, precision=precision, tensorrt=settings)
        for batch in (0, 1, 7, 8, 33):
            wanted, answers = expected(pixels_BHWC[:batch]), engine(pixels_BHWC[:batch])
            for name, a, b in zip(wanted._fields, wanted, answers, strict=True):
                assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            tolerance = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.005}[precision]
            np.testing.assert_allclose(
                wanted.level_probability_BH, answers.level_probability_BH, rtol=0, atol=tolerance
            )
            np.testing.assert_array_equal(wanted.finite_B, answers.finite_B)
