"""`graticule COMMAND …` is `python -m jobs.COMMAND …`: one name for every job, each with its own `--help`."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

import jobs

_FOLDER = Path(__file__).parent
_STARTS = "\n    run_command("
"""What the file of every job ends with."""


def commands() -> dict[str, str]:
    """Return the name of every job, with dashes, and what it is for in a line, without importing any."""
    found = {}
    for path in sorted([*_FOLDER.glob("*.py"), *_FOLDER.glob("*/__main__.py")]):
        text = path.read_text(encoding="utf-8")
        if _STARTS in text:
            name = path.parent.name if path.stem == "__main__" else path.stem
            says = ast.get_docstring(ast.parse(text)) or ""
            found[name.replace("_", "-")] = says.split("\n\n")[0].replace("\n", " ")
    return found


def module_of(name: str) -> str:
    """Return the module that a job's name stands for, whose `Settings` and `run` are the job's."""
    module = f"jobs.{name.replace('-', '_')}"
    return module if (_FOLDER / f"{module.split('.')[1]}.py").is_file() else f"{module}.__main__"


def main() -> None:
    """Run the job that the first argument names; exit code 2 if it names none."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    known = commands()
    if name in ("-h", "--help"):
        print("usage: graticule COMMAND [arguments]; graticule COMMAND --help says which\n")
        width = max(map(len, known))
        for command, says in known.items():
            print(f"  {command:{width}}  {says}")
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"error: there is no command {name!r}: {hint}graticule --help lists all", file=sys.stderr)
        sys.exit(2)
    jobs.typed_name = f"graticule {name}"
    del sys.argv[1]
    runpy.run_module(f"jobs.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
