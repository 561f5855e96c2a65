"""Are the tests any good? Small faults are put into the modules around a run and decoding, and tests have to find them.

By hand: `python -m tests.tools.mutants [--module pipeline/run/plan.py …] [--seed 1] [--count 100]`; `make soak` runs it
too. Each mutant's tests run in a copy of the repository; the working tree is not touched. A mutant is killed when the
unit tests of its module fail or take too long; one that survives needs a reason in
`tests/tools/mutants_survivors.toml`, else the exit status is 1. Which ones are drawn depends on the seed and on their
own text alone, so that an edit elsewhere draws the same again.

A process is forked for each mutant from one that has imported the libraries, which takes longer than most tests do.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.tools.mutant_maker import Mutant, mutants

REPOSITORY = Path(__file__).parents[2]
SURVIVORS = REPOSITORY / "tests/tools/mutants_survivors.toml"
MODULES = (
    "pipeline/run/plan.py",
    "pipeline/run/publish.py",
    "pipeline/storage/lease.py",
    "pipeline/run/staging.py",
    "pipeline/run/verify.py",
    "pipeline/run/retention.py",
    "pipeline/run/copies.py",
    "pipeline/published/catalog.py",
    "pipeline/published/catalog_sql.py",
    "pipeline/run/tally.py",
    "pipeline/published/geoparquet.py",
    "pipeline/decode/photo.py",
    "pipeline/decode/jpeg.py",
    "pipeline/decode/exif.py",
    "pipeline/locate/precision.py",
    "pipeline/read/fetch.py",
    "pipeline/storage/duckdb.py",
    "pipeline/published/records.py",
    "pipeline/published/layout.py",
)
OTHER_TESTS = {
    "pipeline/published/catalog_sql.py": (
        "tests/pipeline/published/test_catalog.py",
        "tests/pipeline/published/test_catalog_regions.py",
    ),
    "pipeline/decode/exif.py": ("tests/pipeline/decode/test_photo.py",),
    "pipeline/published/geoparquet.py": (
        "tests/pipeline/published/test_geoparquet_readers.py",
        "tests/pipeline/run/test_publish.py",
        "tests/pipeline/run/test_verify.py",
    ),
    "pipeline/decode/jpeg.py": ("tests/pipeline/decode/test_photo.py", "tests/pipeline/read/test_hostile.py"),
    "pipeline/decode/photo.py": ("tests/pipeline/read/test_hostile.py", "tests/pipeline/decode/test_whole_pictures.py"),
    "pipeline/run/staging.py": ("tests/pipeline/run/test_plan.py", "tests/pipeline/run/test_publish.py"),
}
"""Tests of a module besides those that have its name."""
LIBRARIES = (
    *("boto3", "duckdb", "fsspec", "hypothesis", "moto.server", "numpy", "obstore", "pillow_heif", "pyarrow.compute"),
    *("PIL.Image", "PIL.ImageCms", "pyarrow.parquet", "pytest", "pytest_timeout", "scipy.spatial", "simplejpeg"),
    *("sklearn.datasets", "tenacity", "torch", "transformers", "xdist"),
)
_OK, _FAILED, _NO_TESTS, _OTHER_CODE = 0, 1, 5, 99
_LEAST_LIMIT_S, _LIMIT_FACTOR = 60.0, 5.0


@dataclass(frozen=True)
class Outcome:
    """How a module's tests ended: pytest's exit status (negative: a signal's number), and what it said."""

    status: int
    seconds: float
    output: str


def draw(every: Sequence[Mutant], seed: int, count: int) -> list[Mutant]:
    """Return `count` of the mutants, the same ones whatever else is among them or was edited around them."""

    def rank(mutant: Mutant) -> float:
        digest = hashlib.blake2b("\0".join([str(seed), *mutant.key]).encode(), digest_size=8).digest()
        return -math.log((int.from_bytes(digest) + 1) / 2**64) / mutant.weight

    drawn = {mutant.key for mutant in sorted(every, key=rank)[:count]}
    return [mutant for mutant in every if mutant.key in drawn]


def unit_tests_of(module: str, root: Path | None = None) -> list[str]:
    """Return the files of the unit tests of a module, those of its own name first."""
    root = root or REPOSITORY
    folder, stem = root / "tests" / Path(module).parent, Path(module).stem
    others = OTHER_TESTS.get(module, ())
    files = [folder / f"test_{stem}.py", *(root / name for name in others)]
    # Tests of a module may be several files; but test_catalog_sql.py would be those of catalog_sql.py.
    for path in sorted(folder.glob(f"test_{stem}_*.py")):
        if not (root / module).with_name(path.name.removeprefix("test_")).exists():
            files.append(path)
    return list(dict.fromkeys(str(path.relative_to(root)) for path in files if path.exists()))


def reasons() -> dict[tuple[str, str, str, str], str]:
    """Return why which mutants may survive."""
    if not SURVIVORS.exists():
        return {}
    listed = tomllib.loads(SURVIVORS.read_text(encoding="utf-8")).get("survivor", [])
    return {(row["module"], row["function"], row["was"], row["now"]): row["reason"] for row in listed}


class Workplace:
    """A copy of the repository in which mutants are tried, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, folder / name)
        for library in LIBRARIES:
            with suppress(ImportError):
                importlib.import_module(library)
        ours = [name for name in sys.modules if name.split(".")[0] in ("model", "pipeline", "training", "jobs")]
        assert not ours, f"the working tree's own modules are loaded, a mutant would not be: {ours}"

    def run(self, module: str, limit_s: float, is_first: bool = False) -> Outcome:
        """Run the unit tests of `module` as it is in the copy, up to the first failure, in a forked process."""
        started = time.monotonic()
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if not child:
                _run_here(self.folder, module, output.fileno(), is_first)
            status = _wait(child, limit_s)
            output.seek(0)
            text = output.read().decode(errors="replace")
        return Outcome(status, time.monotonic() - started, text)

    def try_mutant(self, mutant: Mutant, limit_s: float) -> Outcome:
        """Run the tests with the mutant in place, and put the module back."""
        path = self.folder / mutant.module
        source, times = path.read_bytes(), path.stat()
        path.write_bytes(mutant.apply(source))
        try:
            return self.run(mutant.module, limit_s)
        finally:
            path.write_bytes(source)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # which its compiled file goes by


def _run_here(folder: Path, module: str, output: int, is_first: bool) -> NoReturn:
    """In the forked process: run the tests in the copy and end with pytest's status."""
    status = _OTHER_CODE
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` ignores, and tests count on
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)  # for processes that tests start
        os.environ["PYTHONDONTWRITEBYTECODE"] = "" if is_first else "1"
        sys.dont_write_bytecode = not is_first  # a mutant's would be taken for the next one's of the same second
        sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(REPOSITORY)))]
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        import hypothesis
        import pytest

        # Shrinking an example is for people, and what one mutant's run has found must not help with the next one's.
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", database=None, derandomize=True, phases=phases, deadline=None)
        hypothesis.settings.load_profile("mutants")
        options = ["-x", "-q", "-m", "not s3 and not ray", "-p", "no:cacheprovider", "--tb=line"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins, which are imported already
        status = int(pytest.main([*options, *unit_tests_of(module, folder)]))
        loaded = sys.modules.get(module.removesuffix(".py").replace("/", "."))
        if status == _OK and not str(getattr(loaded, "__file__", "")).startswith(str(folder)):
            _say(f"the tests ran without the copy's {module}: {loaded}")
            status = _OTHER_CODE
    finally:  # whatever happened: a forked process must not go on as if it were its parent
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, limit_s: float) -> int:
    """Return the exit status of a child, or minus the number of the signal that ended it; kills it after its time."""
    deadline = time.monotonic() + limit_s
    try:
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # those that it left behind too
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(modules: Sequence[str], seed: int, count: int) -> Iterator[tuple[Mutant, Outcome]]:
    """Try `count` mutants of the modules and yield how each one's tests ended.

    Raises ValueError where a module's tests are missing, or fail as it is.
    """
    every = [mutant for module in modules for mutant in mutants(module, (REPOSITORY / module).read_bytes())]
    drawn = draw(every, seed, count)
    _say(f"{len(drawn)} of {len(every)} mutants of {len(modules)} modules")
    with tempfile.TemporaryDirectory(prefix="graticule-mutants-") as folder:
        place = Workplace(Path(folder))
        for module in modules:
            own = [mutant for mutant in drawn if mutant.module == module]
            if not own:
                continue
            whole = place.run(module, math.inf, is_first=True)
            if whole.status != _OK:
                raise ValueError(f"{module}: its tests must pass before mutants are tried:\n{whole.output[-3000:]}")
            _say(f"{module}: {' '.join(unit_tests_of(module))}: {whole.seconds:.0f} s as it is")
            limit_s = max(_LEAST_LIMIT_S, _LIMIT_FACTOR * whole.seconds)
            for mutant in own:
                outcome = place.try_mutant(mutant, limit_s)
                if outcome.status in (_NO_TESTS, _OTHER_CODE):
                    raise ValueError(f"{module}: no mutant can be tried:\n{outcome.output[-3000:]}")
                yield mutant, outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Say of each mutant whether it was killed; return 1 if one without a reason survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", nargs="+", default=list(MODULES), help="modules to put faults into")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="mutants to try")
    options = parser.parse_args(arguments)
    for module in options.module:
        if not (REPOSITORY / module).is_file() or not unit_tests_of(module):
            parser.error(f"{module} is no module with unit tests: give a path such as pipeline/run/plan.py")
    known = reasons()
    killed, unexplained, tried = 0, [], 0
    for module in options.module:
        made = {mutant.key for mutant in mutants(module, (REPOSITORY / module).read_bytes())}
        for key in known.keys() - made:
            if key[0] == module:
                _say(f"{SURVIVORS.name} names what is no mutant any more: {module} {key[1]}: {key[3]}")
    for mutant, outcome in run(options.module, options.seed, options.count):
        tried += 1
        reason = known.get(mutant.key)
        word = "killed" if outcome.status != _OK else "survived" if reason is None else f"survived ({reason})"
        _say(
            f"{mutant.module}:{mutant.line} {mutant.function or '(module)'} {word}, {outcome.seconds:.0f} s\n"
            f"    was: {mutant.was}\n    now: {mutant.now}"
        )
        killed += outcome.status != _OK
        if outcome.status == _OK and reason is None:
            unexplained.append(mutant)
    _say(f"{tried} mutants: {killed} killed, {tried - killed} survived, {len(unexplained)} of them without a reason")
    for mutant in unexplained:
        names = zip(("module", "function", "was", "now"), mutant.key, strict=True)
        lines = [f"{name} = {_toml_text(value)}" for name, value in names]
        _say("\n".join(["", "[[survivor]]", *lines, 'reason = ""']))
    if unexplained:
        _say(f"\nWrite a test for each, or put it with its reason into {SURVIVORS}.")
    return 1 if unexplained else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _toml_text(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


if __name__ == "__main__":
    sys.exit(main())
