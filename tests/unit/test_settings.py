"""Settings: what wins, what is refused, and that no refusal shows a value."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import parts
from gateway.errors import StartupError
from gateway.settings import PREFIX, SHORT_NAMES, STARS, Settings, load_settings
from gateway.store.crypto import Keyring


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(PREFIX) or name in SHORT_NAMES:
            monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "havengate.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(config: Path | None = None, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(StartupError) as caught:
        load_settings(config, overrides)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_defaults_are_the_embedded_gateway() -> None:
    settings = load_settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert settings.backend.kind == "llama_cpp"
    assert list(settings.enabled_detectors) == ["lexicon", "encoder"]
    assert settings.database_url == f"sqlite:///{Path.cwd() / '.havengate' / 'havengate.sqlite3'}"


def test_each_layer_wins_over_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path, "[server]\nport = 1001\nmax_streams = 7\n[judge]\ntimeout_s = 0.5\n")
    assert load_settings(config).server.port == 1001
    monkeypatch.setenv("PORT", "1002")
    assert load_settings(config).server.port == 1002
    monkeypatch.setenv("HAVENGATE__SERVER__PORT", "1003")
    assert load_settings(config).server.port == 1003
    settings = load_settings(config, {"server": {"port": 1004, "host": None}})
    assert (settings.server.port, settings.server.host, settings.server.max_streams) == (1004, "127.0.0.1", 7)
    assert settings.judge.timeout_s == 0.5


def test_short_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVENGATE_HOME", str(tmp_path))
    monkeypatch.setenv("HAVENGATE_DEV_API_KEY", "hg_0123456789")
    monkeypatch.setenv("PORT", "")
    settings = load_settings()
    assert settings.home == tmp_path
    assert settings.auth.dev_api_key is not None
    assert settings.auth.dev_api_key.get_secret_value() == "hg_0123456789"
    assert settings.server.port == 8000


def test_options_from_variables_have_json_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVENGATE__BACKEND__OPTIONS__URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HAVENGATE__BACKEND__OPTIONS__CONTEXT_TOKENS", "2048")
    monkeypatch.setenv("HAVENGATE__DETECTORS__ENCODER__OPTIONS__THREADS", "2")
    settings = load_settings()
    assert settings.backend.options == {"url": "http://127.0.0.1:1", "context_tokens": 2048}
    assert settings.detectors["encoder"].options == {"threads": 2}


def test_naming_one_detector_keeps_the_others(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "[detectors.judge_two]\nkind = 'stranger'\n"))
    assert {name: found.kind for name, found in settings.detectors.items()} == {
        "lexicon": "lexicon",
        "encoder": "encoder",
        "judge_two": "stranger",
    }
    settings = load_settings(write(tmp_path, "[detectors.encoder]\nenabled = false\n"))
    assert list(settings.enabled_detectors) == ["lexicon"]


def test_a_gateway_that_would_judge_nothing_does_not_start(tmp_path: Path) -> None:
    config = write(tmp_path, "[detectors.lexicon]\nenabled = false\n[detectors.encoder]\nenabled = false\n")
    assert "at least one must be enabled" in refusal(config)


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("[server]\nprot = 1\n", "server.prot. Did you mean server.port?"),
        ("colour = 1\n", "colour"),
        ("[detectors.encoder]\nenabld = true\n", "detectors.encoder.enabld"),
        ("[server]\nport = 'many'\n", "server.port"),
        ("[server]\nport = 65536\n", "server.port"),
        ("[holdback]\nfirst_chars = 281\n", "first_chars <= window_chars"),
        ("[persona]\ndefault_max_tokens = 100\ncap_max_tokens = 99\n", "default_max_tokens <= cap_max_tokens"),
        ("[telemetry]\notlp_endpoint = 'collector'\n", "telemetry.otlp_endpoint"),
        ("detectors = 3\n", "detectors"),
        ("[server\n", "not valid TOML"),
    ],
)
def test_a_faulty_file_is_refused_by_name(tmp_path: Path, toml: str, named: str) -> None:
    config = write(tmp_path, toml)
    message = refusal(config)
    assert named in message
    assert str(config) in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "absent.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"home = '\xe9'")
    assert "not UTF-8" in refusal(latin)


@pytest.mark.parametrize(
    "name",
    [
        "HAVENGATE__SERVER__PROT",
        "HAVENGATE__SERVR__PORT",
        "HAVENGATE__SERVER__PORT__EXTRA",
        "HAVENGATE__DETECTORS__ENCODER__ENABLD",
        "HAVENGATE__",
        "havengate__server__prot",
    ],
)
def test_an_unknown_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert name in refusal()


def test_a_wrong_value_names_the_variable_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "eight")
    assert "(from PORT)" in refusal()
    monkeypatch.setenv("HAVENGATE__SERVER__PORT", "nine")
    assert "(from HAVENGATE__SERVER__PORT)" in refusal()


def test_a_section_in_a_variable_must_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVENGATE__SERVER", "8000,please")
    assert refusal() == "The variable HAVENGATE__SERVER must hold a JSON object."


@pytest.mark.parametrize("secret", ["5ecret", "5" * 300])
def test_no_refusal_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("HAVENGATE_DEV_API_KEY", secret)
    assert secret not in refusal()
    monkeypatch.delenv("HAVENGATE_DEV_API_KEY")
    assert secret not in refusal(write(tmp_path, f"[store]\nurl = ['{secret}']\n"))
    assert secret not in refusal(write(tmp_path, f"[auth]\ndev_api_key = '{secret}\n"))


def test_settings_print_without_secrets(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        "[store]\nurl = 'postgresql+asyncpg://u:hidden1@h/d'\n[auth]\ndev_api_key = 'hidden2-0123'\n"
        "[backend]\nkind = 'openai_http'\n[backend.options]\napi_key = 'hidden3'\nmodel = 'shown'\n",
    )
    settings = load_settings(config)
    printed = f"{settings!r} {settings} {settings.shown()}"
    assert "hidden" not in printed
    assert settings.shown()["backend"]["options"] == {"api_key": STARS, "model": "shown"}
    assert settings.shown()["persona"]["default_max_tokens"] == 512
    assert settings.database_url == "postgresql+asyncpg://u:hidden1@h/d"


def test_settings_are_frozen_and_read_nothing_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILE", "production")
    settings = Settings()
    assert settings.profile == "embedded"
    with pytest.raises(ValidationError):
        settings.profile = "production"  # type: ignore[misc]


# --- the production profile ----------------------------------------------------------------------

FULL = {
    "profile": "production",
    "store": {"url": "postgresql://havengate:5ecret@db/havengate"},
    "events": {"url": "rediss://:5ecret@cache:6380/0"},
}


def test_production_takes_its_servers_from_settings() -> None:
    settings = load_settings(None, FULL)
    assert settings.database_url == "postgresql://havengate:5ecret@db/havengate"
    assert not settings.may_make_keyring
    assert "5ecret" not in f"{settings!r} {settings.shown()} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"store": {}}, "store.url"),
        ({"store": {"url": "sqlite:////var/lib/5ecret.sqlite3"}}, "store.url"),
        ({"events": {}}, "events.url"),
        ({"auth": {"dev_api_key": "hg_5ecret_5ecret"}}, "auth.dev_api_key"),
    ],
)
def test_production_makes_nothing_up(changes: dict[str, Any], named: str) -> None:
    """No file in place of the database, no bus in one process alone, no key that everybody knows."""
    message = refusal(None, FULL | changes)
    assert named in message
    assert "production profile" in message
    assert "5ecret" not in message


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://cache:6379", "redis://", "redis://cache:port", "unix://", ""]
)
def test_events_need_a_url_of_redis(url: str) -> None:
    message = refusal(None, {"events": {"url": url}})
    assert "events.url" in message
    assert "redis://HOST:PORT/0" in message


@pytest.mark.parametrize("url", ["redis://127.0.0.1", "redis://cache:6379/1", "unix:///run/valkey.sock"])
def test_urls_of_redis(url: str) -> None:
    settings = load_settings(None, {"events": {"url": url}})
    assert settings.events.url is not None
    assert settings.events.url.get_secret_value() == url


def test_a_channel_is_a_name() -> None:
    assert "events.channel" in refusal(None, {"events": {"channel": "two words"}})


# --- the keys ------------------------------------------------------------------------------------


def in_production(tmp_path: Path, **store: str) -> Settings:
    return load_settings(None, FULL | {"home": str(tmp_path), "store": {"url": "postgresql://db/havengate", **store}})


def test_the_keys_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVENGATE_KEYRING", base64.b64encode(b"k" * 32).decode())
    keyring = parts.open_keyring(in_production(tmp_path))
    monkeypatch.setenv("HAVENGATE_HOME", str(tmp_path / "other"))
    assert parts.open_keyring(load_settings()).keys == keyring.keys, "the embedded profile takes them too"
    assert list(tmp_path.iterdir()) == []


def test_production_reads_a_key_file_and_never_makes_one(tmp_path: Path) -> None:
    for settings in (in_production(tmp_path), in_production(tmp_path, keyring_path=str(tmp_path / "ring.json"))):
        with pytest.raises(StartupError, match="HAVENGATE_KEYRING") as caught:
            parts.open_keyring(settings)
        assert str(settings.keyring_path) in caught.value.message
        assert list(tmp_path.iterdir()) == []
    made = Keyring.load_or_create(tmp_path / "ring.json")
    assert parts.open_keyring(in_production(tmp_path, keyring_path=str(tmp_path / "ring.json"))).keys == made.keys


@pytest.mark.parametrize("value", ["c2hvcnQ=", "not base64 at all", '{"keys": []}'])
def test_keys_that_are_none_are_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HAVENGATE_KEYRING", value)
    with pytest.raises(StartupError) as caught:
        parts.open_keyring(in_production(tmp_path))
    assert value not in caught.value.message
