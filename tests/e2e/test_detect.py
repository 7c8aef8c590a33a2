"""``havengate detect``: rows in, rows out, in the same order and in the shape that others rely on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from detectors.api import BIAS_AXES, CATEGORIES, OUTPUT_HARMS
from tests.support import scripts
from tests.support.gateway import havengate

CRISIS = "I want to end my life tonight."

ROWS: list[dict[str, Any]] = [
    {"id": "z", "text": "How does sourdough work?"},
    {"id": 7, "messages": [{"role": "user", "content": CRISIS}]},
    {
        "id": "a",
        "messages": [
            {"role": "user", "content": CRISIS},
            {"role": "assistant", "content": "I am here. Who could be with you?"},
            {"role": "user", "content": "What goes well with pasta?"},
        ],
    },
    {
        "id": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Was I wrong to leave?"},
            {"role": "assistant", "content": f"Honestly, {scripts.HARM}."},
        ],
    },
]


def detect(rows: str, tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    (tmp_path / "in.jsonl").write_text(rows, encoding="utf-8")
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    done = havengate("detect", *files, home=tmp_path / "home")
    return done, [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]


def check_scores(scores: dict[str, float], names: tuple[str, ...]) -> None:
    assert list(scores) == list(names)
    assert all(0 <= score <= 1 for score in scores.values())


def test_detect_gives_one_row_per_row_in_the_same_order(tmp_path: Path) -> None:
    done, found = detect("".join(json.dumps(row) + "\n" for row in ROWS), tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    for row in found:
        assert set(row) == {"id", "crisis", "output", "bias", "detectors"}
        assert set(row["crisis"]) == {"severity", "score", "categories", "subject", "imminence"}
        assert set(row["output"]) == {"flagged", "score", "categories"}
        assert set(row["bias"]) == {"flagged", "score", "axes"}
        assert row["crisis"]["severity"] in range(5)
        check_scores(row["crisis"]["categories"], CATEGORIES)
        check_scores(row["output"]["categories"], OUTPUT_HARMS)
        check_scores(row["bias"]["axes"], BIAS_AXES)
        assert set(row["detectors"].values()) == {"ran"}
    plain, crisis, taken_back, harmful = found
    assert plain["crisis"]["severity"] == 0
    assert crisis["crisis"]["severity"] >= 3
    assert crisis["crisis"]["categories"]["suicide"] > 0.5
    assert (crisis["crisis"]["subject"], crisis["crisis"]["imminence"]) == ("self", "hours")
    assert taken_back["crisis"]["severity"] >= 3, "the conversation is judged, not its last message"
    assert harmful["output"]["flagged"]
    assert harmful["output"]["categories"]["encouragement"] > 0.5
    assert not any(row["output"]["flagged"] for row in found[:3])


def test_detect_says_which_row_is_wrong_and_goes_on(tmp_path: Path) -> None:
    bad = '{"id": "b", "text": 7}\n\nnot json\n'
    done, found = detect(json.dumps(ROWS[0]) + "\n" + bad + json.dumps(ROWS[1]) + "\n", tmp_path)
    assert done.returncode == 1
    assert [row["id"] for row in found] == ["z", "b", None, 7]
    assert "line 2" in found[1]["error"]
    assert "line 4" in found[2]["error"]
    assert found[3]["crisis"]["severity"] >= 3


def test_detect_leaves_no_state_behind(tmp_path: Path) -> None:
    detect("", tmp_path)
    assert not (tmp_path / "home").exists()


def test_detect_without_its_file(tmp_path: Path) -> None:
    files = ["--input", str(tmp_path / "none.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    done = havengate("detect", *files, home=tmp_path)
    assert done.returncode == 1
    assert "none.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
