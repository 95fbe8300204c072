"""The status page's HTML: the template with a view's texts in their places; and the policy for it."""

from __future__ import annotations

import base64
import copy
import hashlib
from importlib import resources
from xml.etree import ElementTree

from idagg.read.page.models import View

_FILES = resources.files(__package__)


class Page:
    """The template with its style and script, put together once.

    ``page.html`` is XML. Its elements are bound by attributes, which ``page.js`` reads, too:
    ``data-text="field"`` is the element's text, ``data-attr="name:field …"`` are attributes,
    ``data-with="field"`` narrows what is below to a part of the view, and ``data-each="field"`` has a
    ``<template>`` that is repeated for each item.
    """

    def __init__(self) -> None:
        style, script = _text("page.css"), _text("page.js")
        self._root = ElementTree.fromstring(_text("page.html"))  # noqa: S314  our own file
        for name, text in (("style", style), ("script", script)):
            for element in self._root.iter(name):
                element.text = text
        self.build = _digest(self._bytes(self._root))
        self.policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src '{_digest(script.encode())}'",
                f"style-src '{_digest(style.encode())}'",
                "img-src data:",  # the icon
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
            )
        )

    def html(self, view: View) -> bytes:
        root = copy.deepcopy(self._root)
        _fill(root, view)
        return self._bytes(root)

    def _bytes(self, root: ElementTree.Element) -> bytes:
        # Text and attributes are escaped there.
        html: bytes = ElementTree.tostring(root, encoding="utf-8", method="html")
        return b"<!doctype html>\n" + html


def _text(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _digest(data: bytes) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(data).digest()).decode()}"


def _fill(element: ElementTree.Element, values: object) -> None:
    if field := element.get("data-with"):
        values = getattr(values, field)
    if field := element.get("data-text"):
        element.text = getattr(values, field)
    for pair in element.get("data-attr", "").split():
        name, _, field = pair.partition(":")
        value = getattr(values, field)
        if value is True:
            element.set(name, "")
        elif value is not False:
            element.set(name, value)
    if field := element.get("data-each"):
        (template,) = element
        for item in getattr(values, field):
            row = copy.deepcopy(template[0])
            if key := getattr(item, "key", None):
                row.set("data-key", key)
            _fill(row, item)
            element.append(row)
        return
    for child in element:
        _fill(child, values)
