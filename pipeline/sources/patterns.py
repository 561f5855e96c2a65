"""The patterns of `--include` and `--exclude`: which photos they take, and which folders and archives are not opened.

They match a name below the source, upper and lower case alike: `*.jpg` and `thumbs/*.jpg` at any depth, `/thumbs` from
the top only, a folder's name with all below it; `*` and `?` stop at a slash, `**` doesn't, `[a-z]` and `[!a-z]` are one
character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources import archives


class Patterns:
    """A photo is taken that matches one of `include` (where there are any) and none of `exclude`.

    Raises ValueError for a pattern that can't be understood.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include, self._exclude = _any_of(include), _any_of(exclude)
        self._ways = [] if not all(each.startswith("/") for each in include) else [_ways(each) for each in include]
        self._names_archives = all(each.rstrip("/").lower().endswith(archives.ENDINGS) for each in include)

    def takes(self, names: pa.ChunkedArray, is_included: bool = False) -> pa.ChunkedArray:
        """Return for each name whether it is taken; with `is_included`, only `exclude` is asked."""
        taken = pa.chunked_array([pa.repeat(True, len(names))])
        if self._include and not is_included:
            taken = pc.match_substring_regex(names, self._include)
        return pc.and_(taken, pc.invert(pc.match_substring_regex(names, self._exclude))) if self._exclude else taken

    def enters(self, folder: str, for_archives: bool = False) -> bool:
        """Whether anything below a folder, named from the source on, can be taken.

        Where it is gone through `for_archives`, `include` is about what is in them.
        """
        if _matches(self._exclude, f"{folder}/"):
            return False
        if (for_archives and not self._names_archives) or not self._ways or _matches(self._include, f"{folder}/"):
            return True
        depth = folder.count("/") + 1
        return any(_matches(way[min(depth, len(way)) - 1], folder) for way in self._ways)

    def includes(self, name: str) -> bool:
        """Whether `include` names an archive, so that its every member is taken that is not excluded."""
        return _matches(self._include, name)

    def opens(self, archive: str) -> bool:
        """Whether any member of an archive, named from the source on, can be taken."""
        if _matches(self._exclude, archive):
            return False
        return not (self._include and self._names_archives) or self.includes(archive)


def regex_of(pattern: str) -> str:
    """Return the regular expression, in RE2's dialect, for a name that `pattern` takes; ValueError for none."""
    body = pattern.removeprefix("/").removesuffix("/")
    if not body:
        raise ValueError(f"the pattern {pattern!r} names nothing: write e.g. '*.jpg' or 'thumbnails/'")
    regex = (r"\A/?" if pattern.startswith("/") else r"(?:\A|/)") + _translated(body)
    regex += "/" if pattern.endswith("/") else r"(?:/|\z)"
    try:
        pc.match_substring_regex(pa.array([""]), regex)
    except pa.ArrowInvalid as error:
        raise ValueError(f"the pattern {pattern!r} can't be understood: {error}") from error
    return regex


def _any_of(patterns: Sequence[str]) -> str:
    return f"(?is){'|'.join(regex_of(pattern) for pattern in patterns)}" if patterns else ""


def _ways(pattern: str) -> list[str]:
    """Return for each depth the regular expression of the folders that may lead to what a pattern from the top takes.

    Number 0 is for folders in the source itself; the last one is for all that are deeper.
    """
    ways: list[str] = []
    parts = pattern.strip("/").split("/")
    for depth in range(1, len(parts) + 1):
        if any("**" in part for part in parts[:depth]):
            return [*ways, r"(?is)\A.*\z"]
        ways.append(rf"(?is)\A{_translated('/'.join(parts[:depth]))}\z")
    return [*ways, r"(?is)\A\z"]


def _translated(body: str) -> str:
    translated = ""
    for part in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\]|.", body, re.DOTALL):
        if len(part) > 2 and part[0] == "[":
            inside = part[2:-1] if part[1] == "!" else part[1:-1]
            inside = re.sub(r"([\\\[\]^&])", r"\\\1", inside)
            translated += f"[^/{inside}]" if part[1] == "!" else f"[{inside}]"
        else:
            kinds = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
            translated += kinds.get(part) or re.escape(part)
    return translated


def _matches(regex: str, name: str) -> bool:
    return bool(regex) and bool(pc.match_substring_regex(pa.scalar(name), regex).as_py())
