"""A person's words are in one place only: the encrypted evidence of an incident.

A sentence with a word that occurs nowhere else goes through a real gateway in every way a client can send it, and
then every sink is searched for it: what the process printed, its metrics, the bytes of the database and of every
other file it keeps, each error body, and what left over OTLP.
"""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import scripts
from tests.support.calls import MODEL, Answer, call, chat, post
from tests.support.gateway import Gateway, havengate, running, scripted

WORD = "zygodactyl"
CANARY = f"I want to end my life tonight, the {WORD} sings no more."
PLAIN = f"How do I draw a {WORD} bird with a pencil?"
CHAT = "/v1/chat/completions"
SINK_VARIANTS = (WORD.encode(), WORD.encode("utf-16-le"), WORD.upper().encode())


class Collector:
    """An OTLP/HTTP receiver that keeps the bytes it was sent, unpacked."""

    def __init__(self) -> None:
        received: list[tuple[str, bytes]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                packed = self.headers.get("content-encoding") == "gzip"
                received.append((self.path, gzip.decompress(body) if packed else body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Says nothing: the test reads ``received``."""

        self.received = received
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Told:
    """What was left behind after the words went through: every sink, and the incidents that may hold them."""

    gateway: Gateway
    answers: list[Answer] = field(default_factory=list)
    metrics: bytes = b""
    files_while_running: dict[Path, bytes] = field(default_factory=dict)
    telemetry: list[tuple[str, bytes]] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Send the words every way there is, read what can only be read while the gateway runs, then stop it."""
    turning = [f"A {WORD} has two toes in front. ", f"Honestly, {scripts.HARM}."]
    script = [{"match": "echo", "chunks": turning}, *scripts.SCRIPT]
    with (
        Collector() as collector,
        running(
            tmp_path_factory.mktemp("privacy") / "home",
            HAVENGATE__BACKEND__KIND="scripted",
            HAVENGATE__BACKEND__OPTIONS__SCRIPT_PATH=str(write_script(tmp_path_factory.mktemp("script"), script)),
            HAVENGATE__TELEMETRY__OTLP_ENDPOINT=collector.url,
            HAVENGATE__TELEMETRY__LOG_LEVEL="debug",
        ) as gateway,
    ):
        told = Told(gateway)
        speak(told)
        misspeak(told)
        told.metrics = call(gateway, "GET", "/metrics").raw
        told.files_while_running = files_of(gateway.home)
        gateway.stop()
        told.telemetry = collector.received
        yield told


def write_script(folder: Path, script: list[dict[str, object]]) -> Path:
    """Outside the state folder: the script is the test's, not the gateway's."""
    path = folder / "script.toml"
    path.write_text(scripted(script).partition("\n[[")[2].join(("[[", "")).replace("backend.options.", ""), "utf-8")
    return path


def speak(told: Told) -> None:
    """Everything a client may rightly send."""
    named = [{"role": "system", "content": f"Call yourself {WORD}."}, {"role": "user", "content": CANARY, "name": WORD}]
    for stream in (False, True):
        names = {"conversation_id": f"{WORD}-{stream}", "region": "IE", "note": WORD}
        # The crisis comes last: from then on no model speaks in this conversation.
        for messages in (PLAIN, f"{scripts.ASK_BREAKING} {WORD}", f"Please echo the {WORD}.", named, CANARY):
            reply = chat(told.gateway, messages, stream=stream, user=f"{WORD}@example.org", metadata=names)
            if reply.havengate["incident_id"]:
                told.incidents.append(reply.havengate["incident_id"])
        chat(told.gateway, CANARY, stream=stream, safety_identifier=WORD)
    post(told.gateway, "/v1/moderations", {"input": [CANARY, PLAIN]})


def misspeak(told: Told) -> None:
    """Everything a client may send by mistake, in every value."""
    user = {"role": "user", "content": CANARY}
    good = {"model": MODEL, "messages": [user]}
    bodies = [
        good | {"model": CANARY},
        good | {"temperature": CANARY},
        good | {"stream": WORD},
        good | {"messages": CANARY},
        good | {"messages": [user | {"role": WORD}]},
        good | {"messages": [user | {"content": [{"type": WORD, "text": CANARY}]}]},
        good | {"messages": [user, {"role": "assistant", "content": CANARY}]},
        good | {"tools": [{"type": "function", "function": {"name": WORD}}]},
        good | {"metadata": {"conversation_id": WORD * 100}},
        good | {"user": [CANARY]},
        good | {"response_format": {"type": WORD}},
    ]
    told.answers += [post(told.gateway, CHAT, body) for body in bodies]
    told.answers += [
        call(told.gateway, "POST", CHAT, CANARY),
        call(told.gateway, "POST", CHAT, f'{{"model": "{CANARY}'),
        call(told.gateway, "POST", CHAT, CANARY.encode(), {"content-encoding": "gzip"}),
        call(told.gateway, "POST", CHAT, CANARY * 30_000),
        call(told.gateway, "POST", "/v1/moderations", f'{{"input": {{"text": "{CANARY}"}}}}'),
        call(told.gateway, "GET", "/v1/models", None, {"authorization": f"Bearer {WORD}-{WORD}-{WORD}"}),
        call(told.gateway, "GET", f"/v1/models/{WORD}?q={WORD}"),
        call(told.gateway, "GET", f"/{WORD}?{WORD}={WORD}"),
        call(told.gateway, "GET", f"/login?token={WORD}-used", None, {"cookie": f"havengate_session={WORD}"}),
        call(told.gateway, "POST", "/login", f"token={WORD}", {"content-type": "application/x-www-form-urlencoded"}),
        call(told.gateway, "POST", CHAT, None, {"x-request-id": WORD, "user-agent": WORD, "referer": WORD}),
    ]


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def holds_word(content: bytes) -> bool:
    return any(variant in content for variant in SINK_VARIANTS)


def test_the_words_are_in_the_evidence_and_open_with_the_key(told: Told) -> None:
    assert told.incidents
    opened = [told.gateway.evidence(incident) for incident in set(told.incidents)]
    assert any(CANARY in text for text in opened), "a reviewer must be able to read what was said"
    assert any(f"{WORD} has two toes" in text for text in opened), "and what a model said"


def test_nothing_the_process_printed_holds_them(told: Told) -> None:
    printed = told.gateway.output.text
    assert '"event":"turn"' in printed
    assert "backend_failed" in printed
    assert not holds_word(printed.encode())


def test_no_metric_holds_them(told: Told) -> None:
    assert b"havengate" in told.metrics
    assert not holds_word(told.metrics)


@pytest.mark.parametrize("when", ["running", "stopped"])
def test_no_file_of_the_state_folder_holds_them(told: Told, when: str) -> None:
    files = told.files_while_running if when == "running" else files_of(told.gateway.home)
    names = {path.name for path in files}
    assert "havengate.sqlite3" in names
    assert "havengate.sqlite3-wal" in names or when == "stopped", "the write-ahead log is a sink too"
    assert not [path.name for path, content in files.items() if holds_word(content) or WORD in path.name]


def test_the_database_holds_them_only_sealed(told: Told) -> None:
    """The rows that must hold something of each turn are there, so the search above was not of an empty house."""
    for incident in set(told.incidents):
        sealed = told.gateway.incident(incident)["evidence_encrypted"]
        assert len(sealed) > len(WORD)
    assert told.gateway.rows("SELECT id FROM conversations")
    assert len(told.gateway.rows("SELECT seq FROM audit")) > len(told.incidents)


def test_no_error_repeats_them(told: Told) -> None:
    for answer in told.answers:
        assert 400 <= answer.status < 500 or answer.headers["content-type"].startswith("text/html"), answer.raw
        body = answer.raw
        if answer.headers["content-type"].startswith("text/html"):
            # The sign-in page hands the link's token on in its form, to the one who opened the link.
            body = body.replace(f'value="{WORD}-used"'.encode(), b"")
        assert not holds_word(body)
        assert not holds_word(str(dict(answer.headers)).encode())


def test_nothing_that_left_over_otlp_holds_them(told: Told) -> None:
    paths = {path for path, _ in told.telemetry}
    assert paths == {"/v1/traces", "/v1/metrics"}
    assert any(b"havengate.turn" in body for _, body in told.telemetry)
    assert not [path for path, body in told.telemetry if holds_word(body)]


def test_the_audit_trail_is_whole_after_all_this(told: Told) -> None:
    assert havengate("audit", "verify", home=told.gateway.home).returncode == 0
