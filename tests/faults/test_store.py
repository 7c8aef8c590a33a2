"""A record that is locked, full, gone or not to be written while a real gateway serves: words for the person at once, the
finding kept until the record takes it, and operators who can see it.
"""

from __future__ import annotations

import contextlib
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import record
from tests.faults.waiting import until
from tests.support import scripts
from tests.support.calls import Reply, call, chat
from tests.support.gateway import Gateway, havengate, running, scripted

CRISIS = "I want to end my life tonight."
PLACE = "findahelpline.com"
SETTINGS = scripted(scripts.SCRIPT) + "\n[detectors.encoder]\nenabled = false\n"
NO_RECORD_BYTES = 4_096
"""A page of the database and its header do not fit; a finding on its way to disk does."""
NO_BYTES = 0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("store") / "home", settings=SETTINGS) as it:
        yield it


@contextlib.contextmanager
def locked(it: Gateway) -> Iterator[None]:
    """Another process writes to the record and does not end."""
    with contextlib.closing(sqlite3.connect(it.home / record.DATABASE, isolation_level=None)) as database:
        database.execute("PRAGMA busy_timeout = 5000")
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


@contextlib.contextmanager
def files_end_at(it: Gateway, size_bytes: int) -> Iterator[None]:
    """The kernel refuses the gateway every write past this size, as a full disk would (setrlimit(2), RLIMIT_FSIZE)."""
    before = resource.prlimit(it.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(it.process.pid, resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(it.process.pid, resource.RLIMIT_FSIZE, before)


def owed(it: Gateway) -> list[Path]:
    return list((it.home / "owed").glob("*.owed"))


def check_care(reply: Reply) -> None:
    """Whole words, and an honest turn: there is no incident, for nothing could be written."""
    assert PLACE in reply.text
    assert (reply.finish_reason, reply.havengate["decision"]) == ("stop", "replace")
    assert reply.havengate["severity"] >= 3
    assert reply.havengate["incident_id"] is None


def check_paid(it: Gateway, *replies: Reply) -> None:
    """What was owed is on record by itself, once."""
    until(lambda: not owed(it))
    for reply in replies:
        (finding,) = it.rows("SELECT * FROM audit WHERE request_id = ? AND event LIKE 'incident.%'", reply.request_id)
        assert CRISIS in it.evidence(finding["incident_id"])
        keys = [
            row["dedupe_key"] for row in it.rows("SELECT * FROM outbox WHERE incident_id = ?", finding["incident_id"])
        ]
        assert keys == [f"{reply.request_id}-input"]
    assert record.faults_of(record.read(it.home), crisis_app="") == []
    until(lambda: call(it, "GET", "/readyz").status == 200)


def check_not_ready(it: Gateway, why: str) -> None:
    def says() -> bool:
        answer = call(it, "GET", "/readyz")
        return answer.status == 503 and answer.body["checks"]["store"] == f"failed: {why}"

    until(says)
    assert call(it, "GET", "/healthz").status == 200


def test_a_locked_record_holds_nobody_up_and_nothing_is_lost(gateway: Gateway) -> None:
    """Reads pass a lock: what a conversation carries is still known."""
    named = {"conversation_id": "carried"}
    first = chat(gateway, CRISIS, metadata=named)
    with locked(gateway):
        reply = chat(gateway, CRISIS, stream=True)
        check_care(reply)
        again = chat(gateway, "never mind", metadata=named)
        assert len(owed(gateway)) == 2
        check_not_ready(gateway, "locked")
    assert (again.havengate["decision"], again.havengate["severity"]) == ("replace", first.havengate["severity"])
    check_paid(gateway, reply)


def test_a_record_without_room_keeps_findings_beside_it(gateway: Gateway) -> None:
    with files_end_at(gateway, NO_RECORD_BYTES):
        replies = [chat(gateway, CRISIS), chat(gateway, CRISIS, stream=True)]
        for reply in replies:
            check_care(reply)
        assert len(owed(gateway)) == 2
    check_paid(gateway, *replies)


def test_a_disk_that_takes_nothing_at_all_is_an_alarm_and_the_person_is_answered(gateway: Gateway) -> None:
    with files_end_at(gateway, NO_BYTES):
        check_care(chat(gateway, CRISIS, stream=True))
        plain = chat(gateway, "How do I bake bread?")
        assert plain.text == scripts.BENIGN
    gateway.output.wait_for("store_failed", "intervene")
    assert owed(gateway) == []
    after = chat(gateway, CRISIS)
    assert gateway.incident(after.havengate["incident_id"])["severity"] >= 3
    check_paid(gateway)


def test_a_record_that_was_removed_is_missed_and_a_new_start_pays_into_a_new_one(tmp_path: Path) -> None:
    with running(tmp_path / "home", settings=SETTINGS) as it:
        known = chat(it, CRISIS, metadata={"conversation_id": "known"})
        for file in it.home.glob(f"{record.DATABASE}*"):
            file.unlink()
        check_not_ready(it, "unavailable")
        lost = chat(it, CRISIS, stream=True)
        check_care(lost)
        unjudged = chat(it, "How do I bake bread?", metadata={"conversation_id": "known"})
        assert unjudged.havengate["decision"] == "replace", "what cannot be recalled is not calm"
        assert len(owed(it)) == 2
    assert known.havengate["incident_id"] is not None
    with running(tmp_path / "home", settings=SETTINGS) as it:
        check_paid(it, lost)


def test_a_home_that_cannot_be_written_is_one_clear_line() -> None:
    """The kernel lets nobody make a folder there, whoever they are."""
    done = havengate("serve", "--port", "0", home=Path("/proc/havengate"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("havengate: The state folder /proc/havengate cannot be written")
    assert done.stderr.count("\n") == 1
