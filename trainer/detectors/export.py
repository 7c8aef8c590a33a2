"""torch -> ONNX fp32 -> dynamic int8 per channel, and a first manifest.  Thresholds come from `thresholds.py`."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from detectors.calibrate import LABELS
from detectors.encoder import MODEL_FILE, TOKENIZER_FILE
from trainer.detectors import model

FP32_FILE: Final = "model.fp32.onnx"
OPSET: Final = 17


def export(run: Path, folder: Path) -> Path:
    """Export the fit in ``run`` to the model folder ``folder``; the fp32 file stays in ``run``."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    base = model.base_folder()
    network = model.build(base)
    network.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    network.eval()
    ids = torch.tensor([[101, 7592, 2088, 102, 2054, 102]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1]])
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.onnx.export(
            network,
            (ids, segments),
            str(run / FP32_FILE),
            input_names=["ids", "segments"],
            output_names=["logits"],
            dynamic_axes={"ids": {0: "batch", 1: "tokens"}, "segments": {0: "batch", 1: "tokens"}},
            opset_version=OPSET,
            dynamo=False,
        )
    quantize_dynamic(run / FP32_FILE, folder / MODEL_FILE, per_channel=True, weight_type=QuantType.QInt8)
    shutil.copyfile(base / "tokenizer.json", folder / TOKENIZER_FILE)
    return folder


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the files the detector opens."""
    names = (MODEL_FILE, TOKENIZER_FILE)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def provenance(run: Path) -> dict[str, Any]:
    """The fit's own record, with the exporter's versions."""
    record: dict[str, Any] = json.loads((run / "fit.json").read_text("utf-8"))
    record["versions"] = {**record["versions"], **{name: version(name) for name in ("onnx", "onnxruntime")}}
    return {**record, "opset": OPSET, "labels": len(LABELS)}
