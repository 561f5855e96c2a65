"""Mutants of one module's source: each has one small fault, of the kind that people make, at one place.

Faults are put into the text at the places that the syntax tree names, so that all other lines, comments too, stay as
they are. Left alone: annotations, docstrings, the texts of messages and what is written to the log.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
_DEFAULTS = {"bool": "False", "int": "0", "float": "0.0", "str": "''", "bytes": "b''"}
_EMPTY = {"list": "[]", "dict": "{}", "set": "set()", "tuple": "()"}
_IS_SQL = re.compile(
    r"\b(SELECT|FROM|WHERE|ORDER BY|CREATE (TABLE|VIEW|MACRO)|CASE WHEN|IS (NOT )?NULL|BETWEEN|NULLS)\b"
)
_SQL_HIDDEN = re.compile(r"--[^\n]*|\{[^{}]*\}|'[^'\n]*'|COMMENT ON .*")
_SQL_SWAPS = (
    (r"\bDESC\b", "ASC"),
    (r"\bASC\b", "DESC"),
    (r"\bNULLS LAST\b", "NULLS FIRST"),
    (r"\bNULLS FIRST\b", "NULLS LAST"),
    (r"(?<=\s)<(?=\s)", "<="),
    (r"(?<=\s)<=(?=\s)", "<"),
    (r"(?<=\s)>(?=\s)", ">="),
    (r"(?<=\s)>=(?=\s)", ">"),
    (r"(?<=\s)=(?=\s)", "<>"),
    (r"(?<=\s)<>(?=\s)", "="),
    (r"(?<=\s)\+(?=\s)", "-"),
    (r"(?<=\s)-(?=\s)", "+"),
    (r"\bANTI JOIN\b", "SEMI JOIN"),
    (r"\bSEMI JOIN\b", "ANTI JOIN"),
    (r"\bLEFT JOIN\b", "JOIN"),
    (r"\bUNION ALL\b", "UNION"),
    (r"\bUNION\b(?! ALL)", "UNION ALL"),
    (r"\bIS NOT NULL\b", "IS NULL"),
    (r"\bIS NULL\b", "IS NOT NULL"),
    (r"\bNOT (?=EXISTS\b|coalesce\b|IN\b|starts_with\b|is_)", ""),
    (r"\bDISTINCT ", ""),
    (r"(?<!_LAST)\bAND\b(?=\s)", "OR"),
    (r"\bOR\b", "AND"),
    (r"\barg_max\b", "arg_min"),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"(?<![\w.$])\d+(?![\w.])", "+1"),
)
_BETWEEN = re.compile(r"\bBETWEEN\b[^;]*?\bAND\b", re.DOTALL)


@dataclass(frozen=True)
class Mutant:
    """One fault: at the bytes from `start` to `end` of a module's source stands `text` instead.

    `function` is the qualified name of what it is in, empty for a module's own level; `was` and `now` are the lines
    around it before and after, on one line. `weight`: how often such a one is drawn, in comparison with others.
    """

    module: str
    function: str
    kind: str
    line: int
    was: str
    now: str
    start: int
    end: int
    text: bytes
    weight: float = 1.0

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names it for good: line numbers change with every edit above."""
        return self.module, self.function, self.was, self.now

    def apply(self, source: bytes) -> bytes:
        """Return the module's source with the fault."""
        return source[: self.start] + self.text + source[self.end :]


def mutants(module: str, source: bytes) -> list[Mutant]:
    """Return all mutants of a module's source that are valid Python, each change once, in the order of their places."""
    found: dict[tuple[str, str, str, str], Mutant] = {}
    for mutant in _Maker(module, source).made():
        try:
            compile(mutant.apply(source), module, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        found.setdefault(mutant.key, mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end, mutant.text))


class _Maker:
    def __init__(self, module: str, source: bytes) -> None:
        self._module, self._source = module, source
        self._line_starts = [0]
        for line in source.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))

    def made(self) -> Iterator[Mutant]:
        yield from self._visit(ast.parse(self._source), "", None)

    def _visit(self, node: ast.AST, function: str, returns: ast.expr | None) -> Iterator[Mutant]:
        for start, end, text, kind, weight in self._changes(node, returns):
            yield self._mutant(function, kind, start, end, text, weight)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
            returns = getattr(node, "returns", None)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_left_alone(child):
                    yield from self._visit(child, function, returns)

    def _changes(self, node: ast.AST, returns: ast.expr | None) -> Iterator[tuple[int, int, str, str, float]]:
        """Yield what may stand instead of which bytes because of this node, without those inside it."""
        if isinstance(node, ast.Compare):
            for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                start, end = self._between(left, right)
                for text in _COMPARISONS[type(operator)]:
                    yield start, end, text, "comparison", 1.0
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                start, end = self._between(left, right)
                yield start, end, "or" if isinstance(node.op, ast.And) else "and", "and/or", 1.0
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield *self._place(node), f"({self._text(node.operand)})", "not", 1.0
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            if not any(
                isinstance(side, ast.Dict | ast.Set | ast.List | ast.JoinedStr) for side in (node.left, node.right)
            ):
                start, end = self._between(node.left, node.right)
                yield start, end, _ARITHMETIC[type(node.op)], "arithmetic", 1.0
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            text = str(not node.value) if isinstance(node.value, bool) else f"({self._text(node)} + 1)"
            yield *self._place(node), text, "constant", 0.4
        elif isinstance(node, ast.Constant | ast.JoinedStr):
            yield from self._sql_changes(node)
        elif isinstance(node, ast.Expr | ast.AugAssign | ast.Raise):
            if not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call):
                yield *self._place(node), "pass", "deleted", 1.0
        elif isinstance(node, ast.Return) and node.value is not None:
            default = _default_of(returns)
            if ast.unparse(node.value) != default:
                yield *self._place(node.value), default, "return", 1.0
        elif isinstance(node, ast.If | ast.IfExp | ast.While) and isinstance(
            node.test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr
        ):
            yield *self._place(node.test), f"(not ({self._text(node.test)}))", "condition", 1.0

    def _sql_changes(self, node: ast.Constant | ast.JoinedStr) -> Iterator[tuple[int, int, str, str, float]]:
        text = self._text(node)
        if not _IS_SQL.search(text):
            return
        open_text = _SQL_HIDDEN.sub(lambda hidden: "\0" * len(hidden[0]), text)
        between = {found.end() for found in _BETWEEN.finditer(open_text)}
        start, _ = self._place(node)
        for pattern, swap in _SQL_SWAPS:
            for found in re.finditer(pattern, open_text):
                if found.end() in between:
                    continue
                at = start + len(text[: found.start()].encode())
                instead = str(int(found[0]) + 1) if swap == "+1" else swap
                yield at, at + len(found[0].encode()), instead, "sql", 0.4 if swap == "+1" else 1.0

    def _mutant(self, function: str, kind: str, start: int, end: int, text: str, weight: float) -> Mutant:
        first = self._source.rfind(b"\n", 0, start) + 1
        last = self._source.find(b"\n", end)
        before, after = self._source[first:start], self._source[end : last if last >= 0 else len(self._source)]
        was, now = (
            " ".join((before + middle + after).decode().split()) for middle in (self._source[start:end], text.encode())
        )
        line = self._source.count(b"\n", 0, start) + 1
        return Mutant(self._module, function, kind, line, was, now, start, end, text.encode(), weight)

    def _place(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._line_starts[node.lineno - 1] + node.col_offset,
            self._line_starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _text(self, node: ast.expr) -> str:
        start, end = self._place(node)
        return self._source[start:end].decode()

    def _between(self, left: ast.expr, right: ast.expr) -> tuple[int, int]:
        """Return where the operator stands between two operands, which may have parentheses and line ends around."""
        start, end = self._place(left)[1], self._place(right)[0]
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self._source[start:end])
        found = re.search(rb"[^\s()\\]+(\s+(in|not)\b)?", gap)
        assert found, gap
        return start + found.start(), start + found.end()


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.FormattedValue):
        return True  # in a text, of which Python 3.11 does not say where it stands
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and isinstance(node.value.func.value, ast.Name)
        and node.value.func.value.id == "log"
    )


def _default_of(returns: ast.expr | None) -> str:
    """Return what a function of that annotation might return that does nothing."""
    text = ast.unparse(returns) if returns is not None else ""
    if text in _DEFAULTS:
        return _DEFAULTS[text]
    return _EMPTY.get(text.partition("[")[0], "None")
