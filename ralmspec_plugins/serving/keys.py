"""API keys: who may ask, for which tenants, and who may invalidate caches."""

import hashlib
import hmac
import logging
import stat
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ralmspec_plugins.errors import ConfigError

_log = logging.getLogger(__name__)
_FIELDS: Final = {"name", "key", "sha256", "tenants", "admin"}
_SHORTEST: Final = 16  # characters of a key
_HEX: Final = 64  # digits of a SHA-256
_OF_OTHERS: Final = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key, or anyone where there are no keys.

    `tenants` are those that the caller may name, the first being the one of requests that name
    none. `None`: any that the model has.
    """

    name: str
    tenants: tuple[str, ...] | None = ()
    admin: bool = False


ANYONE: Final = Caller("anyone", tenants=None)


class ApiKeys:
    """The keys of a server, kept as their SHA-256 alone.

    Neither a key nor its digest appears in a message, a log or a `repr`.
    """

    def __init__(self, callers: Sequence[tuple[str, Caller]]) -> None:
        """Take pairs of a SHA-256 in hexadecimal digits and the holder of its key.

        Raises:
            ConfigError: there are none, a digest is none, or a name or a digest occurs twice.
        """
        if not callers:
            raise ConfigError("there must be at least one API key")
        names = [caller.name for _, caller in callers]
        if len(set(names)) < len(names) or len({digest for digest, _ in callers}) < len(callers):
            raise ConfigError("two API keys have the same name, or are the same")
        for digest, caller in callers:
            if len(digest) != _HEX or set(digest) - set("0123456789abcdef"):
                raise ConfigError(
                    f"the SHA-256 of key {caller.name!r} must be 64 lower-case digits"
                )
        self._callers = tuple((bytes.fromhex(digest), caller) for digest, caller in callers)

    def __repr__(self) -> str:
        """Return the number of keys."""
        return f"<ApiKeys: {len(self._callers)}>"

    @classmethod
    def read(cls, path: str | Path) -> "ApiKeys":
        """Read a TOML file with a table `[[keys]]` for each key.

        A table has `name`, either `key` or `sha256` (of the key, in hexadecimal digits), and
        optionally `tenants` and `admin`.

        Raises:
            ConfigError: the file is not of this form; the message has no key in it.
            OSError: it cannot be read.
        """
        path = Path(path)
        if path.stat().st_mode & _OF_OTHERS:
            told = "%s can be read or changed by other users of this machine: chmod 600"
            _log.warning(told, path)
        try:
            read = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            raise ConfigError(f"{path} is not a TOML file") from None  # the cause may quote a key
        tables = read.get("keys")
        if set(read) != {"keys"} or not isinstance(tables, list):
            raise ConfigError(f"{path} must have tables [[keys]], and nothing else")
        return cls([_caller(path, number, table) for number, table in enumerate(tables, 1)])

    def caller(self, key: str) -> Caller | None:
        """Return the holder of a key; `None` if there is none. All keys are compared in full."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def _caller(path: Path, number: int, table: Any) -> tuple[str, Caller]:
    where = f"{path}, key {number}"
    if not isinstance(table, dict) or set(table) - _FIELDS:
        raise ConfigError(f"{where}: its fields must be among {', '.join(sorted(_FIELDS))}")
    name, tenants, admin = table.get("name"), table.get("tenants", []), table.get("admin", False)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: it needs a name")
    if not isinstance(tenants, list) or not all(isinstance(one, str) and one for one in tenants):
        raise ConfigError(f"{where} ({name}): tenants must be a list of names")
    if not isinstance(admin, bool):
        raise ConfigError(f"{where} ({name}): admin must be true or false")
    return _digest(f"{where} ({name})", table), Caller(name, tuple(tenants), admin)


def _digest(where: str, table: dict[str, Any]) -> str:
    key, digest = table.get("key"), table.get("sha256")
    if (key is None) == (digest is None):
        raise ConfigError(f"{where}: it needs either key or sha256")
    if key is None:
        if not isinstance(digest, str):
            raise ConfigError(f"{where}: sha256 must be a text")
        return digest
    if not isinstance(key, str) or len(key) < _SHORTEST:
        raise ConfigError(f"{where}: key must be a text of at least {_SHORTEST} characters")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"{where}: key may have ASCII letters, digits and signs only, and no space: clients "
            "cannot send others in a header"
        )
    return hashlib.sha256(key.encode()).hexdigest()
