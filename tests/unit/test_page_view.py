"""What the status page says, and the HTML that says it."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idagg.read.fleet import Stale, Status
from idagg.read.page import models, plot
from idagg.read.page.models import View
from idagg.read.page.patch import patch
from idagg.read.page.render import Page
from idagg.read.page.view import view
from idagg.read.page.windows import LATE_S
from idagg.read.page.words import (
    axis,
    duration,
    milliseconds,
    number,
    rate,
    time_of_day,
    visible,
    window_time,
)
from idagg.store.kept import KeptWindow
from kit.page_states import STATES

PAGE = Page()
STORE_AWAY = (
    "web-1 cannot reach the store: its requests are answered failed. "
    "Other machines are shown as of 10:54:09 UTC."
)
FILES = resources.files("idagg.read.page")


def said(state: str) -> View:
    return view(*STATES[state](), build="x")


class Read(HTMLParser):
    """Elements and texts, as a browser would have them."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize(
    ("state", "title", "sentence"),
    [
        ("fresh", "Counting", "This machine stores ids, and windows are delivered in time."),
        ("counting", "Counting", "Both machines store ids, and windows are delivered in time."),
        (
            "broker_away",
            "Counting, with trouble",
            "Ids are stored. 4 windows in the log file, not yet in RabbitMQ.",
        ),
        ("worker_dead", "Counting, with trouble", "Ids are stored, by 3 of 4 workers."),
        (
            "store_away",
            "Not counting",
            STORE_AWAY,
        ),
        (
            "late",
            "Counting, with trouble",
            "Ids are stored. 2 windows ended and not sealed: the ids are safe in the store.",
        ),
        (
            "many",
            "Counting, on a part of the machines",
            "19 of 20 machines store ids; web-12.fra1.example.net is silent since 10:54:12.",
        ),
        (
            "machine_dead",
            "Counting, on a part of the machines",
            "1 of 2 machines stores ids; web-2 is silent since 10:52:58.",
        ),
        (
            "quarantined",
            "Counting, with trouble",
            "Ids are stored. 1 window quarantined: an operator has to repair the keys.",
        ),
        (
            "estimate",
            "Counting, with trouble",
            "Ids are stored. 1 window suspect: the store had lost writes.",
        ),
    ],
)
def test_the_verdict(state: str, title: str, sentence: str) -> None:
    verdict = said(state).verdict
    assert (verdict.title, verdict.sentence) == (title, sentence)


def test_the_verdict_without_a_leader() -> None:
    status, windows = STATES["counting"]()
    verdict = view(status.model_copy(update={"leader": None}), windows).verdict
    assert verdict.state == "warning"
    assert verdict.sentence.startswith(
        "Ids are stored. No machine leads: windows are sealed and delivered late"
    )


def test_a_leader_is_not_missed_at_once() -> None:
    """A new idagg is not in trouble: it takes a moment to elect a leader."""
    status, _ = STATES["fresh"]()
    started = [status.machines[0].model_copy(update={"started": status.now - datetime.timedelta(seconds=2)})]
    status = status.model_copy(update={"leader": None, "pending": None, "machines": started})
    verdict = view(status, []).verdict
    assert (verdict.title, verdict.sentence) == ("Counting", "Ids are stored. No machine leads yet.")


def test_nothing_is_late_where_nobody_knows() -> None:
    """Without a leader's word the page does not say that nothing is late."""
    status, _ = STATES["counting"]()
    shown = view(status.model_copy(update={"pending": None}), [])
    assert (shown.late.count, shown.late.state) == ("—", "warning")
    assert shown.verdict.title == "Counting"


def test_a_machine_that_is_silent_does_not_count() -> None:
    """It is named, whatever it said before it fell silent, and none of that is shown as the present."""
    shown = said("machine_dead")
    assert shown.verdict.state == "warning"
    assert [(reason.part, reason.where, reason.since) for reason in shown.verdict.reasons] == [
        ("machine", "web-2", "since 10:52:58")
    ]
    silent = shown.machines[1]
    assert (silent.about, silent.state, silent.rate) == ("silent since 10:52:58", "bad", "—")
    assert {(worker.about, worker.state) for worker in silent.workers} == {("not heard of", "bad")}
    assert shown.requests.count == number(9805)
    assert shown.requests.lines[0].text == "a second, on 1 of 2 machines"


def test_several_that_do_not_count() -> None:
    """Why each does not; and of many that are silent, how many more."""
    status, windows = STATES["many"]()
    machines = [
        machine.model_copy(update={"silent_since": status.now - datetime.timedelta(seconds=60)})
        if number < 5
        else machine
        for number, machine in enumerate(reversed(status.machines))
    ][::-1]
    away = [worker.model_copy(update={"trouble": "away"}) for worker in machines[1].workers]
    machines[1] = machines[1].model_copy(update={"workers": away})
    verdict = view(status.model_copy(update={"machines": machines}), windows).verdict
    assert verdict.sentence == (
        "13 of 20 machines store ids; not web-02.fra1.example.net; web-12.fra1.example.net is silent since "
        "10:54:12, web-16.fra1.example.net is silent since 10:53:21, web-17.fra1.example.net is silent since "
        "10:53:21, and 3 more."
    )


def test_a_machine_that_counts_alone_while_others_cannot_be_asked_for() -> None:
    status, windows = STATES["counting"]()
    stale = Stale(since=status.now - datetime.timedelta(seconds=12), text="away")
    shown = view(status.model_copy(update={"stale": stale}), windows)
    assert shown.verdict.state == "warning"
    assert shown.verdict.sentence == (
        "Ids are stored by web-1. Other machines are shown as of 10:54:09 UTC: the store cannot be asked for "
        "them."
    )
    other = shown.machines[1]
    assert (other.about, other.state, other.workers[0].about) == ("not known", "warning", "not known")


def test_heartbeats_of_another_machine() -> None:
    """Their age is the status' own, which is since the worker said it: the machine's age is in it."""
    status, windows = STATES["counting"]()
    worker = status.machines[1].workers[0].model_copy(update={"heartbeat_age_s": 3.0})
    other = status.machines[1].model_copy(update={"age_s": 2.0, "workers": [worker]})
    shown = view(status.model_copy(update={"machines": [status.machines[0], other]}), windows)
    assert (shown.machines[1].heartbeat, shown.machines[1].workers[0].heartbeat) == ("2.0 s ago", "3.0 s ago")


def test_a_store_that_is_away_shows_before_the_others_are_silent() -> None:
    """What another machine said a moment before does not make the page say that ids are stored."""
    status, windows = STATES["store_away"]()
    healthy = STATES["counting"]()[0].machines[1].model_copy(update={"age_s": 2.0})
    status = status.model_copy(update={"machines": [status.machines[0], healthy]})
    verdict = view(status, windows).verdict
    assert (verdict.state, verdict.title) == ("bad", "Not counting")
    assert verdict.sentence.startswith("web-1 cannot reach the store")


def test_one_trouble_of_many_machines_is_one_line() -> None:
    """What the others said before the store went away is not told as the present."""
    status, windows = STATES["store_away"]()
    reasons = view(status, windows).verdict.reasons
    assert [(reason.part, reason.where) for reason in reasons] == [("store", "web-1"), ("machines", "web-1")]
    (reason,) = view(status.model_copy(update={"stale": None}), windows).verdict.reasons
    assert (reason.part, reason.where) == ("store", "web-1, web-2")


def test_the_last_window_is_the_newest_that_is_known() -> None:
    """The leader knows it before the kept windows are read again, and the other way round."""
    status, windows = STATES["counting"]()
    assert status.last is not None
    newest = windows[-1].record
    assert view(status, windows[:-1]).last.count == number(newest.unique_ids)
    assert view(status.model_copy(update={"last": None}), windows).last.count == number(newest.unique_ids)
    assert said("big").last.count == "580\u202f112\u202f000"
    assert [line.text for line in said("estimate").last.lines][1] == "estimate, standard error 0.8 %"


def test_windows_of_the_table() -> None:
    status, windows = STATES["late"]()
    rows = {row.start: row for row in view(status, windows).plot.windows}
    assert rows["10:51"].delivered == "not delivered yet: late"
    assert rows["10:50"].delivered == "RabbitMQ after 0.0 s"
    assert [row.start for row in rows.values()][:2] == ["10:51", "10:50"]
    (late,) = [row.delivered for row in rows.values() if "74" in row.delivered]
    assert late == "RabbitMQ after 74 s: late"
    record, *_ = windows[5]
    twice = KeptWindow(record, "log", record.end_s + 1.0, record.end_s + 90.0)
    assert view(status, [twice]).plot.windows[0].delivered == "log file after 1.0 s, RabbitMQ after 90 s"


def test_marks_of_the_plot() -> None:
    shown = said("late").plot
    places = {name: _places(getattr(shown, name).marks) for name in ("late", "missing", "inexact", "suspect")}
    assert places == {"late": [30, 57, 58, 59], "missing": [12, 13, 14], "inexact": [], "suspect": []}
    assert shown.inexact.none
    assert not shown.late.none
    assert len(shown.readouts) == plot.PLACES
    assert shown.readouts[13] == "10:07: no record"
    assert shown.readouts[58] == "10:52: not sealed yet; its ids are safe in the store"


def test_a_window_that_has_just_ended_is_not_late() -> None:
    status, windows = STATES["counting"]()
    now = datetime.datetime.fromtimestamp(windows[-1].record.end_s + LATE_S - 1, datetime.UTC)
    shown = view(status.model_copy(update={"now": now, "last": None}), windows[:-1])
    assert (shown.late.count, shown.plot.late.none) == ("Nothing", True)


def test_before_the_first_window() -> None:
    shown = said("fresh")
    assert (shown.last.count, shown.plot.none) == ("—", True)
    assert shown.plot.first == "The first one ends at 10:55 UTC."


def _places(marks: str) -> list[int]:
    return [int(x) // 10 for x in re.findall(r"M(\d+) ", marks)]


@given(
    st.lists(st.integers(0, 10**15), min_size=1, max_size=plot.PLACES),
)
def test_bars_stay_within_the_plot(values: list[int]) -> None:
    """Each bar's height is its share of a round number that is not much more than the highest."""
    top = plot.ceiling(values)
    assert max(values) <= top <= max(10, max(values) * 1.34)
    assert len(axis(top)) <= 6
    drawn = re.findall(r"M(\d+) 100V([\d.e-]+)h8V100z", plot.bars(enumerate(values), top))
    assert [int(x) for x, _ in drawn] == [place * 10 + 1 for place, value in enumerate(values) if value]
    for (_, y), value in zip(drawn, filter(None, values), strict=True):
        assert float(y) == pytest.approx(100 - max(100 * value / top, 0.6), abs=0.06)


@given(st.integers(0, 2**40), st.sampled_from([1, 5, 60, 3600]))
def test_each_window_has_its_place(now_s: int, length_s: int) -> None:
    span = plot.span(now_s + 0.5, length_s)
    assert span.place(span.end_s) == plot.PLACES
    assert span.place(span.end_s - length_s) == plot.PLACES - 1
    assert span.place(span.start_s) == 0
    assert span.place(span.start_s - 1) is None
    assert span.end_s <= now_s < span.end_s + length_s


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (number(580_112_000), "580\u202f112\u202f000"),
        (rate(0), "0"),
        (rate(0.6), "0.60"),
        (rate(8.84), "8.8"),
        (rate(19_596.4), "19\u202f596"),
        (duration(0.04), "0.0 s"),
        (duration(-1), "0.0 s"),
        (duration(74.2), "74 s"),
        (duration(600), "10 min"),
        (duration(7200), "2 h"),
        (duration(200_000), "2 days"),
        (milliseconds(None), "—"),
        (milliseconds(0.92), "0.9 ms"),
        (milliseconds(12.4), "12 ms"),
        (milliseconds(1240), "1.2 s"),
        (axis(2_500_000), "2.5 M"),
        (axis(10), "10"),
        (window_time(1_800_000_000, 60), "08:00"),
        (window_time(1_800_000_005, 5), "08:00:05"),
        (visible("a\u202eb\x1b[0m\n"), "a\ufffdb\ufffd[0m\ufffd"),
        (visible("abcdef", 3), "abc…"),
    ],
)
def test_words(words: str, text: str) -> None:
    assert words == text


def test_times_of_other_days_have_their_date() -> None:
    now = datetime.datetime(2026, 11, 22, 0, 0, 5, tzinfo=datetime.UTC)
    assert time_of_day(now, now) == "00:00:05"
    assert time_of_day(now - datetime.timedelta(seconds=6), now) == "2026-11-21 23:59:59"


_LEAF = (
    st.booleans()
    | st.text(max_size=2)
    | st.lists(st.fixed_dictionaries({"t": st.text(max_size=1)}), max_size=2)
)
_VIEW = st.fixed_dictionaries(
    {
        "a": _LEAF,
        "b": st.fixed_dictionaries({"c": _LEAF, "d": st.fixed_dictionaries({"e": _LEAF, "f": _LEAF})}),
    }
)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396, section 2, without deletions."""
    return old | {
        name: merged(old[name], value) if isinstance(value, dict) else value for name, value in new.items()
    }


@given(_VIEW, _VIEW)
def test_a_patch_makes_the_new_view_of_the_old_one(before: dict[str, Any], after: dict[str, Any]) -> None:
    found = patch(before, after)
    assert merged(before, found) == after
    assert (found == {}) == (before == after)


def test_a_second_changes_little() -> None:
    """What an open page is told each second has neither the windows nor what they draw."""
    status, windows = STATES["counting"]()
    later = status.model_copy(update={"now": status.now + datetime.timedelta(seconds=1)})
    before, after = (orjson.loads(orjson.dumps(view(now, windows))) for now in (status, later))
    assert sorted(patch(before, after)) == ["as_of", "current"]
    assert len(orjson.dumps(patch(before, after))) < 300


# The HTML.


def _bindings(element: ElementTree.Element, of: type, found: set[tuple[type, str]]) -> None:
    """Every field that the template names, with the class that it is of."""
    fields = {field.name: field.type for field in dataclasses.fields(of)}
    hints = {name: str(kind) for name, kind in fields.items()}
    if name := element.get("data-with"):
        found.add((of, name))
        of = vars(models)[hints[name]]
        hints = {field.name: str(field.type) for field in dataclasses.fields(of)}
    named = [pair.partition(":")[2] for pair in element.get("data-attr", "").split()]
    for name in filter(None, [element.get("data-text"), *named]):
        assert hints[name] in ("str", "bool", "State"), name
        found.add((of, name))
    if name := element.get("data-each"):
        found.add((of, name))
        (template,) = element
        assert template.tag == "template"
        _bindings(template[0], vars(models)[re.fullmatch(r"list\[(\w+)\]", hints[name])[1]], found)  # type: ignore[index]  # a list, or the test fails
        return
    for child in element:
        _bindings(child, of, found)


def test_the_template_shows_every_field() -> None:
    """And names none that is not there."""
    found: set[tuple[type, str]] = set()
    _bindings(ElementTree.fromstring((FILES / "page.html").read_text()), View, found)  # noqa: S314  our own file
    classes = {of for of, _ in found}
    every = {(of, field.name) for of in classes for field in dataclasses.fields(of)}
    by_script = {"key", "readouts", "current_readout"}
    assert {name for _, name in every - found} == by_script


def test_the_page_is_small() -> None:
    assert sum(len((FILES / name).read_bytes()) for name in ("page.html", "page.css", "page.js")) < 40_000
    assert len(PAGE.html(said("many"))) < 150_000


def test_the_policy_has_the_hashes_of_what_is_served() -> None:
    html = PAGE.html(said("hostile")).decode()
    for kind, tag in (("script", "script"), ("style", "style")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in PAGE.policy
    for directive in (
        *("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"),
        *("form-action 'none'", "trusted-types 'none'"),
    ):
        assert directive in PAGE.policy
    assert "unsafe" not in PAGE.policy


def test_nothing_is_asked_of_others() -> None:
    html = PAGE.html(said("counting"))
    for _, attributes in Read(html).elements:
        for name in ("src", "href", "action", "srcset", "style", "data"):
            assert re.match(r"(/|data:image/svg)", attributes.get(name) or "/")
    assert b"@import" not in html
    assert b"url(" not in html


def test_hostile_texts_are_texts() -> None:
    """They change neither the elements nor their attributes' names."""
    hostile = Read(PAGE.html(said("hostile")))
    assert {tag for tag, _ in hostile.elements} <= {
        tag for tag, _ in Read(PAGE.html(said("broker_away"))).elements
    }
    assert not [name for _, attributes in hostile.elements for name in attributes if name.startswith("on")]
    assert "".join(hostile.texts).count('<img src=x onerror="hacked=1">') > 20


@given(st.text())
def test_any_text_comes_through(text: str) -> None:
    status, windows = STATES["counting"]()
    status = status.model_copy(update={"namespace": text})
    (shown,) = (
        element
        for element in Read(PAGE.html(view(status, windows))).elements
        if element[1].get("data-text") == "namespace"
    )
    assert shown[0] == "span"
    read = Read(PAGE.html(view(status, windows)))
    assert visible(text) in "".join(read.texts)


def test_the_build_changes_with_the_template() -> None:
    assert PAGE.build == Page().build
    assert f'data-build="{PAGE.build}"' in PAGE.html(view(*STATES["counting"](), build=PAGE.build)).decode()


def statuses() -> Iterator[Status]:
    for make in STATES.values():
        yield make().status


def test_every_state_is_a_status_that_can_be_sent() -> None:
    for status in statuses():
        assert Status.model_validate_json(status.model_dump_json()) == status
