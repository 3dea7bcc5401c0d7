"""Flags and YAML fill one typed dataclass per command; unknown keys and wrong values are errors for people."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from shards.errors import UserError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Config = TypeVar("Config")


def parse(config_class: type[Config], argv: list[str], prog: str) -> Config:
    """Build `config_class` from `--config FILE.yaml` and `--field value` flags; later ones win.

    A field of type bool also works as a bare switch (`--save_images`). The class attribute
    `ALIASES` maps further flag names to `field` or `field=value`, and `POSITIONAL` names the field that a first
    argument without dashes fills.

    Raises UserError for an unknown key, a value of the wrong type, or what `__post_init__` refuses.
    """
    parser = ArgumentParser(prog=prog, description=config_class.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below")
    # Resolved here, since jsonargparse would import what the module imports for type checkers only (torch).
    config_class.__init__.__annotations__.update(get_type_hints(config_class))
    parser.add_class_arguments(config_class)
    try:
        namespace = parser.parse_args(_plain_flags(config_class, argv))
    except (ArgumentError, UnicodeDecodeError) as error:
        raise UserError(f"{prog}: {_first_sentence(error)} ('{prog} --help' lists every flag)") from None
    values = vars(namespace)
    values.pop("config", None)
    hints = get_type_hints(config_class)
    for name, value in values.items():
        if value is None and type(None) not in get_args(hints[name]):  # the parser takes null for any type
            raise UserError(f"{prog}: {name} is null; give it a value or leave it out")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{prog}: {name} is {value}; whole numbers lie between -2^63 and 2^63")
    try:
        return config_class(**values)
    except ValueError as error:
        raise UserError(f"{prog}: {error}") from None


def save(config: object, path: Path) -> None:
    """Write the resolved configuration as YAML that `--config` reads back to an equal object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(config), encoding="utf-8")


def dump(config: object) -> str:
    """Return the configuration as YAML, fields in the order of their definition."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def as_dict(config: object) -> dict:
    """Return the configuration as plain JSON-able values (paths as strings)."""

    def plain(value):
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}  # type: ignore[arg-type]


def _plain_flags(config_class: type, argv: list[str]) -> list[str]:
    """Rewrite aliases and bare switches into `--field=value`, the one form that jsonargparse needs."""
    hints = get_type_hints(config_class)
    aliases: dict[str, str] = getattr(config_class, "ALIASES", {})
    plain: list[str] = []
    positional: str | None = getattr(config_class, "POSITIONAL", None)
    if positional and argv and not argv[0].startswith("-"):
        argv = [f"--{positional}={argv[0]}", *argv[1:]]
    for position, argument in enumerate(argv):
        if not argument.startswith("--"):
            plain.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        if name in aliases and "=" in aliases[name]:  # a switch that stands for one value, such as --fp16
            plain.append("--" + aliases[name])
            continue
        name = aliases.get(name, name)
        following = argv[position + 1] if position + 1 < len(argv) else "--"
        if (
            not equals
            and hints.get(name) in (bool, bool | None)
            and following.lower() not in ("true", "false", "yes", "no")
        ):
            equals, value = "=", "true"
        plain.append(f"--{name}{equals}{value}")
    return plain


def _first_sentence(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the file of --config is no text in UTF-8"
    text = " ".join(str(error).split())
    return text.replace("Unexpected config:", "the file of --config does not hold 'flag: value' lines:").rstrip(" :")
