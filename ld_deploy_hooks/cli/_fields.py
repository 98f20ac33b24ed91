"""The options that say what is deployed, of the commands that tell something themselves."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["FIELDS_USAGE", "add_fields", "fields_of"]

# Option, metavar, help. Each is a field of deployment() by the same name.
_FIELDS = (
    ("--application-key", "KEY", "the application, as LaunchDarkly knows it"),
    ("--environment-key", "KEY", "LaunchDarkly environment"),
    ("--project-key", "KEY", "LaunchDarkly project"),
    ("--version", "VERSION", "what is deployed: letters, digits, '.', '-', '_'; best the commit's SHA or tag"),
    ("--application-name", "NAME", "how the application is displayed"),
    ("--application-kind", "KIND", "server, browser or mobile"),
    ("--version-name", "NAME", "how the version is displayed"),
)
_METADATA = (
    ("--metadata", "about the deployment (deploymentMetadata), which LaunchDarkly shows"),
    ("--event-metadata", "about the event (eventMetadata)"),
)

FIELDS_USAGE = " ".join(
    [f"[{option} {metavar}]" for option, metavar, _ in _FIELDS] + [f"[{option} KEY=VALUE]" for option, _ in _METADATA]
)


def add_fields(command: argparse.ArgumentParser) -> None:
    """Add the options; what they leave open comes from the environment, ``pyproject.toml`` or a plugin."""
    group = command.add_argument_group("what is deployed", "What is not given comes from the settings.")
    for option, metavar, text in _FIELDS:
        kind = _application_kind if option == "--application-kind" else str
        group.add_argument(option, metavar=metavar, type=kind, help=text)
    for option, text in _METADATA:
        group.add_argument(
            option,
            metavar="KEY=VALUE",
            type=_pair,
            action="append",
            default=[],
            help=f"{text}; may be repeated, the value is always text",
        )


def fields_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given, by the names that ``deployment()`` has for it; None where nothing was."""
    names = [option[2:].replace("-", "_") for option, *_ in _FIELDS]
    return {
        **{name: getattr(arguments, name) for name in names},
        "metadata": dict(arguments.metadata),
        "event_metadata": dict(arguments.event_metadata),
    }


def _application_kind(text: str) -> str:
    from ld_deploy_hooks._records import APPLICATION_KINDS

    if text not in APPLICATION_KINDS:
        raise argparse.ArgumentTypeError(f"give one of {', '.join(APPLICATION_KINDS)}")
    return text


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        # Without the text itself: it may be a secret that slipped.
        raise argparse.ArgumentTypeError("give KEY=VALUE")
    return key, value
