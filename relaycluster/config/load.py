"""Reads the configuration, whole or not at all: every fault is found in one go, and each is told in one line.

Command line before environment before file before default. A line is `FILE: key: what is wrong; the fix (line N)`;
for a value of the environment or the command line, that stands in place of the file.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from relaycluster.config import later
from relaycluster.config.checks import file_trouble, findings, key_text
from relaycluster.config.later import Loc
from relaycluster.config.model import Config
from relaycluster.config.values import Kind, describe, format_duration, format_size, parse_domain

PREFIX = "RELAYCLUSTER_"
_MOST_SECRET_BYTES = 4096


class ConfigError(Exception):
    """The configuration cannot be used; `lines` tells every reason, one in each line."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def load(
    path: str | os.PathLike[str] | None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    host_name: Callable[[], str] = socket.gethostname,
) -> Config:
    """The configuration of a node.

    `path` is the TOML file; without one the defaults hold, with the state below the user's state directory.
    `environ` is where `RELAYCLUSTER_SECTION__KEY` is looked for. `overrides` maps keys ("node.roles") to values of
    the command line, as TOML would hold them. Raises ConfigError.
    """
    environ = environ or {}
    reading = _Reading("defaults" if path is None else os.fspath(path))
    if path is None:
        reading.raw["node"] = {"state_dir": default_state_dir(environ)}
    else:
        reading.read_file(Path(path))
    reading.apply_environment(environ)
    reading.apply_overrides(overrides or {})
    return reading.finish(host_name)


def default_state_dir(environ: Mapping[str, str]) -> str:
    """Where the state is without a configuration file (the XDG base directory specification)."""
    home = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "relaycluster")


class _Reading:
    """One attempt to make a `Config` of a file, an environment and a command line."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.text = ""
        self.raw: dict[str, Any] = {}
        self._origins: dict[Loc, str] = {}
        self._faults: list[tuple[Loc, str]] = []

    def read_file(self, path: Path) -> None:
        """Parses the file; paths in it are relative to its own directory."""
        try:
            self.text = path.read_text("utf-8")
            self.raw = tomllib.loads(self.text)
        except OSError as error:
            text = f"cannot be read: {os.strerror(error.errno or 0)}; name a file that exists and is readable"
            raise ConfigError([f"{self.source}: {text}"]) from None
        except UnicodeDecodeError:
            raise ConfigError([f"{self.source}: is not text in UTF-8; save it as UTF-8"]) from None
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            text = " ".join(str(error).split()) or "nested too deeply"
            raise ConfigError([f"{self.source}: is not TOML: {text}; correct it there"]) from None
        _resolve_paths(self.raw, Config, path.parent)

    def apply_environment(self, environ: Mapping[str, str]) -> None:
        """Lays `RELAYCLUSTER_SECTION__KEY` (and `RELAYCLUSTER_LISTENER__0__KEY`) over the file's values."""
        for name in sorted(environ):
            if name.startswith(PREFIX) and "__" in name:
                parts = name.removeprefix(PREFIX).lower().split("__")
                loc = tuple(int(part) if part.isascii() and part.isdigit() else part for part in parts)
                self._put(loc, f"environment: {name}", _from_text(_field(loc), environ[name]))

    def apply_overrides(self, overrides: Mapping[str, object]) -> None:
        """Lays the command line's values over all others."""
        for key, value in overrides.items():
            self._put(tuple(key.split(".")), f"command line: {key}", value)

    def _put(self, loc: Loc, origin: str, value: object) -> None:
        if isinstance(value, str) and value and _is_path(_field(loc)):
            value = os.path.abspath(value)
        here: Any = self.raw
        self._origins[loc] = origin
        for part, following in zip(loc, (*loc[1:], None), strict=True):
            below: Any = [] if isinstance(following, int) else {}
            if isinstance(here, list) and isinstance(part, int) and part <= len(here):
                here.extend([below] if part == len(here) else [])
            elif isinstance(here, dict) and isinstance(part, str):
                here.setdefault(part, below)
            else:
                self._faults.append((loc, "there is no such table; number the tables from 0, without a gap"))
                return
            if following is None:
                here[part] = value
            here = here[part]

    def finish(self, host_name: Callable[[], str]) -> Config:
        """The configuration, or all faults at once."""
        self._faults.extend(later.take_out(self.raw))
        self._read_password()
        self._name_host(host_name)
        bad = [loc for loc, _ in self._faults]
        config = None
        while config is None:  # each round takes out what it found to be wrong, so that the rest is looked at, too
            try:
                config = Config.model_validate(self.raw)
            except ValidationError as error:
                details = error.errors()
                told = [
                    detail for detail in details if detail["loc"] not in bad
                ]  # not: missing, since it was taken out
                self._faults.extend((detail["loc"], _explain(detail)) for detail in told)
                removed = [_prune(self.raw, detail["loc"]) for detail in details]
                bad.extend(loc for loc in removed if loc is not None)
                if not any(removed):
                    break
        for finding in findings(config) if config is not None else ():
            if not any(_touches(loc, key) for loc in bad for key in finding.keys):
                self._faults.append((finding.keys[0], finding.text))
        if config is None or self._faults:
            raise ConfigError(list(dict.fromkeys(self._lines())))
        return config

    def _read_password(self) -> None:
        """Reads the file that holds a secret, so that only this module knows of the two ways to give it."""
        redis = self.raw.get("redis")
        path = redis.get("password_file") if isinstance(redis, dict) else None
        if not isinstance(redis, dict) or not isinstance(path, str) or not path:
            return
        if redis.get("password"):
            self._faults.append((("redis", "password"), "stands beside redis.password_file; keep one of the two"))
            return
        trouble = file_trouble(path)
        if trouble is None:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                secret = file.read(_MOST_SECRET_BYTES).rstrip("\r\n")
            redis["password"] = secret
            if not secret or "\n" in secret:
                trouble = f"{path} must hold one line, the password; write it there"
        if trouble is not None:
            self._faults.append((("redis", "password_file"), trouble))

    def _name_host(self, host_name: Callable[[], str]) -> None:
        node = self.raw.setdefault("node", {})
        if not isinstance(node, dict):
            return
        name = host_name()
        if node.get("id", "") == "":
            node["id"] = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64] or "node"
        if node.get("hostname", "") == "":
            try:
                node["hostname"] = parse_domain(name)
            except ValueError:
                node["hostname"] = "localhost"

    def _lines(self) -> Iterator[str]:
        places = _Places(self.text)
        placed = [(places.line(loc), loc, text) for loc, text in self._faults]
        for line, loc, text in sorted(placed, key=lambda fault: fault[0] or 0):
            origin = next((name for place, name in self._origins.items() if place == loc[: len(place)]), None)
            if origin is not None:
                yield f"{origin}: {text}"
            else:
                yield f"{self.source}: {key_text(loc)}: {text}" + (f" (line {line})" if line else "")


def _resolve_paths(table: dict[str, Any], model: type[BaseModel], directory: Path) -> None:
    """Makes every path in a table and in those within it absolute; what is not as the model has it is left alone."""
    for name, info in model.model_fields.items():
        key = info.alias or name
        value, below = table.get(key), _model_of(info)
        if isinstance(value, str) and value and _is_path(info):
            table[key] = os.path.abspath(directory / value)
        elif below is not None:
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, dict):
                    _resolve_paths(inner, below, directory)


def _is_path(info: FieldInfo | None) -> bool:
    return info is not None and any(isinstance(extra, Kind) and extra.name == "path" for extra in info.metadata)


def _prune(tree: object, loc: Loc) -> Loc | None:
    """Removes the innermost key of a table that `loc` leads through, and tells which; a bad element of a list takes the
    whole list along."""
    if not loc:
        return None
    head, rest = loc[0], loc[1:]
    if isinstance(tree, dict) and head in tree:
        inner = _prune(tree[head], rest)
        if inner is None:
            del tree[head]
        return (head, *(inner or ()))
    if isinstance(tree, list) and isinstance(head, int) and head < len(tree):
        inner = _prune(tree[head], rest)
        return None if inner is None else (head, *inner)
    return None


def _touches(one: Loc, other: Loc) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _explain(detail: ErrorDetails) -> str:
    """One of pydantic's errors in the words of an operator."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    match kind:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return f"unknown key; {_nearest(detail['loc'])}"
        case "missing":
            return "is missing; add it"
        case "literal_error":
            fix = f"write {context['expected']}".replace("'", '"')
            return f"{value[:60]!r} is not known; {fix}" if isinstance(value, str) else f"is {describe(value)}; {fix}"
        case "string_type":
            return f"must be a string, is {describe(value)}; put it in quotes"
        case "int_type":
            return f"must be a whole number, is {describe(value)}; write it without quotes and fraction"
        case "float_type":
            return f"must be a number, is {describe(value)}; write it without quotes"
        case "bool_type":
            return f"must be true or false, is {describe(value)}; write it without quotes"
        case "tuple_type":
            return f'must be a list, is {describe(value)}; write it in brackets, like ["…"], or as a [[table]]'
        case "model_type" | "model_attributes_type":
            return f"must be a table, is {describe(value)}; write it as [{key_text(detail['loc'])}]"
        case "too_short":
            return "is empty; name at least one"
    bounds = {"greater_than": "more than", "greater_than_equal": "at least", "less_than": "less than"}
    bound = next((limit for limit in ("gt", "ge", "lt", "le") if limit in context), None)
    if bound is not None:
        return f"is out of range; it must be {bounds.get(kind, 'at most')} {_shown(detail['loc'], context[bound])}"
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}; correct it"


def _shown(loc: Loc, bound: float) -> str:
    """A bound as the operator would write it."""
    field = _field(loc)
    units = {getattr(extra, "unit", "") for extra in (field.metadata if field else ())}
    if "seconds" in units:
        return format_duration(bound)
    return format_size(int(bound)) if "bytes" in units else f"{bound:g}"


def _nearest(loc: Loc) -> str:
    """What was meant by an unknown key."""
    path = tuple(part for part in loc if isinstance(part, str))
    key = path[-1]
    model = _model(path[:-1])
    names = [field.alias or name for name, field in model.model_fields.items()] if model else []
    homes = [name for name in Config.model_fields if key in ((_model((name,)) or Config).model_fields)]
    if homes:
        return f"it belongs in [{homes[0]}]"
    near = difflib.get_close_matches(key, names, 1, 0.6)
    if near:
        return f'did you mean "{near[0]}"?'
    return "remove it" if not names else f"remove it, or use one of: {', '.join(sorted(names))}"


def _model(path: tuple[str, ...]) -> type[BaseModel] | None:
    """The model of a table."""
    model: type[BaseModel] | None = Config
    for part in path:
        field = model.model_fields.get(part) if model else None
        model = _model_of(field) if field else None
    return model


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of the table, or of the tables, that a field holds."""
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _field(loc: Loc) -> FieldInfo | None:
    path = tuple(part for part in loc if isinstance(part, str))
    model = _model(path[:-1]) if path else None
    fields = {info.alias or name: info for name, info in model.model_fields.items()} if model else {}
    return fields.get(path[-1]) if path else None


def _from_text(field: FieldInfo | None, text: str) -> object:
    """A value of the environment as TOML would hold it; the text itself where it does not fit, for the error."""
    if field is None:
        return text
    annotation = field.annotation
    types = [annotation, *get_args(annotation)]
    if any(one is tuple or get_origin(one) is tuple for one in types):
        if not text.lstrip().startswith("["):
            return [part.strip() for part in text.split(",") if part.strip()]
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text
    for kind in (int, float):
        if kind in types:
            try:
                return kind(text)
            except ValueError:
                pass
    return {"true": True, "false": False}.get(text, text) if bool in types else text


class _Places:
    """Finds the line of a key in a TOML file, well enough to send a person there."""

    _HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\-\"' ]+?)\s*\]\]?\s*(?:#.*)?$")
    _KEY = re.compile(r"^\s*[\"']?([^=\"'\s]+)[\"']?\s*=")

    def __init__(self, text: str) -> None:
        self._lines: dict[Loc, int] = {}
        counts: dict[str, int] = {}
        table: Loc = ()
        for number, line in enumerate(text.splitlines(), 1):
            header = self._HEADER.match(line)
            key = None if header else self._KEY.match(line)
            if header:
                name = header[2]
                table = tuple(part.strip(" \"'") for part in name.split("."))
                if header[1] == "[[":
                    self._lines.setdefault(table, number)
                    counts[name] = counts.get(name, -1) + 1
                    table = (*table, counts[name])
                self._lines.setdefault(table, number)
            elif key:
                self._lines.setdefault((*table, *key[1].split(".")), number)

    def line(self, loc: Loc) -> int | None:
        """The line of the key, or of the innermost table or list around it."""
        return next((self._lines[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in self._lines), None)
