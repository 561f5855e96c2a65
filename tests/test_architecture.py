"""The shape of the repository: layers, homes of heavy libraries, our names, and what must not be in tracked files."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
LAYERS = ("model", "pipeline", "training", "jobs")
"""Lowest first: a package imports only itself and lower ones."""
STORES = (
    "pipeline/storage/store.py",
    "pipeline/storage/__init__.py",
    "pipeline/storage/local_store.py",
    "pipeline/storage/object_store.py",
)
HOMES = {
    "ray": (
        *(
            "pipeline/cluster/ray_cluster.py",
            "pipeline/cluster/dataflow.py",
            "pipeline/cluster/metrics.py",
        ),
        *("training/fit/trainer.py", "jobs/"),
    ),
    "fsspec": ("pipeline/storage/object_store.py",),
    "obstore": ("pipeline/storage/object_store.py", "pipeline/storage/clients.py"),
    "boto3": ("pipeline/storage/clients.py",),
    "botocore": ("pipeline/storage/clients.py",),
    # stores teach DuckDB to read remote files, which takes the type's name only
    "duckdb": (
        *("pipeline/storage/duckdb.py", "pipeline/run/plan.py", "pipeline/published/catalog.py"),
        *("pipeline/beside/matching.py", *STORES),  # the type's name only, too
    ),
    "tensorrt": ("model/engines/",),
    "onnx": ("model/engines/",),
    "onnx_ir": ("model/engines/",),
    "onnxruntime": ("model/engines/",),
    "onnxscript": ("model/engines/",),
    "openvino": ("model/engines/", "training/data/teacher.py"),
    "transformers": ("model/backbones/hugging_face.py",),
    "PIL": (
        "pipeline/decode/photo.py",
        "pipeline/decode/pictures/views.py",
        "pipeline/decode/jpeg.py",
        "pipeline/decode/exif.py",
        "pipeline/decode/codec_errors.py",
        "pipeline/decode/repair/",
        "pipeline/decode/pictures/",
        "training/",
        "jobs/",
    ),
    "pillow_jxl": ("pipeline/decode/pictures/jpeg_xl.py", "jobs/benchmark/decode.py"),
    "av": ("pipeline/decode/pictures/video.py", "jobs/benchmark/decode.py"),
    "rawpy": ("pipeline/decode/pictures/raw.py",),
    "defusedxml": ("pipeline/decode/xmp.py",),
    "tzfpy": ("pipeline/locate/places.py",),
    "jinja2": ("pipeline/report/templates.py",),
    "markupsafe": ("pipeline/report/templates.py", "pipeline/report/charts.py"),
    "pathspec": ("pipeline/sources/search.py",),
    "prometheus_client": ("pipeline/cluster/metrics.py", "jobs/"),
    "tyro": ("jobs/",),
    "rich": ("jobs/", "pipeline/cluster/progress.py"),
}
"""Where a library may be imported: a folder (with a slash) or a file."""
MAX_LINES = 500
ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "model": (
        ("world", "backbones", "decoder"),
        ("geodecoder",),
        ("gallery",),
        ("networks", "readout"),
        ("checkpoint",),
        ("engines",),
    ),
    "pipeline": (
        ("schema",),
        ("older_rows",),
        ("storage", "decode"),
        ("beside",),
        ("sources", "locate", "published"),
        ("read", "run"),
        ("answers", "cluster", "forget"),
        ("report", "geotag_settings"),
        ("geotag",),
    ),
    "training": (
        ("data", "metrics", "loss"),
        ("fit",),
        ("evaluate",),
        ("hierarchy",),
        ("galleries", "geoclip", "globe"),
    ),
}
"""The rooms of a package, and its files that stand outside of them, lowest first: one imports only lower ones."""
MOST_FILES = 11
"""In one room; the jobs, one a command, stand beside each other however many they are."""


def modules() -> list[str]:
    return sorted(
        str(path.relative_to(REPOSITORY)) for package in LAYERS for path in (REPOSITORY / package).rglob("*.py")
    )


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Yield every module that `module` imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import: name the package"
            yield str(node.module), node.lineno


def tracked_files() -> list[str]:
    """Files that git tracks, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: what is tracked can't be told")
    return [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


@pytest.mark.parametrize("module", modules())
def test_nothing_imports_upward(module: str) -> None:
    layer = LAYERS.index(module.split("/")[0])
    for name, line in imports(module):
        package = name.split(".")[0]
        assert package not in ("tests", "infra"), f"{module}:{line} imports {name}"
        if package in LAYERS:
            assert LAYERS.index(package) <= layer, f"{module}:{line}: {LAYERS[layer]} is below {package}"


def _our_imports(module: str) -> Iterator[tuple[str, int]]:
    """Yield every module of ours that a module imports, as a file's dotted name, with the line."""
    files = {name.removesuffix(".py").replace("/", ".") for name in modules()}
    for node in ast.walk(ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name in files)


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_stack_in_one_direction(package: str) -> None:
    floor = {room: number for number, rooms in enumerate(ROOMS[package]) for room in rooms}
    for module in modules():
        if not module.startswith(f"{package}/") or module == f"{package}/__init__.py":
            continue
        room = module.split("/")[1].removesuffix(".py")
        assert room in floor, f"{module} is in no room that ROOMS knows"
        for name, line in _our_imports(module):
            if name.startswith(f"{package}.") and (other := name.split(".")[1]) != room:
                assert floor[other] < floor[room], f"{module}:{line} imports {name}: {room} is not above {other}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    imported = {module: {name for name, _ in _our_imports(module)} for module in modules()}
    by_name = {module.removesuffix(".py").replace("/", "."): module for module in imported}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' → '.join((*way[way.index(module) :], module))}"
        if module in done:
            return
        # One that runs as a program may import itself, so that others know what it makes by its name.
        for name in sorted(imported[module] - {module.removesuffix(".py").replace("/", ".")}):
            visit(by_name[name], (*way, module))
        done.add(module)

    for module in imported:
        visit(module, ())


def test_rooms_have_few_files() -> None:
    for folder in sorted({str(Path(module).parent) for module in modules()} - {"jobs"}):
        files = [path for path in (REPOSITORY / folder).glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_FILES or folder == "jobs/benchmark", f"{folder} has {len(files)} files: divide it"


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_stay_at_home(library: str) -> None:
    for module in modules():
        if not module.startswith(HOMES[library]):
            for name, line in imports(module):
                assert name.split(".")[0] != library, f"{module}:{line} imports {name}: only {HOMES[library]} may"


@pytest.mark.parametrize("module", STORES)
def test_stores_run_without_duckdb(module: str) -> None:
    """They take the type's name only, for the type checker."""
    tree = ast.parse((REPOSITORY / module).read_text())
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "duckdb" not in ast.unparse(node)


@pytest.mark.parametrize(
    "modules_below_ray",
    [
        "pipeline.locate.locator, pipeline.read.reader, pipeline.run.publish, pipeline.published.catalog",
        "jobs.geotag_archive, jobs.nightly, pipeline.cluster.local_executor",
    ],
)
def test_the_stages_run_with_ray_unimported(modules_below_ray: str) -> None:
    code = f"import {modules_below_ray}, sys; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("modules_without_pages", ["jobs.geotag_archive", "training.evaluate.attention"])
def test_what_makes_no_page_starts_without_templates(modules_without_pages: str) -> None:
    code = f"import {modules_without_pages}, sys; assert not {{'jinja2', 'markupsafe'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_every_room_is_packaged() -> None:
    """An editable install would not tell."""
    setuptools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    rooms = {str(Path(name).parent).replace("/", ".") for name in modules() if name.endswith("/__init__.py")}
    assert sorted(setuptools["packages"]) == sorted(rooms)


def test_what_is_no_python_is_packaged_with_it() -> None:
    """Files that modules read are installed only if pyproject.toml names them."""
    setuptools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {package.replace(".", "/"): package for package in setuptools["packages"]}
    for name in tracked_files():
        path = Path(name)
        if path.parts[0] in ("pipeline", "training") and path.suffix not in (".py", ".md"):
            home = next(folder for folder in path.parents if str(folder) in packages)
            patterns = setuptools["package-data"].get(packages[str(home)], [])
            assert any(path.relative_to(home).match(pattern) for pattern in patterns), f"{name} is in no package-data"


def test_only_schema_names_the_columns() -> None:
    """A literal column name elsewhere would miss a change of the schema. SQL, whole statements of it, is allowed."""
    from pipeline import schema

    # Names that are words of other things too (a dict of settings, a file's format) can't be told by their text.
    words = {"country", "region", "place", "countries"}
    words |= {"format", "level", "levels", "scene", "status", "precision", "uri", "geometry", "run_id", "model_id"}
    names = set(schema.PHOTOS.names) - words
    for module in modules():
        if module.startswith("pipeline/") and module != "pipeline/schema.py":
            for node in ast.walk(ast.parse((REPOSITORY / module).read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert node.value not in names, f"{module}:{node.lineno}: write schema.{node.value.upper()}"


def test_nobody_else_owns_our_package_names() -> None:
    owners = importlib.metadata.packages_distributions()
    for package in LAYERS:
        assert set(owners.get(package, [])) <= {"graticule"}, f"{package} is also installed by {owners[package]}"


@pytest.mark.parametrize("name", [".gitignore", ".rayignore", ".dockerignore"])
def test_ignore_files_are_anchored(name: str) -> None:
    """Ray ships the working directory by them: a line that matches at any depth drops our own modules silently."""
    if not (REPOSITORY / name).exists():
        pytest.skip(f"there is no {name}")
    for line in (REPOSITORY / name).read_text().splitlines():
        if line and not line.startswith("#") and line not in ("__pycache__/", "**/__pycache__/"):
            assert line.lstrip("!").startswith("/"), f"{name}: {line!r} matches at any depth: begin it with /"


def test_no_trace_of_a_machine_in_tracked_files() -> None:
    """Paths and hosts of the machine it was written on would be wrong, or tell, on every other one."""
    machine_path = re.compile(rb"(?<![\w.-])/(?:work|root|home)/\w")
    registry = re.compile(
        rb"(?:--(?:extra-)?index-url|index-url\s*=|registry\s*=\s*\W?https?:"
        rb"|https?://[\w.-]*(?:pypi|artifactory|nexus)[\w.-]*/)"
    )
    for name in tracked_files():
        data = (REPOSITORY / name).read_bytes()
        if b"\0" in data[:8000] or name == str(Path(__file__).relative_to(REPOSITORY)):
            continue
        for pattern in (machine_path, registry):
            found = pattern.search(data)
            assert found is None, f"{name}: {data[max(0, found.start() - 40) : found.end() + 40]!r}"


@pytest.mark.parametrize("module", modules())
def test_what_is_public_says_what_it_is_for(module: str) -> None:
    tree = ast.parse((REPOSITORY / module).read_text())
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}:{node.lineno}: {node.name} has no docstring"
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and not _is_inherited(inner):
                    assert ast.get_docstring(inner), (
                        f"{module}:{inner.lineno}: {node.name}.{inner.name} has no docstring"
                    )


def _is_inherited(method: ast.FunctionDef) -> bool:
    """Whether a base class of a library documents it: nn.Module's forward, Ray's data sources and sinks."""
    documented = {"forward", "write", "get_name", "min_rows_per_write", "estimate_inmemory_data_size", "get_read_tasks"}
    return method.name in documented


def test_files_stay_short() -> None:
    for name in tracked_files():
        if name.endswith(".py"):
            lines = len((REPOSITORY / name).read_text(encoding="utf-8").splitlines())
            assert lines < MAX_LINES, f"{name} has {lines} lines: split it"
