"""TensorRT on an NVIDIA GPU: the exported graph, compiled for that GPU once and kept as a plan.

Written against the signatures of TensorRT 11.4, whose networks are strongly typed: precision is the graph's.
A test holds every name used here against them, and finds out what is of which class by the annotations `x: trt.Class`.

Shapes: B batch · H, W height and width · C 3 colours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers, Precision, cache, onnx_graph
from model.engines.export import no_answers, require_pixels
from model.readout import Answers

try:
    import tensorrt as trt
except (ImportError, OSError) as error:  # OSError: the package is there, its library is not
    trt = None
    _WHY_MISSING = str(error)

_log = logging.getLogger(__name__)

PLAN_FILE = "engine.plan"


@dataclass(frozen=True)
class TensorRtSettings:
    """What TensorRT compiles for; all of it decides which plan is taken from a cache.

    Attributes:
        optimal_batch: photos in one call that the plan is fastest at.
        max_batch: photos in one call at most: more are split, fewer run as they are.
        hardware: which GPUs the plan runs on; the wider, the slower it may be.
        version_compatible: the plan also runs on later TensorRT 11 versions, and may be slower. It then holds code that
            runs on the host: take such plans only from whom you trust.
        optimization_level: 0 (compiles fast) to 5 (looks longest for the fastest); TensorRT's own default is 3.

    Raises:
        ValueError: numbers out of range.
    """

    optimal_batch: int = 64
    max_batch: int = 256
    hardware: Literal["this_gpu", "same_compute_capability", "ampere_plus"] = "this_gpu"
    version_compatible: bool = False
    optimization_level: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.optimal_batch <= self.max_batch:
            raise ValueError(f"optimal_batch {self.optimal_batch} must be from 1 to max_batch, {self.max_batch}")
        if not 0 <= self.optimization_level <= 5:
            raise ValueError(f"optimization_level {self.optimization_level} must be from 0 to 5")


@dataclass(frozen=True)
class Gpu:
    """A GPU as far as a plan depends on it: its name and its compute capability."""

    name: str
    capability: tuple[int, int]


class TensorRtEngine:
    """The serving graph as a TensorRT plan on torch's current CUDA device; see `Engine`.

    Pixels go through two pinned buffers, so that of a batch above `max_batch` one part travels while another computes.
    With `cache_dir`, the plan is kept there under a name of the graph, the GPU, TensorRT's version and the settings,
    and so are TensorRT's timings; `share` has it from, and for, other machines.

    Args:
        precision: "auto" is bf16 from compute capability 8.0 on, else fp16.

    Raises:
        ValueError: no TensorRT or no GPU here, or bf16 on a GPU before compute capability 8.0.
        RuntimeError: TensorRT cannot compile or run the graph.
    """

    name: str = "tensorrt"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        cache_dir: Path | None = None,
        precision: Precision = "auto",
        settings: TensorRtSettings | None = None,
        share: cache.Share | None = None,
    ) -> None:
        if trt is None:
            raise ValueError(
                f"the tensorrt engine is not installed ({_WHY_MISSING}): pip install 'graticule[tensorrt]' on a "
                "machine with an NVIDIA GPU, or choose torch or openvino"
            )
        if not torch.cuda.is_available():
            raise ValueError("the tensorrt engine needs an NVIDIA GPU that torch can use: choose openvino on a CPU")
        settings = settings or TensorRtSettings()
        self._device = torch.device("cuda", torch.cuda.current_device())
        gpu = Gpu(torch.cuda.get_device_name(self._device), torch.cuda.get_device_capability(self._device))
        self.precision: str = chosen_precision(precision, gpu)
        self.shape_HWC = checkpoint.config.preprocessing.shape_HWC
        self._max_batch = settings.max_batch
        self._logger: trt.Logger = trt.Logger(trt.Logger.WARNING)
        self._runtime: trt.Runtime = trt.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = settings.version_compatible
        with contextlib.ExitStack() as temporary:
            folder = cache_dir or Path(temporary.enter_context(tempfile.TemporaryDirectory()))
            self._engine: trt.ICudaEngine = self._loaded(checkpoint, gpu, settings, folder, share)
        self._context: trt.IExecutionContext = self._engine.create_execution_context()
        if self._context is None:
            raise RuntimeError(f"no room on {gpu.name} for batches of {settings.max_batch}: give a lower max_batch")
        self._uploads = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._computes = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._require_fitting_tensors()
        self._slots = [self._slot(), self._slot()]
        torch.cuda.synchronize(self._device)

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        require_pixels(pixels_BHWC, self.shape_HWC)
        if len(pixels_BHWC) == 0:
            return no_answers(self)
        free, busy, parts = deque(self._slots), deque[_Slot](), list[NumpyAnswers]()
        for start in range(0, len(pixels_BHWC), self._max_batch):
            if not free:
                free.append(busy.popleft())
                parts.append(free[0].answers())
            busy.append(free.popleft())
            self._start(busy[-1], pixels_BHWC[start : start + self._max_batch])
        parts.extend(slot.answers() for slot in busy)
        return Answers(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))

    def _start(self, slot: _Slot, pixels_BHWC: npt.NDArray[np.uint8]) -> None:
        """Set a part of a batch on its way; `slot.answers` waits for it."""
        count = slot.count = len(pixels_BHWC)
        np.copyto(slot.pinned_BHWC.numpy()[:count], pixels_BHWC)
        with torch.cuda.stream(self._uploads):
            slot.pixels_BHWC[:count].copy_(slot.pinned_BHWC[:count], non_blocking=True)
        self._computes.wait_stream(self._uploads)
        self._set_batch(count)
        for name, tensor in ((onnx_graph.INPUT, slot.pixels_BHWC), *slot.outputs.items()):
            _require(self._context.set_tensor_address(name, tensor.data_ptr()), f"the memory of {name}")
        _require(self._context.execute_async_v3(self._computes.cuda_stream), f"a batch of {count}")
        with torch.cuda.stream(self._computes):
            for name, output in slot.outputs.items():
                slot.pinned_outputs[name][:count].copy_(output[:count], non_blocking=True)
            slot.done.record(self._computes)

    def _set_batch(self, count: int) -> None:
        shape = (count, *self.shape_HWC)
        _require(self._context.set_input_shape(onnx_graph.INPUT, shape), f"a batch of {count}")

    def _slot(self) -> _Slot:
        """Memory for one batch of the greatest size."""
        self._set_batch(self._max_batch)
        shape = (self._max_batch, *self.shape_HWC)
        dtypes = _torch_dtypes()
        outputs = {
            name: torch.empty(
                tuple(self._context.get_tensor_shape(name)),
                dtype=dtypes[self._engine.get_tensor_dtype(name)],
                device=self._device,
            )
            for name in onnx_graph.OUTPUTS
        }
        return _Slot(
            pinned_BHWC=torch.empty(shape, dtype=torch.uint8, pin_memory=True),
            pixels_BHWC=torch.empty(shape, dtype=torch.uint8, device=self._device),
            outputs=outputs,
            pinned_outputs={name: torch.empty_like(t, device="cpu", pin_memory=True) for name, t in outputs.items()},
            # Blocking: else waiting would take a core from decoding.
            done=torch.cuda.Event(blocking=True),  # type: ignore[no-untyped-call]
        )

    def _require_fitting_tensors(self) -> None:
        """Raise RuntimeError if the plan is not of this graph: what it takes and gives, by name and type."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        fits = inputs == [onnx_graph.INPUT] and set(names) - set(inputs) == set(onnx_graph.OUTPUTS)
        if not fits or self._engine.get_tensor_dtype(onnx_graph.INPUT) != trt.DataType.UINT8:
            raise RuntimeError(f"the plan takes and gives {names}, not what the serving graph does")

    def _loaded(
        self, checkpoint: Checkpoint, gpu: Gpu, settings: TensorRtSettings, folder: Path, share: cache.Share | None
    ) -> trt.ICudaEngine:
        name = plan_name(checkpoint, self.precision, gpu, trt.__version__, settings)
        manifest = onnx_graph.manifest(checkpoint, self.name, self.precision, tensorrt=trt.__version__)
        manifest |= {"gpu": gpu.name, "compute_capability": list(gpu.capability), "settings": asdict(settings)}
        timings = folder / f"tensorrt-timings-{trt.__version__}-{_gpu_part(gpu, 'this_gpu')}"

        def build(fresh: Path) -> None:
            _log.info("compiling %s for %s: this takes minutes, once", checkpoint.model_id, gpu.name)
            with tempfile.TemporaryDirectory(dir=folder) as exported:
                graph = onnx_graph.export(checkpoint, self.precision, Path(exported))
                _build(graph, self.shape_HWC, self.precision, settings, timings, fresh / PLAN_FILE, self._logger)

        for remake in (False, True):  # a driver may refuse what another one has taken
            entry = cache.entry(folder, name, manifest, build, share, remake)
            engine: trt.ICudaEngine = self._runtime.deserialize_cuda_engine((entry / PLAN_FILE).read_bytes())
            if engine is not None:
                return engine
        raise RuntimeError(f"TensorRT {trt.__version__} does not take its own plan for {gpu.name}: see its log above")


@dataclass
class _Slot:
    """Memory for one batch on its way, on the GPU and, pinned, on the host."""

    pinned_BHWC: torch.Tensor
    pixels_BHWC: torch.Tensor
    outputs: dict[str, torch.Tensor]
    pinned_outputs: dict[str, torch.Tensor]
    done: torch.cuda.Event
    count: int = 0

    def answers(self) -> NumpyAnswers:
        """Wait for the answers; they stay as they are when the slot is used again."""
        self.done.synchronize()
        return Answers(*(self.pinned_outputs[name][: self.count].numpy().copy() for name in onnx_graph.OUTPUTS))


def chosen_precision(precision: Precision, gpu: Gpu) -> str:
    """What the network computes in on `gpu`; ValueError where it cannot."""
    has_bf16 = gpu.capability >= (8, 0)
    if precision == "bf16" and not has_bf16:
        raise ValueError(f"{gpu.name} does not compute in bf16: use precision auto, fp16 or fp32")
    return precision if precision != "auto" else ("bf16" if has_bf16 else "fp16")


def plan_name(checkpoint: Checkpoint, precision: str, gpu: Gpu, version: str, settings: TensorRtSettings) -> str:
    """Name a plan in a cache by all that decides whether it can be used: it is never to be found by another's need."""
    runtime = f"{version.split('.')[0]}-compatible" if settings.version_compatible else version
    profile = f"b{settings.optimal_batch}-{settings.max_batch}-o{settings.optimization_level}"
    graph = onnx_graph.fingerprint(checkpoint, precision)
    return f"tensorrt-{runtime}-{_gpu_part(gpu, settings.hardware)}-{graph}-{profile}"


def _gpu_part(gpu: Gpu, hardware: str) -> str:
    if hardware == "ampere_plus":
        return "ampere-plus"
    capability = "sm{}{}".format(*gpu.capability)
    if hardware == "same_compute_capability":
        return capability
    return re.sub("[^a-z0-9]+", "-", gpu.name.lower()).strip("-") + f"-{capability}"


def _build(
    graph: Path,
    shape_HWC: tuple[int, int, int],
    precision: str,
    settings: TensorRtSettings,
    timings: Path,
    plan_file: Path,
    logger: trt.Logger,
) -> None:
    """Compile the ONNX `graph` into `plan_file`; `timings` remembers between builds how fast kernels were."""
    builder: trt.Builder = trt.Builder(logger)
    network: trt.INetworkDefinition = builder.create_network()
    parser: trt.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise RuntimeError(f"TensorRT cannot read the exported graph: {errors}")
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.builder_optimization_level = settings.optimization_level
    config.hardware_compatibility_level = {
        "this_gpu": trt.HardwareCompatibilityLevel.NONE,
        "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }[settings.hardware]
    config.set_flag(trt.BuilderFlag.STRICT_NANS)  # `Answers.finite_B` is about them
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # would round to 10 bits
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    smallest, optimal, greatest = ((batch, *shape_HWC) for batch in (1, settings.optimal_batch, settings.max_batch))
    profile.set_shape(onnx_graph.INPUT, smallest, optimal, greatest)
    config.add_optimization_profile(profile)
    remembered: trt.ITimingCache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    if not config.set_timing_cache(remembered, False):
        _log.warning("the timings in %s are of another TensorRT or GPU: beginning without", timings)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    plan: trt.IHostMemory = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT cannot compile the exported graph: see its log above")
    plan_file.write_bytes(plan)
    measured: trt.ITimingCache = config.get_timing_cache()
    serialized: trt.IHostMemory = measured.serialize()
    partial = plan_file.parent.parent / timings.name
    partial.write_bytes(serialized)
    os.replace(partial, timings)


def _torch_dtypes() -> dict[object, torch.dtype]:
    return {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.INT64: torch.int64,
        trt.DataType.BOOL: torch.bool,
    }


def _require(succeeded: bool, what: str) -> None:
    if not succeeded:
        raise RuntimeError(f"TensorRT refuses {what}: see its log above")
