"""``ld_deploy_hooks: tasks:`` in the host's configuration: which task gets which entry."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ld_deploy_hooks._mapping import mapped

TASKS = {
    "release.*": {"application_key": "pattern"},
    "release.web": {"application_key": "whole"},
    "re*": {"application_key": "later"},
    "up_date": {"application_key": "underscore"},
    "roll-back": {"application_key": "dash"},
    "bare": None,
    7: {"application_key": "number"},
}


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (["release.web"], "whole"),
        (["release.api"], "pattern"),
        (["release.api", "release.web"], "whole"),
        (["release"], "later"),
        (["up_date"], "underscore"),
        (["up-date"], "underscore"),
        (["roll_back"], "dash"),
        (["7"], "number"),
        (["other", "up-date"], "underscore"),
    ],
)
def test_the_entry_of_a_task(names: list[str], key: str) -> None:
    assert mapped({"tasks": TASKS}, names) == {"application_key": key}


def test_an_empty_entry_is_an_entry() -> None:
    assert mapped({"tasks": TASKS}, ["bare"]) == {}


@pytest.mark.parametrize(
    ("configuration", "names"),
    [({"tasks": TASKS}, ["other"]), ({"tasks": TASKS}, ["Release.web"]), ({"tasks": TASKS}, []), ({}, ["release.web"])],
)
def test_no_entry(configuration: dict[str, Any], names: list[str]) -> None:
    assert mapped(configuration, names) is None


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        (["deploy"], "tasks: in the host's configuration is no mapping"),
        ({"deploy": "web"}, "tasks: deploy: in the host's configuration is no mapping"),
    ],
)
def test_what_is_no_mapping_is_said(tasks: object, line: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ld_deploy_hooks"):
        assert mapped({"tasks": tasks}, ["deploy"]) is None
    assert line in caplog.text
    assert "Write `deploy: {application_key: " in caplog.text


@pytest.mark.parametrize("key", [True, False, None])
def test_a_key_that_yaml_made_no_text_is_said(key: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ld_deploy_hooks"):
        assert mapped({"tasks": {key: {}, "deploy": {"version": "1"}}}, ["deploy"]) == {"version": "1"}
    assert f"{key} is the name of no task" in caplog.text
    assert "Put it in quotes." in caplog.text
