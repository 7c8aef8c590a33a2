"""The model card that lies in the model folder: what it is for, what it was made from, what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from detectors.calibrate import DECIDED, Manifest


def card(manifest: Manifest, report: str) -> str:
    """Markdown; ``report`` is the measured report of the same model."""
    record: Mapping[str, Any] = manifest.provenance
    files = "".join(f"| `{name}` | `{digest}` |\n" for name, digest in sorted(manifest.files.items()))
    data = "".join(f"| `{name}` | `{digest[:16]}` |\n" for name, digest in sorted(record["data_sha256"].items()))
    plain = [label for label in DECIDED if label not in manifest.calibration]
    measured = report.replace("\n## ", "\n### ").replace("\n### Sensitivity", "\n#### Sensitivity").split("\n", 2)[2]
    return f"""# {manifest.name}

One all-MiniLM-L6-v2 encoder (Apache-2.0), fine-tuned except for its word embeddings, with linear heads over the mean and the maximum of the message's tokens:
crisis severity as four cumulative levels, eleven crisis categories, subject, imminence, time; a bias flag and ten axes; an output-harm flag and ten harms.
English only. Licence of these weights: Apache-2.0, with the project. Among the sets it was fitted on are CLINC150 (CC BY 3.0), and CrowS-Pairs, BOLD and
parts of EMGSD (CC BY-SA 4.0), with thanks to their authors; none of their text is in this folder.

**For**: proposing to Havengate's policy that a person may be at risk, or that a reply is harmful or biased. Its numbers never act by themselves.
**Not for**: diagnosis, clearing anyone, ranking people, use without people who answer. A score under a threshold does not mean that all is well.

Input: `{manifest.input_format}`, {manifest.max_tokens} tokens at once, sentence windows of {manifest.window_tokens} beyond that length. Output: {len(manifest.labels)} logits, order in `manifest.json`.
Run it one text per call without padding: dynamic int8 makes a score depend on what it is batched with.

## Files

| file | sha256 |
|---|---|
{files}
The fp32 file is not shipped. To make it again: `havengate-train detectors fit --data DIR --run RUN` with the seed below, then
`havengate-train detectors export --data DIR --run RUN`; it is written to `RUN/model.fp32.onnx`.

## How it was made

Seed {record["options"]["seed"]}, {record["options"]["epochs"]} epochs of {record["rows_per_epoch"]} rows, batch {record["options"]["batch"]}, AdamW, bf16 autocast: {record["options"]["bfloat16"]}, {record["cpu_s"]} CPU seconds.
Losses per epoch: {record["loss_per_epoch"]}. Versions: `{json.dumps(record["versions"], sort_keys=True)}`. Base weights sha256 `{record["base_sha256"]}`.
Calibration: Platt, `{manifest.calibration_id}`, on {record["validation_rows"]} validation rows read by the int8 model as served. Without enough validation rows, hence
uncalibrated and with a default threshold: {", ".join(f"`{label}`" for label in plain) or "none"}.
Genre negatives (CLINC150, GoEmotions, SAD, CounselChat) had rows with risk wording left out; nobody labelled them for risk.

| data file | sha256 (first 16) |
|---|---|
{data}
## What was measured

{measured}"""
