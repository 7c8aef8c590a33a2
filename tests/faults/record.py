"""What a gateway left behind, read from outside: its database, and the findings that it owes."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.pipeline.owed import Owed
from gateway.pipeline.record import Intervention
from gateway.store.crypto import Keyring
from tests.faults.visits import Visit

DATABASE: Final = "havengate.sqlite3"
PHASES: Final = (
    "no byte yet, unnamed",
    "no byte yet, nothing on record",
    "no byte yet, finding on disk",
    "no byte yet, incident committed",
    "care on its way",
    "the model's words on their way",
    "answered to the end",
)
UNWRITTEN: Final = "an end without its row"
Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One look at a home.  Rows are as stored; ``owed`` holds the findings that wait on disk."""

    keyring: Keyring
    conversations: tuple[Row, ...]
    incidents: tuple[Row, ...]
    outbox: tuple[Row, ...]
    audit: tuple[Row, ...]
    owed: tuple[Intervention | None, ...]

    def conversation_of(self, visit: Visit) -> str | None:
        """The store's id of a visit's conversation, if it was ever stored."""
        if visit.conversation is None:
            return None
        hashed = self.keyring.blind(visit.conversation, purpose="conversation")
        return next((row["id"] for row in self.conversations if row["external_hash"] == hashed), None)

    def findings(self) -> list[Row]:
        """Audit rows of findings: one for each that was committed."""
        return [row for row in self.audit if row["event"] in ("incident.opened", "incident.updated")]

    def closed(self) -> list[Row]:
        return [row for row in self.audit if row["event"] == "turn.closed"]


def read(home: Path) -> Record:
    """Look at a copy, so that a gateway that was killed finds its files as it left them."""
    keyring = Keyring.load_or_create(home / "keyring.json")
    with tempfile.TemporaryDirectory() as folder:
        for file in home.glob(f"{DATABASE}*"):
            if not file.name.endswith("-shm"):  # SQLite makes it anew from the log
                shutil.copy2(file, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / DATABASE)) as database:
            database.row_factory = sqlite3.Row
            tables = {
                name: tuple(dict(row) for row in database.execute(f"SELECT * FROM {name}"))
                for name in ("conversations", "incidents", "outbox", "audit")
            }
    owed = tuple(finding for _, finding in Owed(home / "owed", keyring, Intervention).all())
    return Record(keyring=keyring, owed=owed, **tables)


def faults_of(record: Record, *, crisis_app: str) -> list[str]:
    """What may never be on record, whatever was killed when; each fault by name, once per row."""
    incidents = {row["id"]: row for row in record.incidents}
    heard = record.findings()
    found = [f"{name}: {key}" for name, key in _doubled(record)]
    findings_of = Counter(row["incident_id"] for row in heard)
    found += [
        f"incident counts other turns than its findings: {i}"
        for i in incidents
        if incidents[i]["turns"] != findings_of[i]
    ]
    found += [f"finding without incident: {row['seq']}" for row in heard if row["incident_id"] not in incidents]
    opened = Counter(row["incident_id"] for row in heard if row["event"] == "incident.opened")
    found += [f"incident without its opening: {i}" for i in incidents if opened[i] != 1]
    found += [
        f"incident of which nobody is told: {i}" for i in set(incidents) - {row["incident_id"] for row in record.outbox}
    ]
    keys = {(f"{row['request_id']}-{stage_of(row)}", row["incident_id"]) for row in heard}
    for row in record.outbox:
        if row["incident_id"] not in incidents:
            found.append(f"notice without incident: {row['id']}")
        if (row["dedupe_key"], row["incident_id"]) not in keys:
            found.append(f"notice without audit row: {row['id']}")
    for row in record.closed():
        if row["actor"] == f"app:{crisis_app}" and (_data(row)["action"] != "replace" or _data(row)["severity"] < 3):
            found.append(f"a crisis closed as clean: {row['seq']}")
    return found


def _doubled(record: Record) -> Iterable[tuple[str, str]]:
    """Every key that may be there once, and is there more often."""
    unresolved = [row for row in record.incidents if row["conversation_id"] and row["state"] != "resolved"]
    seen = {
        "two incidents": Counter(f"{row['conversation_id']}/{row['kind']}" for row in unresolved),
        "two notices": Counter(row["dedupe_key"] for row in record.outbox),
        "finding twice": Counter(f"{row['request_id']}/{stage_of(row)}" for row in record.findings()),
        "turn closed twice": Counter(row["request_id"] for row in record.closed()),
    }
    return [(name, key) for name, counts in seen.items() for key, count in counts.items() if count > 1]


def unkept(record: Record, visits: Iterable[Visit]) -> list[str]:
    """Promises to those who were there: who read a byte of care has an incident, who read the end is on record."""
    broken = []
    heard = {row["request_id"] for row in record.findings()}
    told = {row["dedupe_key"].rpartition("-")[0] for row in record.outbox}
    closed = {row["request_id"] for row in record.closed()}
    for visit in visits:
        if visit.cared and not {visit.request_id} <= heard & told:
            broken.append(f"care without incident: {visit.kind} {visit.request_id}")
        if visit.ended and visit.refused is None and visit.request_id not in closed:
            broken.append(f"{UNWRITTEN}: {visit.kind} {visit.request_id}")
        if visit.kind == "crisis" and visit.decision not in (None, "replace"):
            broken.append(f"a crisis called clean: {visit.request_id}")
        if visit.refused is not None:
            broken.append(f"refused with {visit.refused}: {visit.kind}")
        if visit.kind == "turning" and "without you" in visit.text:
            broken.append(f"harm delivered: {visit.request_id}")
    return broken


def phase_of(visit: Visit, record: Record) -> str:
    """Which of `PHASES` a visit was in when the gateway died, by what its client had and by what was on disk."""
    unnamed, nothing, owed, committed, caring, speaking, ended = PHASES
    if visit.ended:
        return ended
    if visit.text:
        return caring if visit.cared else speaking
    if visit.conversation is None and visit.request_id is None:
        return unnamed
    if any(finding is not None and _same(finding, visit) for finding in record.owed):
        return owed
    conversation = record.conversation_of(visit)
    found = any(
        row["request_id"] == visit.request_id or (conversation and row["conversation_id"] == conversation)
        for row in record.findings()
    )
    return committed if found else nothing


def _same(finding: Intervention, visit: Visit) -> bool:
    if visit.conversation is not None:
        return finding.conversation_id == visit.conversation
    return finding.request_id == visit.request_id


def stage_of(finding: Row) -> str:
    """The stage at which a finding was made: with the request it names the finding."""
    return str(_data(finding)["stage"])


def _data(row: Row) -> Row:
    data: Row = json.loads(row["data"])
    return data
