"""Fit the shared encoder and its heads.  Reproducible from the seed, the data hashes and the versions it writes down."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from detectors.calibrate import INDEX, LABELS
from detectors.encoder import assemble, context_ids, open_tokenizer
from detectors.windows import encode
from trainer.detectors import data, model
from trainer.detectors.examples import Example

if TYPE_CHECKING:
    import torch

HEAD_WEIGHTS: Final = {
    "level": 1.0, "crisis": 0.4, "subject": 0.15, "imminence": 0.15, "time": 0.15,
    "bias": 1.5, "bias:": 0.3, "output": 1.5, "output:": 0.4,
}  # fmt: skip
"""Weight of one label's loss, by head; "bias:" and "output:" are the classes under a flag."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Everything that shapes a fit besides the data."""

    seed: int = 20261125
    epochs: int = 3
    batch: int = 32
    max_tokens: int = 128
    encoder_rate: float = 1.5e-4
    head_rate: float = 1e-3
    warmup: float = 0.06
    threads: int = 1
    bfloat16: bool = True
    limit: int | None = None
    """Rows per source, for a smoke run."""


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenised example."""

    ids: list[int]
    segments: list[int]
    targets: list[float]
    weight: float


def head_weight(label: str) -> float:
    head, colon, _ = label.partition(":")
    return HEAD_WEIGHTS[head + colon if head in ("bias", "output") else head]


def tokenise(tokenizer: Any, example: Example, max_tokens: int) -> Row:
    """As `detectors.encoder` reads a passage; a longer message keeps its head, the context its newest tokens."""
    message = encode(tokenizer, example.text).ids[:max_tokens]
    ids, segments = assemble(tokenizer, message, context_ids(tokenizer, example.context))
    targets = [-1.0] * len(LABELS)
    for label, value in example.targets.items():
        targets[INDEX[label]] = value
    return Row(ids, segments, targets, example.weight)


def batches(rows: Sequence[Row], size: int, rng: random.Random) -> Iterator[list[Row]]:
    """Batches of rows of like length, in random order."""
    pool = size * 50
    found: list[list[Row]] = []
    for start in range(0, len(rows), pool):
        part = sorted(rows[start : start + pool], key=lambda row: len(row.ids))
        found += [part[i : i + size] for i in range(0, len(part), size)]
    rng.shuffle(found)
    yield from found


def collate(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, segments, mask [batch, longest]; targets [batch, labels] (-1 unknown); row weights [batch]."""
    import torch

    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    segments, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        segments[i, : len(row.ids)] = torch.tensor(row.segments)
        mask[i, : len(row.ids)] = 1
    targets = torch.tensor([row.targets for row in rows])
    return ids, segments, mask, targets, torch.tensor([row.weight for row in rows])


def loss_of(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Weighted binary cross-entropy over the known labels, summed over labels, averaged over rows."""
    import torch

    known = (targets >= 0).float()
    smooth = targets.clamp(min=0) * 0.98 + 0.01
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    return (each * known * heads * weights.unsqueeze(1)).sum() / logits.shape[0]


def fit(folder: Path, out: Path, options: FitOptions) -> Path:
    """Fit on the data under ``folder``; write ``model.pt`` and ``fit.json`` into ``out`` and return ``out``.

    Word embeddings stay as pretrained: our own writing is small, and words it lacks keep their place beside those it has.
    """
    import torch

    random.seed(options.seed)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    base = model.base_folder()
    dataset = data.load(folder, options.seed, options.limit)
    tokenizer = open_tokenizer(base / "tokenizer.json")
    network = model.build(base)
    network.encoder.embeddings.word_embeddings.weight.requires_grad_(False)
    trained = [weight for weight in network.encoder.parameters() if weight.requires_grad]
    groups = [
        {"params": trained, "lr": options.encoder_rate},
        {"params": network.heads.parameters(), "lr": options.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    epochs = [data.epoch(dataset, number) for number in range(options.epochs)]
    steps = sum(-(-len(rows) // options.batch) for rows in epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, options.warmup))
    heads = torch.tensor([head_weight(label) for label in LABELS])
    started, step, losses = time.process_time(), 0, []
    network.train()
    for number, rows in enumerate(epochs):
        tokens = [tokenise(tokenizer, row, options.max_tokens) for row in rows]
        total = 0.0
        for batch in batches(tokens, options.batch, random.Random(f"{options.seed}:{number}")):
            ids, segments, mask, targets, weights = collate(batch)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
                logits = network(ids, segments, mask)
            loss = loss_of(logits.float(), targets, weights, heads)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*trained, *network.heads.parameters()], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step, total = step + 1, total + loss.item() * len(batch)
            if step % 200 == 0:
                print(
                    f"step {step}/{steps} loss {loss.item():.3f} cpu {time.process_time() - started:.0f}s", flush=True
                )
        losses.append(round(total / max(len(rows), 1), 4))
    out.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), out / "model.pt")
    record = {
        "options": asdict(options),
        "rows_per_epoch": [len(rows) for rows in epochs],
        "loss_per_epoch": losses,
        "cpu_s": round(time.process_time() - started),
        "data_sha256": dataset.hashes,
        "base_sha256": model.WEIGHTS_SHA256,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
    (out / "fit.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    return out


def _rate(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then linear decay to a twentieth."""
    rising = max(1.0, steps * warmup)
    return min(step / rising, max(0.05, (steps - step) / max(1.0, steps - rising)))
