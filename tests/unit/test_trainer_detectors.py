"""Statistics, thresholds, reports and the command of the detector trainer (its torch-free part)."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import msgspec
import pytest

from detectors.calibrate import DECIDED, INDEX, LABELS, Platt
from detectors.encoder import BUNDLED, model_folder, read_manifest
from trainer import cli
from trainer.detectors.card import card
from trainer.detectors.evaluate import judge, report
from trainer.detectors.examples import Example, bias_targets, crisis_targets, facet_targets, output_targets
from trainer.detectors.statistics import f_beta, platt
from trainer.detectors.thresholds import (
    DEFAULT_THRESHOLD,
    Rule,
    Scored,
    calibrate,
    manifest,
    reader,
    score,
    threshold,
    thresholds,
)

FOLDER = model_folder(BUNDLED)
STRICT = Rule(beta=1.0, everyday=0.0, ours=0.0)


def test_f_beta_weighs_recall() -> None:
    assert f_beta(1, 1, 1) == pytest.approx(0.5)
    assert f_beta(9, 9, 1, 2.0) > f_beta(9, 1, 9, 2.0)
    assert f_beta(0, 0, 0) == 0.0


def test_platt_recovers_a_known_curve() -> None:
    logits = [x / 10 for x in range(-40, 41)] * 20
    truths = [(i * 37 % 100) / 100 < 1 / (1 + math.exp(-(2 * x - 1))) for i, x in enumerate(logits)]
    scale, shift = platt(logits, truths)
    assert scale == pytest.approx(2, abs=0.3)
    assert shift == pytest.approx(-1, abs=0.3)


def test_a_threshold_keeps_its_bounds() -> None:
    rows = [("own", 0.9, True), ("own", 0.6, True), ("own", 0.5, False), ("clinc150", 0.7, False)]
    assert threshold(rows, STRICT) == 0.9
    assert threshold(rows, Rule(beta=1.0, everyday=1.0, ours=0.0)) == 0.6


def test_a_threshold_is_inside_zero_and_one_even_when_none_keeps_the_bounds() -> None:
    assert 0 < threshold([("own", 1.0, False), ("own", 1.0, True)], STRICT) < 1


def rows() -> list[Example]:
    texts = [("i want to kill myself", 3), ("i took the pills already", 4), ("hello", 0), ("what a match!", 0)] * 16
    ours = [
        Example(
            id=str(i),
            source="own",
            text=text,
            targets={**crisis_targets(level, ("suicide",)), **facet_targets("self", "now", "ongoing")},
            keys=(str(i),),
        )
        for i, (text, level) in enumerate(texts)
    ]
    reply = Example(id="r", source="corpus-replies", text="Fine.", targets=output_targets(False, ()), keys=("r",))
    biased = Example(
        id="b", source="toxigen", text="They are all lazy.", targets=bias_targets(True, ("age",)), keys=("b",)
    )
    return [*ours, reply, biased]


def test_calibration_and_thresholds_come_from_served_scores() -> None:
    scored = score(reader(FOLDER), rows())
    pairs = calibrate(scored)
    assert "level:4" in pairs
    assert "bias" not in pairs
    cuts = thresholds(scored, pairs)
    assert set(cuts) == set(DECIDED)
    assert cuts["bias"] == DEFAULT_THRESHOLD
    made = manifest("m", {}, scored, {})
    assert made.calibration_id.startswith("platt-")
    assert made.labels == LABELS


def test_an_unreadable_validation_row_stops_the_fit() -> None:
    endless = Example(id="long", source="own", text="a " * 100_000, targets={}, keys=())
    with pytest.raises(ValueError, match="long"):
        score(reader(FOLDER), [endless])


def test_thresholds_hold_on_constructed_scores() -> None:
    low, high = [-4.0] * len(LABELS), [4.0] * len(LABELS)
    examples = [
        Example(id=str(i), source="own", text="", targets=crisis_targets(4 if i % 2 else 0, ()), keys=())
        for i in range(60)
    ]
    scored = [Scored(row, high if row.targets["level:4"] else low) for row in examples]
    cuts = thresholds(scored, {"level:2": Platt()})
    assert all(0.02 < cuts[f"level:{k}"] < 0.99 for k in (1, 2, 3, 4))


def test_a_class_threshold_looks_only_where_its_total_is_raised() -> None:
    def row(level: int, categories: tuple[str, ...], logit: float) -> Scored:
        logits = [0.0] * len(LABELS)
        logits[INDEX["crisis:self_harm"]] = logit
        return Scored(Example(id="", source="own", text="", targets=crisis_targets(level, categories), keys=()), logits)

    raised = [row(3, ("self_harm",), 1.0) for _ in range(12)] + [row(3, ("suicide",), -1.0) for _ in range(12)]
    calm = [row(0, (), 3.0) for _ in range(100)]
    assert thresholds(raised + calm, {})["crisis:self_harm"] == thresholds(raised, {})["crisis:self_harm"] < 0.74


def test_the_report_and_the_card_count_what_was_judged() -> None:
    made, _ = read_manifest(FOLDER)
    judged = judge(reader(FOLDER, made), rows())
    text = report(made, judged)
    assert "our own writing (n = 64)" in text
    assert "of 32)" in text
    record = {
        "options": {"seed": 1, "epochs": 1, "batch": 32, "bfloat16": True},
        "rows_per_epoch": [64],
        "loss_per_epoch": [0.5],
        "cpu_s": 1,
        "versions": {"torch": "x"},
        "base_sha256": "y",
        "validation_rows": 64,
        "data_sha256": {"seed-A.jsonl.gz": "0" * 64},
    }
    whole = card(msgspec.structs.replace(made, provenance=record), text)
    assert "seed-A.jsonl.gz" in whole
    assert made.calibration_id in whole
    assert made.files["model.int8.onnx"] in whole


def test_the_bundled_card_and_results_speak_of_the_bundled_weights() -> None:
    made, _ = read_manifest(FOLDER)
    results = Path(__file__).parents[2] / "docs" / "results" / "detectors.md"
    assert made.files["model.int8.onnx"] in (FOLDER / "README.md").read_text("utf-8")
    assert made.calibration_id in results.read_text("utf-8")


def test_wrong_usage_is_two() -> None:
    assert cli.main([]) == 2
    assert cli.main(["detectors", "fit"]) == 2
    assert cli.main(["--help"]) == 0


def test_missing_data_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["detectors", "evaluate", "--data", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("havengate-train: ")
    assert error.count("\n") == 1


def test_a_missing_model_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["detectors", "evaluate", "--data", str(tmp_path), "--model", str(tmp_path / "none")]
    assert cli.main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_fitting_without_torch_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["detectors", "fit", "--data", str(tmp_path), "--run", str(tmp_path)]) == 1
    assert "'train' extra" in capsys.readouterr().err
