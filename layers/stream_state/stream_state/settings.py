"""The environment of a function, read once and checked as a whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_APP_ID_MAX_LENGTH = 128
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class SettingsError(ValueError):
    """One or more environment variables are missing or wrong; the text names each."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a function, by the names of the environment variables in lower case."""

    rtc_app_ids: tuple[str, ...]
    rtc_endpoint: str
    rtc_region: str
    rtc_secret_id: str
    rtc_qps: float
    rtc_burst: int
    rtc_connect_timeout_seconds: float
    rtc_read_timeout_seconds: float
    secret_max_age_seconds: float
    quota_failure_mode: str
    table_name: str
    results_queue_url: str
    rtc_query: str
    rtc_callback_secret_id: str
    callback_retry_queue_url: str
    auto_watch: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read all settings; raises `SettingsError` naming everything that is wrong."""
        problems: list[str] = []

        def read[T](name: str, default: str, parse: Callable[[str], T]) -> T:
            try:
                return parse(environment.get(name, "").strip() or default)
            except ValueError as error:
                problems.append(f"{name} {error}")
                return None  # type: ignore[return-value]  # never used: a problem raises below

        settings = cls(
            rtc_app_ids=read("RTC_APP_IDS", "", _app_ids),
            rtc_endpoint=read("RTC_ENDPOINT", "https://rtc.volcengineapi.com", _endpoint),
            rtc_region=read("RTC_REGION", "cn-north-1", str),
            rtc_secret_id=read("RTC_SECRET_ID", "", str),
            rtc_qps=read("RTC_QPS", "50", _number(1, 60)),
            rtc_burst=read("RTC_BURST", "5", _whole_number(1, 60)),
            rtc_connect_timeout_seconds=read("RTC_CONNECT_TIMEOUT", "2", _number(0.01, 60)),
            rtc_read_timeout_seconds=read("RTC_READ_TIMEOUT", "3", _number(0.01, 60)),
            secret_max_age_seconds=read("SECRET_MAX_AGE", "300", _number(0, 86_400)),
            quota_failure_mode=read("QUOTA_FAILURE_MODE", "closed", _one_of("closed", "open")),
            table_name=read("TABLE_NAME", "", str),
            results_queue_url=read("RESULTS_QUEUE_URL", "", str),
            rtc_query=read("RTC_QUERY", "on", _one_of("on", "off")),
            rtc_callback_secret_id=read("RTC_CALLBACK_SECRET_ID", "", str),
            callback_retry_queue_url=read("CALLBACK_RETRY_QUEUE_URL", "", str),
            auto_watch=read("AUTO_WATCH", "false", _one_of("true", "false")) == "true",
        )
        if problems:
            raise SettingsError("The environment is not usable: " + "; ".join(problems) + ".")
        return settings

    def require(self, name: str) -> str:
        """The setting of that name, which not every function needs; raises `SettingsError` if it is empty."""
        value: str = getattr(self, name)
        if not value:
            message = f"{name.upper()} is not set."
            raise SettingsError(message)
        return value


def _app_ids(value: str) -> tuple[str, ...]:
    app_ids = tuple(part.strip() for part in value.split(","))
    if not all(part and part.isprintable() and len(part) <= _APP_ID_MAX_LENGTH for part in app_ids):
        message = f"must be AppIds joined by commas, each 1 to {_APP_ID_MAX_LENGTH} printable characters"
        raise ValueError(message)
    return app_ids


def _endpoint(value: str) -> str:
    url = urlsplit(value)
    try:
        has_port = url.port != 0
    except ValueError:
        has_port = False
    plain_but_local = url.scheme == "http" and url.hostname in _LOOPBACK_HOSTS
    if not url.hostname or not has_port or not (url.scheme == "https" or plain_but_local):
        message = "must be an https address (http is accepted for a loopback host only)"
        raise ValueError(message)
    if url.path not in {"", "/"} or url.query or url.fragment or url.username is not None:
        message = "must be a host without path, query or user"
        raise ValueError(message)
    return f"{url.scheme}://{url.netloc}/"


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            message = f"must be {' or '.join(choices)}"
            raise ValueError(message)
        return value

    return parse


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not (value.isascii() and value.isdecimal() and least <= int(value) <= most):
            message = f"must be a whole number from {least} to {most}"
            raise ValueError(message)
        return int(value)

    return parse


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            message = f"must be a number from {least} to {most}"
            raise ValueError(message)
        return number

    return parse
