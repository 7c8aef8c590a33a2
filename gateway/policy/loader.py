"""Read a policy from disk, prove it, and swap it in while the gateway runs.

A file is put into force only when it parses, every name in it points somewhere, nothing in it asks for
less than the safety floor, and every example it carries comes out as written.  A file that fails leaves
the policy in force untouched.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path, PurePath
from typing import Any, Final, NamedTuple

import msgspec

from gateway.errors import StartupError
from gateway.policy.decision import Decision
from gateway.policy.engine import decide, floor_problems
from gateway.policy.schema import Case, Document, Policy, problems
from gateway.policy.wording import render, stale

MAX_FILE_BYTES: Final = 1_048_576
MAX_FRAGMENTS: Final = 8


_Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""


class _Source(NamedTuple):
    """One file as it was read."""

    content: bytes
    stamp: _Stamp


class PolicyError(StartupError):
    """A policy file cannot be put into force.  One line: the file, the case if any, and the field."""


class ReloadResult(msgspec.Struct, frozen=True):
    """What a reload did.  ``version`` is the one in force afterwards; ``error`` is set when the old one was kept."""

    version: str
    changed: bool
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


class CheckResult(msgspec.Struct, frozen=True):
    """What ``havengate policy check`` says of one file."""

    path: str
    version: str | None = None
    cases: int = 0
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


def default_policy_path() -> Path:
    """The policy that ships with the package."""
    return Path(__file__).parent / "policies" / "default.toml"


def load_policy(path: Path) -> Policy:
    """Read ``path`` and its fragments, validate, run its examples.  Raises `PolicyError`."""
    return _build(path, _read(path))


def build_policy(data: dict[str, Any], *, version: str, source: str) -> Policy:
    """Validate already parsed tables and run their examples.  Raises `PolicyError`, beginning with ``source``."""
    try:
        document = msgspec.convert(data, Document, builtin_types=(date,))
    except msgspec.ValidationError as error:
        raise PolicyError(f"{source}: {error}") from None
    found = [*problems(document), *floor_problems(document)]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise PolicyError(f"{source}: {found[0]}{more}")
    policy = Policy(version=version, rules=document)
    for case in document.case:
        wrong = run_case(policy, case)
        if wrong is not None:
            raise PolicyError(f"{source}: case '{case.name}': {wrong}")
    return policy


def run_case(policy: Policy, case: Case) -> str | None:
    """Run one example.  Returns the first field that differs, or None when it holds."""
    decision = decide(policy, case.given)
    expect = case.expect
    actual = _facts_of(decision)
    for field, value in actual.items():
        wanted = getattr(expect, field)
        if wanted is not None and wanted != value:
            return f"{field}: expected {wanted!r}, got {value!r}"
    for reason in expect.reasons:
        if reason not in decision.reasons:
            return f"reasons: expected {reason!r} among {list(decision.reasons)!r}"
    if expect.says:
        text = render(policy, decision, case.region, today=policy.rules.meta.reviewed_at).text
        for part in expect.says:
            if part not in text:
                return f"says: {part!r} is not in the text for region {case.region!r}"
    return None


def check(paths: Iterable[Path], *, today: date | None = None) -> list[CheckResult]:
    """Check policy files; a folder stands for every ``*.toml`` in it that has a ``[meta]`` table.

    A resource entry past ``today`` (default: the date in UTC) fails its file here, though it would not stop a
    gateway from starting: there it is replaced by the emergency number and a directory.
    """
    day = today or datetime.now(UTC).date()
    return [_check_one(file, day) for path in paths for file in _policy_files(path)]


class PolicyHolder:
    """The policy in force.  ``current`` is replaced whole, so a turn that took it keeps one consistent policy."""

    def __init__(self, path: Path) -> None:
        """Load ``path``.  Raises `PolicyError`: a gateway does not start on a policy that cannot be proved."""
        self._path = path
        files = _read(path)
        self._current = _build(path, files)
        self._seen: dict[Path, _Stamp | None] = {file: source.stamp for file, source in files.items()}

    @property
    def current(self) -> Policy:
        return self._current

    def changed_on_disk(self) -> bool:
        """True when a file of the policy differs (size or modification time) from when it was last read.

        A file that failed to load is not reported again until it changes once more.
        """
        return any(_stamp(file) != stamp for file, stamp in self._seen.items())

    def reload(self) -> ReloadResult:
        """Put the file on disk into force, or keep what is.  Never raises on a bad file."""
        before = {file: _stamp(file) for file in self._seen}
        try:
            files = _read(self._path)
            policy = _build(self._path, files)
        except PolicyError as error:
            self._seen = before
            return ReloadResult(version=self._current.version, changed=False, error=error.message)
        changed = policy.version != self._current.version
        self._current = policy
        self._seen = {file: source.stamp for file, source in files.items()}
        return ReloadResult(version=policy.version, changed=changed)


def _check_one(path: Path, today: date) -> CheckResult:
    try:
        policy = load_policy(path)
    except PolicyError as error:
        return CheckResult(path=str(path), error=error.message)
    cases = len(policy.rules.case)
    old = stale(policy, today)
    if old:
        return CheckResult(
            path=str(path),
            version=policy.version,
            cases=cases,
            error=f"{path.name}: resources: {len(old)} past expires_at, first '{old[0]}'",
        )
    return CheckResult(path=str(path), version=policy.version, cases=cases)


def _policy_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [file for file in sorted(path.glob("*.toml")) if _has_meta(file)] or [path / "default.toml"]


def _has_meta(file: Path) -> bool:
    """A file that cannot be read or parsed counts as a policy, so that the check reports it."""
    try:
        return "meta" in _parse(file.name, _source(file).content)
    except PolicyError:
        return True


def _build(path: Path, files: dict[Path, _Source]) -> Policy:
    data: dict[str, Any] = {}
    digest = hashlib.sha256()
    for file, source in files.items():
        content = source.content
        _merge(data, _parse(file.name, content), file.name)
        # The name and length in front keep two files from reading like one.
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    return build_policy(data, version=digest.hexdigest()[:12], source=path.name)


def _read(path: Path) -> dict[Path, _Source]:
    """The file and the fragments it includes, in order, each read once."""
    files = {path: _source(path)}
    meta = _parse(path.name, files[path].content).get("meta")
    include = meta.get("include", ()) if isinstance(meta, dict) else ()
    if not isinstance(include, (list, tuple)) or len(include) > MAX_FRAGMENTS:
        raise PolicyError(f"{path.name}: meta.include: expected at most {MAX_FRAGMENTS} file names")
    for name in include:
        if not isinstance(name, str) or PurePath(name).name != name or path.parent / name in files:
            raise PolicyError(f"{path.name}: meta.include: {name!r} is not the name of another file beside it")
        files[path.parent / name] = _source(path.parent / name)
    return files


def _source(path: Path) -> _Source:
    try:
        with path.open("rb") as file:
            # Stamped before it is read, so that a write in between shows as a change later.
            stamp = _stamp_of(os.fstat(file.fileno()))
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise PolicyError(f"{path.name}: larger than {MAX_FILE_BYTES} bytes")
    return _Source(content, stamp)


def _parse(name: str, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise PolicyError(f"{name}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{name}: not TOML: {error}") from None
    except RecursionError:
        raise PolicyError(f"{name}: nested too deeply") from None


def _merge(into: dict[str, Any], part: dict[str, Any], name: str) -> None:
    """Merge two levels deep (``wording.s1``, ``resources.US``); a key that two files define is an error."""
    for table, value in part.items():
        if table not in into:
            into[table] = value
            continue
        have = into[table]
        both = value.keys() & have.keys() if isinstance(value, dict) and isinstance(have, dict) else {table}
        if both:
            raise PolicyError(f"{name}: {table}: '{min(both)}' is already defined in another file")
        have.update(value)


def _stamp(path: Path) -> _Stamp | None:
    try:
        return _stamp_of(path.stat())
    except OSError:
        return None


def _stamp_of(status: os.stat_result) -> _Stamp:
    return status.st_size, status.st_mtime_ns


def _facts_of(decision: Decision) -> dict[str, object]:
    """The fields of a decision that an example can pin."""
    return {
        "action": decision.action,
        "severity": decision.severity,
        "wording": decision.wording,
        "guidance": decision.guidance,
        "route": decision.escalation.route if decision.escalation else "none",
        "ack_within_s": decision.escalation.ack_within_s if decision.escalation else None,
        "resources": decision.show_resources,
        "panel": decision.disclose_to_panel,
    }
