"""Flags and YAML fill one typed dataclass per command; unknown keys and wrong values are errors for people."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from shards import atomic
from shards.errors import UserError
from shards.validation import plain

COMMON = "common"  # section of a preset whose values go to every command that has such a field
TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
NAMES_OF_TYPES = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "text"}
EXAMPLES_OF_LISTS = {int: "[1, 2]", float: "[0.1, 0.5]", str: "[fall, walk]"}
PRESETS = Path(__file__).resolve().parents[1] / "configs"  # beside the packages, in a checkout and where pip puts them

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Config = TypeVar("Config")


def parse(
    config_class: type[Config],
    argv: list[str],
    prog: str,
    section: str = "",
    sections: Mapping[str, Callable[[], type]] | None = None,
) -> Config:
    """Build `config_class` from `--config FILE` and `--field value` flags; later ones win.

    FILE is YAML, or the name of a preset that comes with mdaug. It holds fields, or sections of fields: then `section`
    is taken, over what `common:` has for fields of this class.

    A field of type bool also works as a bare switch (`--save_images`). The class attribute `ALIASES` maps further flag
    names to `field` or `field=value`, and `POSITIONAL` names the field that a first argument without dashes fills.
    `~` at the beginning of a path is the home folder. Where a field wants text, a number, a date or a yes in YAML is
    text as it is written.

    Args:
        config_class: a dataclass of options.
        argv: the flags.
        prog: what errors begin with, such as "mdaug pack".
        section: name of the command in a preset.
        sections: name of each command -> what loads its dataclass of options.

    Raises:
        UserError: an unknown key or section, a value of the wrong type, or what `__post_init__` refuses.
    """
    parser = ArgumentParser(
        prog=prog, description=config_class.__doc__, epilog=_other_spellings(config_class), exit_on_error=False
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the fields below, or the name of a preset"
    )
    # Resolved here, since jsonargparse would import what the module imports for type checkers only (torch).
    config_class.__init__.__annotations__.update(get_type_hints(config_class))
    parser.add_class_arguments(config_class)
    try:
        flags = _plain_flags(config_class, argv)
        namespace = parser.parse_args(_take_sections(config_class, flags, prog, section, sections or {}))
    except (ArgumentError, UnicodeDecodeError) as error:
        raise UserError(f"{prog}: {_in_words(error, config_class)} ('{prog} --help' lists every flag)") from None
    values = vars(namespace)
    values.pop("config", None)
    hints = get_type_hints(config_class)
    for name, value in values.items():
        if value is None and type(None) not in get_args(hints[name]):  # the parser takes null for any type
            raise UserError(f"{prog}: {name} is null; give it a value or leave it out")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{prog}: {name}={value} must be between -2^63 and 2^63")
        if isinstance(value, Path):
            values[name] = Path(os.path.expanduser(value))
    try:
        return config_class(**values)
    except ValueError as error:
        raise UserError(f"{prog}: {error}") from None


def save(config: object, path: Path) -> None:
    """Write the resolved configuration as YAML that `--config` reads back to an equal object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, dump(config))


def dump(config: object) -> str:
    """Return the configuration as YAML, fields in the order of their definition."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def as_dict(config: object) -> dict:
    """Return the configuration as plain JSON-able values (paths as strings)."""
    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}  # type: ignore[arg-type]


def _plain_flags(config_class: type, argv: list[str]) -> list[str]:
    """Rewrite aliases and bare switches into `--field=value`, the one form that jsonargparse needs."""
    hints, name = get_type_hints(config_class), ""
    aliases: dict[str, str] = getattr(config_class, "ALIASES", {})
    plain: list[str] = []
    positional: str | None = getattr(config_class, "POSITIONAL", None)
    if positional and argv and not argv[0].startswith("-"):
        argv = [f"--{positional}={argv[0]}", *argv[1:]]
    for position, argument in enumerate(argv):
        if not argument.startswith("--") or " " in argument.partition("=")[0]:  # a value, which may be flags itself
            plain.append(_flag_as_text(argument, hints.get(name)))
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
        plain.append(f"--{name}{equals}{_flag_as_text(value, hints.get(name))}")
    return plain


def _other_spellings(config_class: type) -> str:
    """Return the end of the help: every spelling that `_plain_flags` accepts beside the names of the fields."""
    aliases = {f"--{alias}": f"--{meant}" for alias, meant in getattr(config_class, "ALIASES", {}).items()}
    if positional := getattr(config_class, "POSITIONAL", None):
        aliases[f"a first word without dashes, {positional.upper()},"] = f"--{positional}={positional.upper()}"
    spellings = [f"{alias} is short for {meant}" for alias, meant in aliases.items()]
    if bool in get_type_hints(config_class).values():
        spellings.append("a flag of type bool without a value means true")
    spellings += ["--a-name is --a_name", "the beginning of a name is enough where no other begins so"]
    return f"Other spellings: {'; '.join(spellings)}."


def _take_sections(
    config_class: type, flags: list[str], prog: str, section: str, sections: Mapping[str, Callable[[], type]]
) -> list[str]:
    """Replace the file of every `--config` by its path, or by the text of one section where it has sections."""
    taken, files = [], iter(flags)
    for flag in files:
        name, equals, value = flag.partition("=")
        if name != "--config":
            taken.append(flag)
            continue
        value = value if equals else next(files, "")
        if not value:
            raise UserError(f"{prog}: --config needs a value: a YAML file, or the name of a preset")
        path = Path(os.path.expanduser(value))
        if not path.is_file():
            presets = {preset.stem: preset for preset in sorted(PRESETS.glob("*.yaml"))}
            if str(path) not in presets:
                old = path.parent.name  # presets were folders once, with a file for each command
                hint = f"; a preset is one file now: --config {old}" if old in presets else ""
                what = "is a folder" if path.is_dir() else "does not exist"
                raise UserError(f"{prog}: --config {path} {what}{hint}; presets are {', '.join(presets)}")
            path = presets[str(path)]
        taken.append(f"--config={_section_of(config_class, path, prog, section, sections)}")
    return taken


def _section_of(
    config_class: type, path: Path, prog: str, section: str, sections: Mapping[str, Callable[[], type]]
) -> str:
    """Return the YAML text of one section of a preset, or the path of a file that holds fields themselves."""
    text = path.read_text(encoding="utf-8")
    try:
        values = _load(text, get_type_hints(config_class))
    except yaml.YAMLError:
        return str(path)  # the parser says where
    names = _names_of(config_class)
    if not isinstance(values, dict):
        return str(path)
    if names & values.keys():
        return str(path) if values == yaml.load(text, _Loader) else _quoted(values)
    if not all(value is None or isinstance(value, dict) for value in values.values()):
        return str(path)
    if unknown := [name for name in values if name != COMMON and name not in sections]:
        if not sections:
            raise UserError(f"{prog}: {path} is a preset for commands; give it as --preset, or after '--' as --config")
        raise UserError(f"{prog}: {path} has a section '{unknown[0]}'; sections are {COMMON}, {', '.join(sections)}")
    common, own = values.get(COMMON) or {}, values.get(section) or {}
    for name in common.keys() - names:
        if not any(name in _names_of(load()) for load in sections.values()):
            raise UserError(f"{prog}: {path} has '{name}' under {COMMON}, but no command has such a field")
    return _quoted({name: common[name] for name in common if name in names} | own)


def _flag_as_text(value: str, hint: Any) -> str:
    """Return the value of a flag, a YAML list or mapping with its names as text where the field wants text."""
    if value[:1] not in ("[", "{"):
        return value
    try:
        texts = _load(f"field: {value}", {"field": hint})["field"]
        return value if texts == yaml.load(value, _Loader) else _quoted(texts)
    except (yaml.YAMLError, TypeError):
        return value  # the parser says what is wrong


class _Loader(yaml.SafeLoader):
    """YAML with numbers as the parser of the flags reads them: 1e3 and 1e-5, too."""


class _Dumper(yaml.SafeDumper):
    """YAML with all text in quotes, so that nothing reads it as anything else."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[\d.]+[eE][-+]?\d+"), list("-+.0123456789"))
_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(TEXT, text, style='"'))


def _quoted(values: Any) -> str:
    return yaml.dump(values, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)


def _load(text: str, hints: Mapping[str, Any]) -> Any:
    """Read YAML in which fields, or sections of fields, are text where their types ask for text."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _fields_as_text(node, hints)
        for _, section in node.value if isinstance(node, yaml.MappingNode) else ():
            _fields_as_text(section, hints)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _fields_as_text(node: yaml.Node | None, hints: Mapping[str, Any]) -> None:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value in hints and value.tag != NULL:
            _as_text(value, hints[key.value])


def _as_text(node: yaml.Node, hint: Any) -> None:
    """Mark as text what YAML would read as a number, a date, or yes and no, where a type has text and none of these."""
    kinds = get_args(hint) if _is_union(hint) else (hint,)
    if isinstance(node, yaml.ScalarNode):
        words = [each for kind in kinds if get_origin(kind) is Literal for each in get_args(kind)]
        plain = {kind for kind in kinds if isinstance(kind, type)} | {type(word) for word in words}
        if plain & {str, Path} and not plain & {bool, int, float}:
            node.tag = TEXT
    for kind in kinds:
        if isinstance(node, yaml.SequenceNode) and get_origin(kind) in (list, tuple):
            for item in node.value:
                _as_text(item, get_args(kind)[0])
        if isinstance(node, yaml.MappingNode) and get_origin(kind) is dict:
            for key, value in node.value:
                _as_text(key, get_args(kind)[0])
                _as_text(value, get_args(kind)[1])


def _names_of(config_class: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def _in_words(error: Exception, config_class: type) -> str:
    """Return what is wrong with flags or a file of flags, in words for people rather than for programmers."""
    if isinstance(error, UnicodeDecodeError):
        return "the file of --config is not text in UTF-8"
    text, names = " ".join(str(error).split()), sorted(_names_of(config_class))
    if wrong := re.match(r'Parser key "(\w+)".*?(?:Got value: |Given value: )(.*)', text):
        name, value = wrong.groups()
        return f"{name} takes {_kind(get_type_hints(config_class)[name])}, not '{value:.200}'"
    if unknown := re.match(r"unrecognized arguments: (\S+)", text):
        flag = unknown[1].partition("=")[0]
        if flag[:2] != "--":
            return f"'{unknown[1]}' belongs to no flag; a value with spaces goes in quotes"
        return f"there is no flag {flag}{_did_you_mean(flag[2:], names, '--')}"
    if unknown := re.match(r"Option '(.*)' is not accepted", text):
        return f"the file of --config has '{unknown[1]}', which is not a field{_did_you_mean(unknown[1], names)}"
    if lacking := re.match(r"argument (--\w+)\S*: expected one argument", text):
        return f"{lacking[1]} needs a value"
    if lacking := re.match(r"the following arguments are required: (.*)", text):
        return f"{', '.join('--' + name for name in lacking[1].split(', '))} must be given"
    text = text.replace("Unexpected config:", "the file of --config does not hold 'flag: value' lines:")
    text = text.replace("Problems parsing config:", "the file of --config is not YAML:")
    text = text.replace(' in "<unicode string>"', "").replace('Parser key "config"', "the file of --config")
    return text.replace("Key must be a string, got:", "the file of --config has a name that is not text:").rstrip(" :")


def _did_you_mean(name: str, names: list[str], dashes: str = "") -> str:
    """Return the rest of a sentence with the name that was probably meant, "" where none is near."""
    near = difflib.get_close_matches(name.replace("-", "_"), names, 1)
    return f"; did you mean {dashes}{near[0]}?" if near else ""


def _kind(hint: Any) -> str:
    """Return what a field of a type takes, such as "a list of whole numbers or 'all'"."""
    kinds = [kind for kind in (get_args(hint) if _is_union(hint) else (hint,)) if kind is not type(None)]
    return " or ".join(_one_kind(kind) for kind in kinds)


def _one_kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        words = [str(word) for word in get_args(kind)]
        return f"'{words[0]}'" if len(words) == 1 else f"one of {', '.join(words)}"
    if get_origin(kind) in (list, tuple):
        return f"a list such as {EXAMPLES_OF_LISTS.get(get_args(kind)[0], '[5, all]')}"
    if get_origin(kind) is dict:
        return "names with a value each, such as {fall: 3}"
    return NAMES_OF_TYPES.get(kind, "text")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)
