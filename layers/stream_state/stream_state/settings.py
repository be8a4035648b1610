"""The environment of a function, read once and checked as a whole."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

_APP_ID_MAX_LENGTH = 128
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class SettingsError(ValueError):
    """One or more environment variables are missing or wrong; the text names each."""


def _app_ids(value: str) -> tuple[str, ...]:
    app_ids = tuple(part.strip() for part in value.split(","))
    if not all(part and part.isprintable() and len(part) <= _APP_ID_MAX_LENGTH for part in app_ids):
        raise ValueError(f"must be AppIds joined by commas, each 1 to {_APP_ID_MAX_LENGTH} printable characters")
    return app_ids


def _endpoint(value: str) -> str:
    url = urlsplit(value)
    try:
        is_host = bool(url.hostname) and url.port != 0
    except ValueError:
        is_host = False
    is_safe = url.scheme == "https" or (url.scheme == "http" and url.hostname in _LOOPBACK_HOSTS)
    if not (is_host and is_safe):
        raise ValueError("must be an https address (http is accepted for a loopback host only)")
    if url.path not in {"", "/"} or url.query or url.fragment or url.username is not None:
        raise ValueError("must be a host without path, query or user")
    return f"{url.scheme}://{url.netloc}/"


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return value

    return parse


def _is_true(value: str) -> bool:
    return _one_of("true", "false")(value) == "true"


def _number(kind: type[float], least: float, most: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        with suppress(ValueError):
            number = kind(value)
            if least <= number <= most:
                return number
        raise ValueError(f"must be a {'whole ' if issubclass(kind, int) else ''}number from {least} to {most}")

    return parse


def _variable(parse: Callable[[str], Any], default: str = "") -> Any:
    """A field whose variable has the same name in upper case."""
    return field(metadata={"parse": parse, "default": default})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a function, each with the parser and the default of its variable; durations in seconds."""

    rtc_app_ids: tuple[str, ...] = _variable(_app_ids)
    rtc_endpoint: str = _variable(_endpoint, "https://rtc.volcengineapi.com")
    rtc_region: str = _variable(str, "cn-north-1")
    rtc_query: str = _variable(_one_of("on", "presence", "off"), "on")
    rtc_secret_id: str = _variable(str)
    rtc_callback_secret_id: str = _variable(str)
    rtc_qps: float = _variable(_number(float, 1, 60), "50")
    rtc_burst: int = _variable(_number(int, 1, 60), "5")
    rtc_connect_timeout: float = _variable(_number(float, 0.01, 60), "2")
    rtc_read_timeout: float = _variable(_number(float, 0.01, 60), "3")
    rtc_max_wait_seconds: float = _variable(_number(float, 0, 900), "3")
    rtc_skew_seconds: float = _variable(_number(float, 0, 300), "5")
    secret_max_age: float = _variable(_number(float, 0, 86_400), "300")
    auto_watch: bool = _variable(_is_true, "false")
    table_name: str = _variable(str)
    results_queue_url: str = _variable(str)
    callback_retry_queue_url: str = _variable(str)
    callback_dead_letter_queue_url: str = _variable(str)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read all settings; raises `SettingsError` naming everything that is wrong."""
        values: dict[str, Any] = {}
        problems: list[str] = []
        for setting in fields(cls):
            name = setting.name.upper()
            try:
                text = environment.get(name, "").strip() or setting.metadata["default"]
                values[setting.name] = setting.metadata["parse"](text)
            except ValueError as error:
                problems.append(f"{name} {error}")
        if problems:
            raise SettingsError("The environment is not usable: " + "; ".join(problems) + ".")
        return cls(**values)

    def require(self, name: str) -> str:
        """The text of a setting that not every function needs; raises `SettingsError` if it is empty."""
        value: str = getattr(self, name)
        if not value:
            raise SettingsError(f"{name.upper()} is not set.")
        return value
