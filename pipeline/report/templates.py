"""HTML pages from Jinja2 templates: the one place that knows how, for the report and for evaluations.

`templates/base.html.jinja` is every page's frame, `templates/macros.html.jinja` has what pages have in common. Whatever
a template shows is escaped, its control characters too; what it shows must be there: an unknown name is an error.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib import resources

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.schema import printable

_NO_BREAK = "\u00a0"


def render(package: str, name: str, *, title: str, style: str, scripts: Sequence[str] = (), **shown: object) -> str:
    """Return the page that a template of `package` makes of what is `shown`: it can load nothing from anywhere.

    Its policy lets `style` and `scripts` pass by their hashes, and pictures that are in the page.
    """
    allowed = [f"style-src {_hash(style)}"]
    if scripts:
        allowed.append(f"script-src {' '.join(map(_hash, scripts))}")
    policy = "; ".join(["default-src 'none'", "img-src data:", *allowed, "base-uri 'none'", "form-action 'none'"])
    template = _environment(package).get_template(name)
    return template.render(
        title=title, policy=policy, style=Markup(style), scripts=[Markup(script) for script in scripts], **shown
    )


def packaged(package: str, name: str) -> str:
    """Return the text of a file that is part of a package, such as its style sheet."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("pipeline.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    # For programs to read. Jinja2 escapes <, >, & and ' in it, so that no end tag and no comment is in there.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"form": format, "base64": _base64}
    return environment


def _shown(value: object) -> object:
    """Return what a template shows for a value: HTML as it is, all else as text without control characters."""
    if hasattr(value, "__html__"):
        return value
    assert value is not None, "a template shows nothing where something was meant"
    return _NO_BREAK.join(map(printable, str(value).split(_NO_BREAK)))


def _hash(content: str) -> str:
    return f"'sha256-{_base64(hashlib.sha256(content.encode()).digest())}'"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
