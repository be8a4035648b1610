"""The environment: defaults, and every way in which a variable can be wrong."""

from dataclasses import asdict
from typing import Any

import pytest

from stream_state.settings import Settings, SettingsError

LEAST = {"RTC_APP_IDS": "app-1"}
DEFAULTS: dict[str, Any] = {
    "rtc_app_ids": ("app-1",),
    "rtc_endpoint": "https://rtc.volcengineapi.com/",
    "rtc_region": "cn-north-1",
    "rtc_query": "on",
    "rtc_secret_id": "",
    "rtc_callback_secret_id": "",
    "rtc_qps": 50,
    "rtc_burst": 5,
    "rtc_connect_timeout": 2,
    "rtc_read_timeout": 3,
    "rtc_max_wait_seconds": 3,
    "rtc_skew_seconds": 5,
    "secret_max_age": 300,
    "auto_watch": False,
    "table_name": "",
    "results_queue_url": "",
    "callback_retry_queue_url": "",
    "callback_dead_letter_queue_url": "",
}


def test_only_the_app_ids_must_be_set_and_blanks_do_not_count() -> None:
    blanks = {name.upper(): "   " for name in DEFAULTS}

    assert asdict(Settings.from_environment(LEAST)) == DEFAULTS
    assert Settings.from_environment({**blanks, **LEAST}) == Settings.from_environment(LEAST)


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("RTC_APP_IDS", " app-1 , app-2 ", ("app-1", "app-2")),
        ("RTC_ENDPOINT", " https://open.byteplusapi.com ", "https://open.byteplusapi.com/"),
        ("RTC_ENDPOINT", "https://host:8443/", "https://host:8443/"),
        ("RTC_ENDPOINT", "http://localhost:8080", "http://localhost:8080/"),
        ("RTC_ENDPOINT", "http://127.0.0.1", "http://127.0.0.1/"),
        ("RTC_ENDPOINT", "http://[::1]:80/", "http://[::1]:80/"),
        ("RTC_QUERY", "off", "off"),
        ("RTC_QPS", "0.5e1", 5),
        ("RTC_BURST", "1", 1),
        *((name, "0.5", 0.5) for name in ("RTC_CONNECT_TIMEOUT", "RTC_READ_TIMEOUT")),
        *((name, "0", 0) for name in ("RTC_MAX_WAIT_SECONDS", "RTC_SKEW_SECONDS", "SECRET_MAX_AGE")),
        ("AUTO_WATCH", "true", True),
        *((name, "text", "text") for name in ("RTC_REGION", "RTC_SECRET_ID", "RTC_CALLBACK_SECRET_ID", "TABLE_NAME")),
        *(
            (f"{queue}_QUEUE_URL", "https://a", "https://a")
            for queue in ("RESULTS", "CALLBACK_RETRY", "CALLBACK_DEAD_LETTER")
        ),
    ],
)
def test_each_variable_can_be_set(name: str, value: str, parsed: object) -> None:
    assert asdict(Settings.from_environment({**LEAST, name: value})) == {**DEFAULTS, name.lower(): parsed}


WRONG = {
    "RTC_APP_IDS must be AppIds joined by commas, each 1 to 128": ["", " ", "a,,b", "a,", "a\x00b", "a" * 129],
    "RTC_ENDPOINT must be an https address": [
        *("http://rtc.volcengineapi.com", "http://localhost.example.com", "rtc.volcengineapi.com", "ftp://host"),
        *("https://", "https://host:port", "https://host:99999"),
    ],
    "RTC_ENDPOINT must be a host without path": [
        *("https://host/path", "https://host/?a=1", "https://host#part", "https://user@host", "https://:password@host"),
    ],
    "RTC_ENDPOINT ": ["https://[::1"],
    "RTC_QUERY must be on or presence or off": ["true", "ON"],
    "RTC_QPS must be a number from 1 to 60": ["0", "60.1", "many", "nan", "inf"],
    "RTC_BURST must be a whole number from 1 to 60": ["0", "61", "2.5", "-1"],
    "RTC_CONNECT_TIMEOUT must be a number from 0.01 to 60": ["0", "61"],
    "RTC_READ_TIMEOUT must be a number from 0.01 to 60": ["-1", "61"],
    "RTC_MAX_WAIT_SECONDS must be a number from 0 to 900": ["-1", "901"],
    "RTC_SKEW_SECONDS must be a number from 0 to 300": ["-1", "301"],
    "SECRET_MAX_AGE must be a number from 0 to 86": ["-1", "86401"],
    "AUTO_WATCH must be true or false": ["yes", "True"],
}


@pytest.mark.parametrize(("complaint", "value"), [(rule, value) for rule, values in WRONG.items() for value in values])
def test_a_wrong_variable_is_named_with_the_rule_it_breaks(complaint: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^The environment is not usable: {complaint}"):
        Settings.from_environment({**LEAST, complaint.partition(" ")[0]: value})


def test_all_wrong_variables_are_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"RTC_APP_IDS .*; RTC_ENDPOINT .*; RTC_QPS .*; RTC_BURST "):
        Settings.from_environment({"RTC_QPS": "0", "RTC_BURST": "few", "RTC_ENDPOINT": "http://host"})


def test_a_function_names_the_setting_that_it_misses() -> None:
    settings = Settings.from_environment({**LEAST, "TABLE_NAME": "states"})

    assert settings.require("table_name") == "states"
    with pytest.raises(SettingsError, match=r"^RESULTS_QUEUE_URL is not set\.$"):
        settings.require("results_queue_url")
