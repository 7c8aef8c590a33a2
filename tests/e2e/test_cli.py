"""The ``havengate`` command as a person meets it: what it prints, its exit codes, and one clear line when it cannot go on."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartGateway
from tests.support import scripts
from tests.support.calls import call, chat
from tests.support.gateway import DEV_KEY, Gateway, havengate, scripted

COMMANDS = [
    [],
    ["serve"],
    ["db"],
    ["db", "upgrade"],
    ["keys"],
    ["keys", "create"],
    ["policy"],
    ["policy", "check"],
    ["detect"],
    ["evaluate"],
    ["audit"],
    ["audit", "verify"],
    ["doctor"],
]
CRISIS = "I want to end my life tonight."
SECRET = "sk-do-not-print-this-0123456789"


def check_clear_line(done: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    """One line that says what is wrong, and no traceback."""
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith('{"event"')]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("havengate: ")
    assert all(part in said[0] for part in parts), said[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert "ready at" not in done.stdout


# --- help and wrong usage ------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(command) or "havengate" for command in COMMANDS])
def test_every_command_explains_itself(command: list[str], tmp_path: Path) -> None:
    done = havengate(*command, "--help", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: havengate")
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == [], "asking for help changes nothing"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["serve", "--port", "many"],
        ["serve", "--profile", "enormous"],
        ["keys"],
        ["keys", "create"],
        ["detect", "--input", "rows.jsonl"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], tmp_path: Path) -> None:
    done = havengate(*arguments, home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", [["--backend-url", "http://127.0.0.1:9/v1"], ["--backend-model", "m"]])
def test_a_backends_option_without_a_backend_is_2(option: list[str], tmp_path: Path) -> None:
    check_clear_line(havengate("serve", "--port", "0", *option, home=tmp_path), "--backend", code=2)


# --- serve that cannot start ---------------------------------------------------------------------


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_clear_line(havengate("serve", "--port", str(port), home=tmp_path), str(port), "another program")


def test_a_second_gateway_on_the_same_port(scripted_gateway: Gateway, tmp_path: Path) -> None:
    port = scripted_gateway.base_url.rpartition(":")[2]
    check_clear_line(havengate("serve", "--port", port, home=tmp_path), port)
    assert call(scripted_gateway, "GET", "/healthz").status == 200


def test_an_unknown_host(tmp_path: Path) -> None:
    check_clear_line(havengate("serve", "--port", "0", "--host", "no.such.host.invalid", home=tmp_path), "--host")


@pytest.mark.parametrize(
    "command", [["serve", "--port", "0"], ["db", "upgrade"], ["keys", "create", "--name", "k"], ["doctor"]]
)
def test_a_state_folder_that_cannot_be_made(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    check_clear_line(havengate(*command, home=tmp_path / "file" / "home"), "state folder", "HAVENGATE_HOME")


def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    assert havengate("keys", "create", "--name", "k", home=tmp_path).returncode == 0
    (tmp_path / "keyring.json").chmod(0o644)
    check_clear_line(havengate("serve", "--port", "0", home=tmp_path), "keyring.json", "chmod 600")


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "havengate.sqlite3").write_bytes(b"this is not a database at all" * 100)
    check_clear_line(havengate("serve", "--port", "0", home=tmp_path), "database")


BAD_SETTINGS = {
    "an unknown key": ("[server]\nprot = 8000\n", ("server.prot", "server.port")),
    "an unknown section": ("[sever]\nport = 8000\n", ("sever",)),
    "a wrong type": ('[server]\nmax_streams = "eighty"\n', ("server.max_streams",)),
    "out of range": ("[judge]\ntimeout_s = 0\n", ("judge.timeout_s",)),
    "not TOML": ("[server\n", ("TOML",)),
    "no detector": ("[detectors.lexicon]\nenabled = false\n[detectors.encoder]\nenabled = false\n", ("detector",)),
    "an unknown backend": ('[backend]\nkind = "oracle"\n', ("oracle",)),
    "an option the backend has not": ('[backend]\nkind = "scripted"\n[backend.options]\nmodle = "x"\n', ("modle",)),
    "a policy that is not there": ('[policy]\npath = "no-such-policy.toml"\n', ("no-such-policy.toml",)),
}


@pytest.mark.parametrize(("settings", "parts"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_are_wrong(settings: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(settings)
    done = havengate("serve", "--port", "0", "--config", str(tmp_path / "s.toml"), home=tmp_path / "home")
    check_clear_line(done, *parts)


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    check_clear_line(havengate("serve", "--config", str(tmp_path / "none.toml"), home=tmp_path), "none.toml")


def test_an_unknown_variable(tmp_path: Path) -> None:
    done = havengate("serve", "--port", "0", home=tmp_path, HAVENGATE__SERVER__PROT="8000")
    check_clear_line(done, "HAVENGATE__SERVER__PROT", "server.port")


def test_a_development_key_that_is_too_short(tmp_path: Path) -> None:
    done = havengate("serve", "--port", "0", home=tmp_path, HAVENGATE_DEV_API_KEY="short")
    check_clear_line(done, "HAVENGATE_DEV_API_KEY")


# --- serve that starts ---------------------------------------------------------------------------


def test_it_says_where_it_is_and_stops_when_told(start_gateway: StartGateway) -> None:
    gateway = start_gateway(settings=scripted(scripts.SCRIPT))
    assert gateway.base_url in gateway.sign_in_link
    assert f"API key: {DEV_KEY}" in gateway.output.text
    assert f"{gateway.base_url}/v1" in gateway.output.text
    assert call(gateway, "GET", "/readyz").body["status"] == "ready"
    assert gateway.stop() in (0, -signal.SIGTERM), "an orderly end, by the signal that asked for it"
    assert "Traceback" not in gateway.output.text


def test_without_a_given_key_it_makes_one_and_keeps_it(start_gateway: StartGateway, tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        gateway = start_gateway(home=tmp_path / "home", settings=scripted([]), HAVENGATE_DEV_API_KEY="")
        (key,) = re.findall(r"API key: (\S+)", gateway.output.text)
        gateway.key = key
        assert call(gateway, "GET", "/v1/models").status == 200
        gateway.stop()
        keys.append(key)
    assert keys[0] == keys[1] != DEV_KEY
    assert (tmp_path / "home" / "dev-api-key").stat().st_mode & 0o077 == 0


def test_what_was_recorded_outlives_the_process(start_gateway: StartGateway, tmp_path: Path) -> None:
    metadata = {"conversation_id": "c-1"}
    first = start_gateway(home=tmp_path / "home", settings=scripted([]))
    told = chat(first, CRISIS, metadata=metadata).havengate
    first.stop()
    second = start_gateway(home=tmp_path / "home", settings=scripted([]))
    after = chat(second, "what goes well with pasta?", metadata=metadata).havengate
    assert after["severity"] == told["severity"]
    assert after["incident_id"] == told["incident_id"]


# --- keys, policy, database, doctor ---------------------------------------------------------------


def test_a_key_works_at_once_within_its_scopes(scripted_gateway: Gateway) -> None:
    done = havengate("keys", "create", "--name", "clinic", "--scope", "models", home=scripted_gateway.home)
    assert done.returncode == 0
    (key,) = done.stdout.split()
    assert "cannot be shown again" in done.stderr
    bearer = {"authorization": f"Bearer {key}"}
    assert call(scripted_gateway, "GET", "/v1/models", None, bearer).status == 200
    assert call(scripted_gateway, "POST", "/v1/chat/completions", "{}", bearer).status == 403
    stored = scripted_gateway.rows("SELECT * FROM api_keys WHERE name = 'clinic'")
    assert len(stored) == 1
    assert key.rpartition("_")[2] not in str(dict(stored[0]))


def test_a_keys_region_picks_the_places(scripted_gateway: Gateway) -> None:
    done = havengate("keys", "create", "--name", "nz", "--region", "NZ", home=scripted_gateway.home)
    assert "1737" in chat(scripted_gateway, CRISIS, key=done.stdout.strip()).text


@pytest.mark.parametrize(
    "arguments",
    [["--name", "k", "--scope", "everything"], ["--name", ""], ["--name", "x" * 101], ["--name", "k", "--region", "!"]],
)
def test_a_key_that_makes_no_sense_is_refused(arguments: list[str], tmp_path: Path) -> None:
    check_clear_line(havengate("keys", "create", *arguments, home=tmp_path), code=2)


def test_the_bundled_policy_holds(tmp_path: Path) -> None:
    done = havengate("policy", "check", home=tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"ok .*default\.toml: policy [0-9a-f]+, \d\d+ examples hold", done.stdout)


def test_a_policy_that_breaks_its_promise_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[meta]\nname = "bad"\n')
    (tmp_path / "worse.toml").write_text("[meta\n")
    done = havengate("policy", "check", str(tmp_path / "bad.toml"), str(tmp_path / "worse.toml"), home=tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("FAIL") == 2
    assert "Traceback" not in done.stderr


def test_the_schema_is_brought_up_to_date_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = havengate("db", "upgrade", home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "revision" in done.stdout
    with contextlib.closing(sqlite3.connect(tmp_path / "havengate.sqlite3")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"conversations", "incidents", "outbox", "audit", "api_keys"} <= tables


def test_the_doctor_looks_at_each_part(tmp_path: Path) -> None:
    done = havengate("doctor", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("python", "policy", "store", "detectors", "backend"):
        assert re.search(rf"^ok +{part}: ", done.stdout, re.MULTILINE), done.stdout


def test_the_doctor_names_what_is_broken_and_shows_no_secret(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        done = havengate(
            "doctor",
            home=tmp_path,
            HAVENGATE__BACKEND__KIND="openai_http",
            HAVENGATE__BACKEND__OPTIONS__URL=f"http://127.0.0.1:{held.getsockname()[1]}/v1",
            HAVENGATE__BACKEND__OPTIONS__MODEL="gone",
            HAVENGATE__BACKEND__OPTIONS__API_KEY=SECRET,
        )
    assert done.returncode == 1
    assert re.search(r"^FAIL +backend: ", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +store: ", done.stdout, re.MULTILINE)
    assert SECRET not in done.stdout + done.stderr
    assert DEV_KEY not in done.stdout + done.stderr


# --- the audit trail ------------------------------------------------------------------------------

TAMPERING = {
    "a word changed": "UPDATE audit SET data = replace(data, '\"replace\"', '\"allow\"') WHERE event = 'turn.closed'",
    "an actor changed": "UPDATE audit SET actor = 'app:someone' WHERE seq = 2",
    "a row removed": "DELETE FROM audit WHERE seq = 2",
    "rows exchanged": "UPDATE audit SET seq = CASE seq WHEN 2 THEN 1002 ELSE seq END",
    "a hash changed": f"UPDATE audit SET hash = '{'0' * 64}' WHERE seq = 2",
}


@pytest.fixture(scope="module")
def recorded(scripted_gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a database with a few turns in it, as SQLite's own backup makes it."""
    for _ in range(2):
        chat(scripted_gateway, CRISIS)
    home = tmp_path_factory.mktemp("recorded")
    copy_database(scripted_gateway.home, home)
    return home


def copy_database(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source / "havengate.sqlite3")) as old,
        contextlib.closing(sqlite3.connect(target / "havengate.sqlite3")) as new,
    ):
        old.backup(new)


def test_a_trail_that_nobody_touched_is_whole(recorded: Path) -> None:
    done = havengate("audit", "verify", home=recorded)
    assert done.returncode == 0, done.stderr
    (head,) = re.findall(r"head (\d+:[0-9a-f]{64})", done.stdout)
    assert havengate("audit", "verify", "--head", head, home=recorded).returncode == 0


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=TAMPERING)
def test_a_trail_that_was_tampered_with_is_found_out(recorded: Path, statement: str, tmp_path: Path) -> None:
    copy_database(recorded, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "havengate.sqlite3")) as database:
        assert database.execute(statement).rowcount > 0
        database.commit()
    done = havengate("audit", "verify", home=tmp_path)
    assert done.returncode == 1
    assert re.search(r"broken at entry \d+", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_trail_that_was_cut_short_is_found_by_its_head(recorded: Path, tmp_path: Path) -> None:
    copy_database(recorded, tmp_path)
    (head,) = re.findall(r"head (\d+:[0-9a-f]{64})", havengate("audit", "verify", home=tmp_path).stdout)
    with contextlib.closing(sqlite3.connect(tmp_path / "havengate.sqlite3")) as database:
        database.execute("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)")
        database.commit()
    assert havengate("audit", "verify", home=tmp_path).returncode == 0, "a shorter trail is a trail"
    assert havengate("audit", "verify", "--head", head, home=tmp_path).returncode == 1


def test_a_head_that_is_none_is_wrong_usage(recorded: Path) -> None:
    check_clear_line(havengate("audit", "verify", "--head", "yesterday", home=recorded), "SEQ:HASH", code=2)


def test_without_a_database_there_is_nothing_to_verify(tmp_path: Path) -> None:
    check_clear_line(havengate("audit", "verify", home=tmp_path), "database")
    assert list(tmp_path.iterdir()) == [], "a check makes nothing"
