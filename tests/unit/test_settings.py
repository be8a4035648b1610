"""The environment: defaults, and every way in which it can be wrong."""

import pytest

from stream_state.settings import Settings, SettingsError

LEAST = {"RTC_APP_IDS": "app-1"}


def test_only_the_app_ids_must_be_set() -> None:
    assert Settings.from_environment(LEAST) == Settings(
        rtc_app_ids=("app-1",),
        rtc_endpoint="https://rtc.volcengineapi.com/",
        rtc_region="cn-north-1",
        rtc_secret_id="",
        rtc_qps=50,
        rtc_burst=5,
        rtc_connect_timeout_seconds=2,
        rtc_read_timeout_seconds=3,
        secret_max_age_seconds=300,
        quota_failure_mode="closed",
        table_name="",
        results_queue_url="",
        rtc_query="on",
        rtc_callback_secret_id="",
        callback_retry_queue_url="",
        auto_watch=False,
    )


def test_all_of_it_can_be_set_and_blanks_do_not_count() -> None:
    settings = Settings.from_environment(
        {
            "RTC_APP_IDS": " app-1 , app-2 ",
            "RTC_ENDPOINT": " https://open.byteplusapi.com ",
            "RTC_REGION": "ap-singapore-1",
            "RTC_SECRET_ID": "arn:secret",
            "RTC_QPS": "0.5e1",
            "RTC_BURST": "1",
            "RTC_CONNECT_TIMEOUT": "0.5",
            "RTC_READ_TIMEOUT": "   ",
            "SECRET_MAX_AGE": "0",
            "QUOTA_FAILURE_MODE": "open",
            "TABLE_NAME": "states",
            "RESULTS_QUEUE_URL": "https://queue",
            "RTC_QUERY": "off",
            "RTC_CALLBACK_SECRET_ID": "arn:callback-key",
            "CALLBACK_RETRY_QUEUE_URL": "https://retry",
            "AUTO_WATCH": "true",
        }
    )

    assert settings.rtc_app_ids == ("app-1", "app-2")
    assert settings.rtc_endpoint == "https://open.byteplusapi.com/"
    assert (settings.rtc_region, settings.rtc_secret_id) == ("ap-singapore-1", "arn:secret")
    assert (settings.rtc_qps, settings.rtc_burst, settings.quota_failure_mode) == (5, 1, "open")
    assert (settings.rtc_connect_timeout_seconds, settings.rtc_read_timeout_seconds) == (0.5, 3)
    assert (settings.secret_max_age_seconds, settings.table_name) == (0, "states")
    assert settings.results_queue_url == "https://queue"
    assert (settings.rtc_query, settings.auto_watch) == ("off", True)
    assert settings.rtc_callback_secret_id == "arn:callback-key"
    assert settings.callback_retry_queue_url == "https://retry"


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("https://host", "https://host/"),
        ("https://host:8443/", "https://host:8443/"),
        ("http://localhost:8080", "http://localhost:8080/"),
        ("http://127.0.0.1", "http://127.0.0.1/"),
        ("http://[::1]:80/", "http://[::1]:80/"),
    ],
)
def test_an_endpoint_is_https_or_loopback(address: str, endpoint: str) -> None:
    assert Settings.from_environment({**LEAST, "RTC_ENDPOINT": address}).rtc_endpoint == endpoint


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("RTC_APP_IDS", "", "must be AppIds joined by commas"),
        ("RTC_APP_IDS", " ", "must be AppIds joined by commas"),
        ("RTC_APP_IDS", "a,,b", "must be AppIds joined by commas"),
        ("RTC_APP_IDS", "a,", "must be AppIds joined by commas"),
        ("RTC_APP_IDS", "a\x00b", "must be AppIds joined by commas"),
        ("RTC_APP_IDS", "a" * 129, "each 1 to 128"),
        ("RTC_ENDPOINT", "http://rtc.volcengineapi.com", "must be an https address"),
        ("RTC_ENDPOINT", "http://localhost.example.com", "must be an https address"),
        ("RTC_ENDPOINT", "rtc.volcengineapi.com", "must be an https address"),
        ("RTC_ENDPOINT", "ftp://host", "must be an https address"),
        ("RTC_ENDPOINT", "https://", "must be an https address"),
        ("RTC_ENDPOINT", "https://host/path", "without path"),
        ("RTC_ENDPOINT", "https://host/?a=1", "without path"),
        ("RTC_ENDPOINT", "https://host#part", "without path"),
        ("RTC_ENDPOINT", "https://user@host", "without path"),
        ("RTC_ENDPOINT", "https://:password@host", "without path"),
        ("RTC_ENDPOINT", "https://[::1", ""),
        ("RTC_ENDPOINT", "https://host:port", ""),
        ("RTC_ENDPOINT", "https://host:99999", ""),
        ("RTC_QPS", "0", "must be a number from 1 to 60"),
        ("RTC_QPS", "60.1", "must be a number from 1 to 60"),
        ("RTC_QPS", "many", "must be a number from 1 to 60"),
        ("RTC_QPS", "nan", "must be a number from 1 to 60"),
        ("RTC_QPS", "inf", "must be a number from 1 to 60"),
        ("RTC_BURST", "0", "must be a"),
        ("RTC_BURST", "2.5", "must be a"),
        ("RTC_CONNECT_TIMEOUT", "0", "must be a number"),
        ("RTC_READ_TIMEOUT", "-1", "must be a number"),
        ("SECRET_MAX_AGE", "-1", "must be a number"),
        ("QUOTA_FAILURE_MODE", "ajar", "must be closed or open"),
        ("RTC_QUERY", "true", "must be on or off"),
        ("AUTO_WATCH", "yes", "must be true or false"),
    ],
)
def test_a_wrong_variable_is_named_with_the_rule_it_breaks(name: str, value: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=rf"^The environment is not usable: {name} .*{complaint}"):
        Settings.from_environment({**LEAST, name: value})


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment({"RTC_QPS": "0", "RTC_BURST": "few", "RTC_ENDPOINT": "http://host"})

    for name in ("RTC_APP_IDS", "RTC_QPS", "RTC_BURST", "RTC_ENDPOINT"):
        assert f"{name} " in str(raised.value)
