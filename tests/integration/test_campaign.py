"""The short form of the fault campaign, and that the campaign finds each kind of failure."""

import subprocess
import sys

import pytest

from tests.integration.campaign import FAULTS, Verdict, matrix
from tests.integration.world import CANARIES, REPOSITORY, Evidence
from tests.sandbox.simulator import MEDIA


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_in_the_short_form_every_answer_is_of_the_right_kind_and_nothing_is_lost_or_shown() -> None:
    done = run("-m", "tests.integration.campaign", "--short")

    assert done.returncode == 0, done.stdout + done.stderr
    *_, total, _ = done.stdout.splitlines()
    name, faults, answers, right, *wrongs = total.split()
    assert (name, wrongs) == ("total", ["0", "0", "0"])
    assert answers == right
    assert int(faults) >= 50


def test_there_are_at_least_500_faults_each_with_a_name_of_its_own() -> None:
    names = {(fault.kind, fault.name) for fault in FAULTS}

    assert len(names) == len(FAULTS) >= 500
    assert all(fault.expect for fault in FAULTS)


def state(user: str, source: str = "query", **more: object) -> dict[str, object]:
    media = dict.fromkeys(MEDIA.values())
    return {"user_id": user, "source": source, "present": None, "media": media | more}


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        (state("teacher", audio=False), 1),
        (state("teacher", audio=True), 0),
        # The guest's video was off, and is on now: a query that says off is wrong, the state before is not.
        (state("guest", video=False), 1),
        (state("guest", source="table", video=False), 0),
        (state("guest", video=False) | {"sequence": 1}, 0),
        (state("teacher") | {"present": False}, 1),
        (state("late") | {"present": False}, 0),
        ({"results": [state("pupil", source="callback", video=False)]}, 1),
        (state("leaver", source="callback", audio=False), 1),
    ],
)
def test_a_false_off_is_found(shown: dict[str, object], found: int) -> None:
    assert len(Evidence([shown]).false_offs(absent=False)) == found


@pytest.mark.parametrize("secret", [*CANARIES, "SignedHeaders", "0a1b2c3d4e5f60718293"])
def test_a_secret_that_is_shown_is_found(secret: str) -> None:
    for evidence, log in ((Evidence([{"detail": f"a {secret.lower()} b"}]), ""), (Evidence(), f"a {secret} b")):
        assert evidence.leaks(log, ["0a1b2c3d4e5f60718293"]) == [secret]


def test_the_matrix_counts_by_kind_and_in_total() -> None:
    verdicts = [Verdict("a", "first", 2), Verdict("b", "first", 3, ["x"], ["y"], [], ["z"]), Verdict("c", "second", 1)]

    _, *rows = (line.split() for line in matrix(verdicts))

    assert rows == [
        ["first", "2", "5", "4", "1", "0", "1"],
        ["second", "1", "1", "1", "0", "0", "0"],
        ["total", "3", "6", "5", "1", "0", "1"],
    ]
    assert [len(verdict.complaints) for verdict in verdicts] == [0, 3, 0]


# A product that takes null for off, sends nothing, and prints its signatures.
BROKEN = """
import sys
from dataclasses import replace
from tests.integration import campaign
from stream_state.adapters import volcengine
from stream_state.adapters.queues import ResultsQueue

def read(*arguments, read=volcengine.read_states):
    result = read(*arguments)
    return replace(result, media={medium: bool(value) for medium, value in result.media.items()})

def sign(auth, request, sign=volcengine.VolcengineAuth.__call__):
    print(sign(auth, request).headers)
    return request

volcengine.read_states, volcengine.VolcengineAuth.__call__ = read, sign
ResultsQueue.send = lambda queue, messages, deadline: ["sent" for _ in messages]
sys.exit(campaign.main(["--only", "odd answer, nothing stated"]))
"""


def test_the_campaign_fails_for_a_product_that_is_broken() -> None:
    done = run("-c", BROKEN)

    assert done.returncode == 1, done.stderr
    assert [found for found in ("lost:", "false off:", "leaked:") if found not in done.stdout] == []
