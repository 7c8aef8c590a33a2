"""Set-up: refusals in one line, steps that show progress, and nothing to do the second time."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "setup.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, its folder moved to ``tmp_path`` so that no test touches this checkout."""
    spec = importlib.util.spec_from_file_location("havengate_setup", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_an_old_python_can_parse_it_and_gets_one_clear_line(script: ModuleType, tmp_path: Path) -> None:
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    with pytest.raises(script.SetupError, match=r"needs Python 3\.11 or newer, and .* is 3\.10\."):
        script.check_machine(tmp_path, version=(3, 10, 14))
    script.check_machine(tmp_path, version=(3, 11, 0), free_bytes=script.FREE_BYTES)


def test_a_full_disk_is_refused_before_anything_is_installed(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(script.SetupError, match=r"1\.9 GB of disk are free"):
        script.check_machine(tmp_path, free_bytes=1.9e9)


def test_a_folder_that_cannot_be_written(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(script.SetupError, match="cannot be written"):
        script.check_machine(tmp_path / "gone")


def test_a_python_without_venv_is_told_what_to_install(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(script.SetupError, match="apt install python3-venv"):
        script.check_machine(tmp_path)


def test_the_stamp_answers_for_the_same_files_only(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("a", encoding="utf-8")
    before = script.digest(tmp_path)
    assert script.digest(tmp_path) == before
    (tmp_path / "constraints.txt").write_text("b", encoding="utf-8")
    after = script.digest(tmp_path)
    assert after != before
    assert script.digest(tmp_path, version="another Python") != after
    assert script.digest(tmp_path.parent) != after

    stamp, command = tmp_path / "stamp.json", tmp_path / "havengate"

    def ready(wanted: str) -> bool:
        return bool(script.is_ready(wanted, stamp=stamp, command=command, current=after))

    assert not ready("serve")
    stamp.write_text(json.dumps({"digest": after, "covers": ["serve"]}), encoding="utf-8")
    assert not ready("serve")
    command.touch()
    assert ready("serve")
    assert not ready("test")
    for damaged in ("", "[]", '{"digest": "other", "covers": ["serve"]}'):
        stamp.write_text(damaged, encoding="utf-8")
        assert not ready("serve")


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for msgspec==99", "does not offer a pinned version"),
        ("Temporary failure in name resolution", "cannot be reached"),
        ("  ERROR: Failed building wheel for uvloop", "build-essential"),
        ("npm error code ENOTFOUND", "npm registry cannot be reached"),
        ("fine\nerror: metadata-generation-failed\n", "error: metadata-generation-failed."),
        ("nothing known", "its log says why."),
    ],
)
def test_a_failed_step_says_what_to_do(script: ModuleType, log: str, advice: str) -> None:
    assert advice in script.remedy(log)


def test_a_step_shows_its_number_its_count_and_its_time(script: ModuleType, tmp_path: Path) -> None:
    out = io.StringIO()
    console = script.Console(total=4, out=out)
    talk = "print('Collecting a'); print('Collecting b'); print('Installing collected packages: a, b, c')"
    count = script.run_step(console, "installing", [sys.executable, "-c", talk], ".setup-x.log", cwd=tmp_path)
    console.end(f"installed {count} packages")
    assert count == 3
    assert out.getvalue().startswith("[1/4] installed 3 packages … ")
    assert "Collecting b" in (tmp_path / ".setup-x.log").read_text(encoding="utf-8")


def test_a_failing_step_names_its_log(script: ModuleType, tmp_path: Path) -> None:
    console = script.Console(total=1, out=io.StringIO())
    failing = [sys.executable, "-c", "print('Connection refused'); raise SystemExit(3)"]
    with pytest.raises(script.SetupError, match=r"^installing failed: .* cannot be reached.* Log: \.setup-x\.log$"):
        script.run_step(console, "installing", failing, ".setup-x.log", cwd=tmp_path)
    with pytest.raises(script.SetupError, match="cannot be started"):
        script.run_step(console, "installing", [str(tmp_path / "absent")], ".setup-x.log", cwd=tmp_path)


def test_a_step_that_never_ends_is_stopped(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "STEP_LIMIT_S", 0)
    console = script.Console(total=1, out=io.StringIO())
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read(); import threading; threading.Event().wait()"]
    with pytest.raises(script.SetupError, match="was stopped"):
        script.run_step(console, "waiting", waiting, ".setup-x.log", cwd=tmp_path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_moving_line_and_a_log_sees_few(script: ModuleType) -> None:
    terminal = script.Console(total=2, out=Terminal())
    terminal.begin("finding")
    terminal.spoke_s = -1e9
    terminal.beat("finding packages: 3 so far")
    terminal.end("found")
    text = terminal.out.getvalue()
    assert text.count("\r\033[K") == 3
    assert text.count("\n") == 1

    quiet = script.Console(total=2, out=io.StringIO())
    quiet.begin("finding")
    quiet.beat("too soon")
    quiet.spoke_s = -1e9
    quiet.beat("finding packages: 3 so far")
    assert quiet.out.getvalue() == "[1/2] finding packages: 3 so far … 0 s\n"


def checkout(folder: Path) -> Path:
    """A clone with what set-up reads, and a pip whose only index is an empty folder."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_without_an_index_make_setup_fails_in_one_line(tmp_path: Path) -> None:
    """The real command, the real pip: the package index is an empty folder."""
    folder = checkout(tmp_path / "clone")
    (tmp_path / "empty").mkdir()
    done = run(
        folder,
        "make",
        "setup",
        f"PYTHON={sys.executable}",
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp_path / "empty"),
        MAKEFLAGS="",
    )
    assert done.returncode != 0
    assert "[1/5] made .venv" in done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("setup: "))
    assert "Log: .setup-pip.log" in line
    assert "Traceback" not in done.stdout + done.stderr
    assert not (folder / ".venv" / "havengate-setup.json").exists()


def test_a_finished_set_up_starts_nothing(script: ModuleType, tmp_path: Path) -> None:
    """With the stamp in place the script answers before it would look for pip, venv or the network."""
    folder = checkout(tmp_path / "clone")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "havengate").touch()
    stamp = folder / ".venv" / "havengate-setup.json"
    stamp.write_text(json.dumps({"digest": script.digest(folder), "covers": ["serve", "test"]}), encoding="utf-8")
    done = run(folder, sys.executable, "scripts/setup.py", "--for", "test")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_two_set_ups_do_not_meet(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second waits for the first, then finds its work done."""
    monkeypatch.setattr(script, "LOCK", tmp_path / ".setup-lock")
    answers = iter([False, True])
    monkeypatch.setattr(script, "is_ready", lambda _: next(answers))
    made: list[Any] = []
    monkeypatch.setattr(script, "make_venv", made.append)
    script.set_up("serve")
    assert made == []


def test_the_npm_step_needs_node_only_when_there_are_npm_packages(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(script, "NODE_TESTS", tmp_path)
    out = io.StringIO()
    script.install_node(script.Console(total=1, out=out))
    assert "no npm packages" in out.getvalue()
    (tmp_path / "package-lock.json").write_text("{}", encoding="utf-8")
    with pytest.raises(script.SetupError, match="apt install nodejs npm"):
        script.install_node(script.Console(total=1, out=out))


def test_help_lists_every_target_a_person_would_want() -> None:
    done = run(ROOT, "make", "help", MAKEFLAGS="")
    for target in ("help", "setup", "serve", "test", "lint", "types", "bench", "clean"):
        assert f"make {target} " in done.stdout
