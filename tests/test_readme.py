"""README is short, its two set-up commands are there, and what it shows is what comes."""

from __future__ import annotations

from documents import ROOT, blocks, page

README = page("README.rst")
RUN = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/idagg serve --window 5"
TEST = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox run"


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_two_commands_that_set_it_up() -> None:
    """One installs and runs it, one installs what the tests need and passes them; CI runs that one."""
    commands = blocks(README, "sh")
    assert (commands[0], commands[-1]) == (RUN, TEST)
    *_, of_ci = page(".ci/run").splitlines()
    assert of_ci.replace(" -q ", " ") == TEST


def test_the_files_that_it_names_are_there() -> None:
    named = {
        line.split("``")[1] for line in README.splitlines() if line.startswith(("``docs/", "``CON", "``SEC"))
    }
    assert len(named) > 8
    assert not {name for name in named if not (ROOT / name).exists()}
