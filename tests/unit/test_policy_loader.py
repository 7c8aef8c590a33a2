"""Loading, example tables, hot swap and the check behind ``havengate policy check``."""

from __future__ import annotations

import os
import shutil
from datetime import date
from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.policy.loader import MAX_FILE_BYTES, PolicyError, PolicyHolder, check, default_policy_path, load_policy

TODAY = date(2026, 11, 25)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped policy that a test may damage."""
    copy = tmp_path / "policies"
    shutil.copytree(default_policy_path().parent, copy)
    return copy


def swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refusal(path: Path) -> str:
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert isinstance(caught.value, StartupError)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_version_names_the_content_of_every_file(folder: Path) -> None:
    first = load_policy(folder / "default.toml").version
    assert first == load_policy(default_policy_path()).version
    assert len(first) == 12
    assert int(first, 16) >= 0
    swap(folder / "wording.toml", "That sounds like a lot to carry", "That sounds like a lot to shift")  # same length
    assert load_policy(folder / "default.toml").version != first


def test_a_wrong_example_is_named_with_its_field(folder: Path) -> None:
    swap(
        folder / "default.toml",
        'expect = { action = "replace", wording = "s1", route',
        'expect = { action = "replace", wording = "s2", route',
    )
    assert refusal(folder / "default.toml") == (
        "default.toml: case 'S1 untrusted gets reviewed words': wording: expected 's2', got 's1'"
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('reasons = ["level.S1", "untrusted"]', 'reasons = ["level.S9"]', "reasons: expected 'level.S9'"),
        ('says = ["1737"]', 'says = ["1738"]', "says: '1738' is not in the text for region 'NZ'"),
        ('route = "none", resources = false, panel = false', 'route = "queue"', "route: expected 'queue', got 'none'"),
    ],
)
def test_every_kind_of_expectation_can_fail(folder: Path, old: str, new: str, words: str) -> None:
    swap(folder / "default.toml", old, new)
    assert words in refusal(folder / "default.toml")


def test_a_changed_rule_is_caught_by_the_examples(folder: Path) -> None:
    swap(folder / "default.toml", 'wording = "helper_s3"', 'wording = "s3"')
    assert "case 'worried about someone else at S3: the helper is coached': wording" in refusal(folder / "default.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[meta\n", "broken.toml: not TOML"),
        (b"\xff\xfe", "broken.toml: not UTF-8"),
        (b"", "missing required field `meta`"),
        (b"meta = 3\n", "Expected `object`, got `int` - at `$.meta`"),
        (b"[meta]\ninclude = 3\n", "meta.include: expected at most 8 file names"),
        (b"[meta]\ninclude = ['a','b','c','d','e','f','g','h','i']\n", "meta.include: expected at most 8 file names"),
        (b"[meta]\ninclude = ['../wording.toml']\n", "'../wording.toml' is not the name of another file beside it"),
        (b"[meta]\ninclude = ['broken.toml']\n", "'broken.toml' is not the name of another file beside it"),
        (b"[meta]\ninclude = [3]\n", "3 is not the name of another file beside it"),
        (b"[meta]\ninclude = ['absent.toml']\n", "absent.toml: cannot be read: No such file or directory"),
        (b"#" * (MAX_FILE_BYTES + 1), f"broken.toml: larger than {MAX_FILE_BYTES} bytes"),
    ],
)
def test_a_file_that_is_not_a_policy(folder: Path, content: bytes, words: str) -> None:
    (folder / "broken.toml").write_bytes(content)
    assert words in refusal(folder / "broken.toml")


def test_two_files_may_not_define_the_same_thing(folder: Path) -> None:
    with (folder / "default.toml").open("a") as file:
        file.write("\n[wording]\ns1 = 'Hello. {resources}'\n")
    assert "wording.toml: wording: 's1' is already defined in another file" in refusal(folder / "default.toml")


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml") == "none.toml: cannot be read: No such file or directory"


def test_reload_swaps_a_good_file_in(folder: Path) -> None:
    holder = PolicyHolder(folder / "default.toml")
    before = holder.current
    assert not holder.changed_on_disk()
    assert holder.reload().changed is False
    swap(folder / "wording.toml", "That sounds like a lot to carry", "That sounds like so much to carry")
    assert holder.changed_on_disk()
    result = holder.reload()
    assert (result.ok, result.changed, result.version) == (True, True, holder.current.version)
    assert holder.current is not before
    assert "so much to carry" in holder.current.rules.wording["s1"]
    assert not holder.changed_on_disk()


@pytest.mark.parametrize("file", ["default.toml", "wording.toml", "resources.toml"])
def test_reload_keeps_the_old_policy_on_a_broken_file(folder: Path, file: str) -> None:
    holder = PolicyHolder(folder / "default.toml")
    before, good = holder.current, (folder / file).read_bytes()
    (folder / file).write_bytes(b"[broken")
    assert holder.changed_on_disk()
    result = holder.reload()
    assert (result.ok, result.changed, result.version) == (False, False, before.version)
    assert result.error is not None
    assert result.error.startswith(f"{file}: not TOML")
    assert holder.current is before
    assert not holder.changed_on_disk(), "a failure is reported once"
    (folder / file).write_bytes(good)
    os.utime(folder / file, ns=(1, 1))
    assert holder.changed_on_disk()
    assert holder.reload().ok


def test_reload_keeps_the_old_policy_when_the_file_is_gone(folder: Path) -> None:
    holder = PolicyHolder(folder / "default.toml")
    before = holder.current
    (folder / "default.toml").unlink()
    assert holder.changed_on_disk()
    assert holder.reload().error == "default.toml: cannot be read: No such file or directory"
    assert holder.current is before


def test_reload_keeps_the_old_policy_when_a_file_asks_for_less_than_the_floor(folder: Path) -> None:
    holder = PolicyHolder(folder / "default.toml")
    before = holder.current
    swap(folder / "default.toml", "ack_within_s = 300", "ack_within_s = 3000")
    result = holder.reload()
    assert result.error is not None
    assert "modes.assistant.S3.ack_within_s: 3000 is above the safety floor of 300 s" in result.error
    assert holder.current is before


def test_a_holder_does_not_start_on_a_bad_file(folder: Path) -> None:
    (folder / "default.toml").write_text("")
    with pytest.raises(PolicyError):
        PolicyHolder(folder / "default.toml")


def test_check_says_what_holds(folder: Path) -> None:
    (result,) = check([folder / "default.toml"], today=TODAY)
    assert result.ok
    assert result.cases >= 40
    assert result.version == load_policy(folder / "default.toml").version


def test_check_of_a_folder_takes_policies_and_leaves_fragments(folder: Path) -> None:
    (folder / "mine.toml").write_bytes(b"[broken")
    results = check([folder], today=TODAY)
    assert [(Path(r.path).name, r.ok) for r in results] == [("default.toml", True), ("mine.toml", False)]


def test_check_of_an_empty_folder_is_not_silent(tmp_path: Path) -> None:
    (result,) = check([tmp_path], today=TODAY)
    assert result.error == "default.toml: cannot be read: No such file or directory"


def test_check_fails_on_stale_resources_though_the_gateway_would_start(folder: Path) -> None:
    (result,) = check([folder / "default.toml"], today=date(2028, 1, 1))
    assert result.error is not None
    assert "past expires_at" in result.error
    assert load_policy(folder / "default.toml").version == result.version
