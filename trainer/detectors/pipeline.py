"""The steps put together: export with thresholds, and the measured report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from detectors.encoder import read_manifest
from trainer.detectors import data, evaluate, thresholds
from trainer.detectors.card import card


def finish(folder: Path, run: Path, model: Path) -> None:
    """Export the fit in ``run`` to ``model``, fit calibration and thresholds on validation, write the manifest.

    Raises `ValueError` when the data is not what the fit saw: its split would not hold.
    """
    from trainer.detectors.export import export, file_hashes, provenance

    record = provenance(run)
    options = record["options"]
    dataset = data.load(folder, options["seed"], options["limit"])
    if dataset.hashes != record["data_sha256"]:
        raise ValueError("the data changed since the fit; fit again")
    export(run, model)
    scored = thresholds.score(thresholds.reader(model), dataset.split("validation"))
    record["validation_rows"] = len(scored)
    manifest = thresholds.manifest(model.name, file_hashes(model), scored, record)
    encoded = msgspec.json.encode(manifest, order="deterministic")
    (model / "manifest.json").write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")


def measure(folder: Path, model: Path, with_card: bool = False) -> str:
    """The report of ``model`` on the test split of the data it was fitted with; by wish also its card.

    Raises `ValueError` when the data differs, `detectors.api.DetectorError` when the folder does not verify.
    """
    manifest, _ = read_manifest(model)
    options = manifest.provenance.get("options")
    if not isinstance(options, dict):
        raise ValueError("the manifest has no fit options")
    dataset = data.load(folder, options["seed"], options["limit"])
    if dataset.hashes != manifest.provenance.get("data_sha256"):
        raise ValueError("the data is not what the model was fitted with")
    reader = thresholds.reader(model, manifest)
    text = evaluate.report(manifest, evaluate.judge(reader, dataset.split("test")))
    if with_card:
        (model / "README.md").write_text(card(manifest, text), "utf-8")
    return text
