"""The trained detector: one MiniLM encoder in ONNX (int8) with heads for crisis, bias and harm in a reply.

A passage is read several times and the most careful reading of each label counts: whole with its context, whole
by itself, and, when long, sentence window by sentence window.  Context may therefore raise a verdict but never talk
it down.  One text per call and no padding: dynamic int8 takes one activation scale per tensor, so a batch would let
a message's score depend on its neighbours.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import msgspec

from detectors import windows
from detectors.api import DetectorError, DetectorInfo, Judgement, Line, Passage, Span
from detectors.calibrate import INDEX, LABELS, Manifest, ManifestError, judgement, verify
from detectors.canonical import MAX_CHARS, Canonical, canonicalise

BUNDLED: Final = "minilm-l6-haven"
INPUT_FORMAT: Final = "cls-message-sep-context-sep/1"
"""``[CLS] message [SEP] role: line / role: line [SEP]``: the message is segment 0, where the heads pool; the last three
lines of context are segment 1."""

MODEL_FILE: Final = "model.int8.onnx"
TOKENIZER_FILE: Final = "tokenizer.json"
CONTEXT_LINES: Final = 3
CONTEXT_TOKENS: Final = 48
MAX_CHUNKS: Final = 4
"""A text longer than this many times 32,768 code points is not judged: `DetectorError`, never "clean"."""
_CHUNK_OVERLAP: Final = 512
_LEADER: Final = INDEX["level:2"]


class EncoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``model`` is a bundled model's name or the path of a model folder."""

    model: str = BUNDLED
    provider: Literal["cpu"] = "cpu"
    max_pending: int = 64
    """Passages that may wait for the model's thread; one more is refused as "overloaded"."""


Run = Callable[[list[int], list[int]], Sequence[float]]
"""One forward pass: token ids and segment ids of one text to one logit per label."""


class EncoderDetector:
    """Crisis (severity, categories, subject, imminence, time), bias and output harm from one encoder.

    ``judge`` is a pure function of its passage: runs happen one at a time on the detector's own thread.
    """

    config_type: ClassVar[type[Any]] = EncoderConfig

    def __init__(self, name: str, manifest: Manifest, digest: str, tokenizer: Any, run: Run, max_pending: int) -> None:
        self._info = DetectorInfo(name=name, digest=digest, tasks=("crisis", "output", "bias"))
        self._reader = Reader(manifest, tokenizer, run)
        self._max_pending = max_pending
        self._pending = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"encoder-{name}")

    @classmethod
    async def load(cls, name: str, config: Any) -> Self:
        """Open and verify a model folder.  Raises `DetectorError` ("load")."""
        settings: EncoderConfig = config
        manifest, digest, tokenizer, run = await asyncio.to_thread(_open, model_folder(settings.model))
        return cls(name, manifest, digest, tokenizer, run, settings.max_pending)

    @property
    def info(self) -> DetectorInfo:
        return self._info

    async def judge(self, passage: Passage) -> Judgement:
        """Judge one passage.  Raises `DetectorError` ("overloaded" or "inference")."""
        if self._pending >= self._max_pending:
            raise DetectorError("overloaded", "the encoder's queue is full")
        loop = asyncio.get_running_loop()
        self._pending += 1
        try:
            work = self._thread.submit(self._reader.judge, passage)
        except RuntimeError as error:
            self._pending -= 1
            raise DetectorError("inference", "the encoder is closed") from error
        work.add_done_callback(lambda _: _tell(loop, self._settle))
        return await asyncio.wrap_future(work)

    async def aclose(self) -> None:
        """Refuse further passages and wait for the one that runs."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    def _settle(self) -> None:
        self._pending -= 1


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call back on the loop; a loop that is gone needs no count."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return


class Reader:
    """The synchronous heart: passage in, judgement out.  The fit reads through it too, so thresholds see what is served."""

    def __init__(self, manifest: Manifest, tokenizer: Any, run: Run) -> None:
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._run = run

    def judge(self, passage: Passage) -> Judgement:
        """Raises `DetectorError` ("inference") on a model that answers nonsense or a text past every bound."""
        logits, leader = self.read(passage)
        verdict = judgement(self._manifest, logits, leader)
        if verdict.signals[0].severity == 0:
            return verdict
        return judgement(self._manifest, logits, leader, self._point(passage.text))

    def read(self, passage: Passage) -> tuple[list[float], list[float]]:
        """Per label the maximum logit over all readings, and the logits of the leading reading."""
        context = context_ids(self._tokenizer, passage.context)
        readings: list[list[float]] = []
        for _, chunk in chunks(passage.text):
            canonical = _canonical(chunk)
            text, raw = windows.encode(self._tokenizer, canonical.text), windows.encode(self._tokenizer, chunk)
            readings.extend(self._readings(canonical.text, text, context))
            if list(raw.ids) != list(text.ids):  # spacing alone changes no token
                readings.extend(self._readings(chunk, raw, ()))
        top = [max(reading[i] for reading in readings) for i in range(len(LABELS))]
        return top, max(readings, key=lambda reading: reading[_LEADER])

    def _readings(self, source: str, text: windows.Encoded, context: Sequence[int]) -> list[list[float]]:
        parts = windows.coarse(text, self._manifest.max_tokens)
        found = [self._score(part.ids, ()) for part in parts]
        if context:
            found.append(self._score(parts[0].ids[: self._manifest.max_tokens], context))
        if len(text.ids) > self._manifest.window_tokens:
            cut = windows.cut(text, windows.sentences(source, text), self._manifest.window_tokens)
            found.extend(self._score(window.ids, ()) for window in cut)
        return found

    def _point(self, source: str) -> tuple[Span, ...]:
        """The sentence with the highest P(severity >= 2), when there is more than one."""
        best: tuple[float, Span] | None = None
        for offset, chunk in chunks(source):
            canonical = _canonical(chunk)
            text = windows.encode(self._tokenizer, canonical.text)
            parts = windows.sentences(canonical.text, text)
            if len(parts) < 2 and offset == 0:
                return ()
            for first, last in windows.ends(parts):
                sentence = windows.window(text, first, min(last, first + windows.MAX_PART_TOKENS))
                weight = self._score(sentence.ids, ())[_LEADER]
                if best is None or weight > best[0]:
                    span = canonical.to_raw(sentence.start, sentence.end)
                    best = (weight, Span(span.start + offset, span.end + offset))
        return () if best is None else (best[1],)

    def _score(self, message: Sequence[int], context: Sequence[int]) -> list[float]:
        ids, segments = assemble(self._tokenizer, message, context)
        logits = [float(value) for value in self._run(ids, segments)]
        if len(logits) != len(LABELS) or not all(math.isfinite(value) for value in logits):
            raise DetectorError("inference", "the encoder's logits are missing or not finite")
        return logits


def chunks(text: str) -> list[tuple[int, str]]:
    """Overlapping pieces of at most 32,768 code points, each with its offset.  Raises `DetectorError` past `MAX_CHUNKS`."""
    if len(text) <= MAX_CHARS:
        return [(0, text)]
    step = MAX_CHARS - _CHUNK_OVERLAP
    starts = range(0, len(text) - _CHUNK_OVERLAP, step)
    if len(starts) > MAX_CHUNKS:
        raise DetectorError("inference", "the text is longer than the encoder reads")
    return [(start, text[start : start + MAX_CHARS]) for start in starts]


def _canonical(chunk: str) -> Canonical:
    canonical = canonicalise(chunk)
    if canonical.truncated:
        raise DetectorError("inference", "the text grows past what the encoder reads")
    return canonical


def context_ids(tokenizer: Any, context: Sequence[Line]) -> list[int]:
    """Token ids of the last `CONTEXT_LINES` lines with their roles; the newest `CONTEXT_TOKENS` tokens are kept."""
    lines = [f"{line.role}: {line.text[-_CHUNK_OVERLAP:]}" for line in context[-CONTEXT_LINES:]]
    text = canonicalise("\n".join(lines)).text
    return list(windows.encode(tokenizer, text).ids[-CONTEXT_TOKENS:])


def assemble(tokenizer: Any, message: Sequence[int], context: Sequence[int]) -> tuple[list[int], list[int]]:
    """Token ids and segment ids as `INPUT_FORMAT` says."""
    start, stop = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    ids = [start, *message, stop]
    segments = [0] * len(ids)
    if context:
        ids += [*context, stop]
        segments += [1] * (len(context) + 1)
    return ids, segments


def model_folder(model: str) -> Path:
    """A bundled model's folder by name, or the path as given."""
    bundled = Path(__file__).parent / "models" / model
    return bundled if bundled.is_dir() else Path(model)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Decode and verify ``manifest.json`` and every file it names; also its own sha256.  Raises `DetectorError` ("load")."""
    try:
        data = (folder / "manifest.json").read_bytes()
        manifest = msgspec.json.decode(data, type=Manifest)
        verify(manifest, INPUT_FORMAT)
        for file, digest in manifest.files.items():
            if hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
                raise ManifestError(f"{file} is not the file the manifest names")
    except OSError as error:
        raise DetectorError("load", f"encoder model: {error.strerror}: {error.filename}") from error
    except (msgspec.DecodeError, ManifestError) as error:
        raise DetectorError("load", f"encoder model: {error}") from error
    missing = {MODEL_FILE, TOKENIZER_FILE} - set(manifest.files)
    if missing:
        raise DetectorError("load", f"encoder model: manifest names no {', '.join(sorted(missing))}")
    return manifest, hashlib.sha256(data).hexdigest()


def open_tokenizer(path: Path) -> Any:
    """The tokenizer with truncation and padding off, whatever its file says."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def open_session(path: Path) -> Run:
    """An onnxruntime session on one CPU thread, as a plain function of ids and segment ids.

    Raises `DetectorError` ("load") on a file onnxruntime refuses; a failing run raises "inference".
    """
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        raise DetectorError("load", "onnxruntime refuses the encoder's file") from error

    failures: tuple[type[Exception], ...] = (RuntimeError, ValueError, *runtime_errors())

    def run(ids: list[int], segments: list[int]) -> Sequence[float]:
        feeds = {"ids": np.array([ids], np.int64), "segments": np.array([segments], np.int64)}
        try:
            (logits,) = session.run(["logits"], feeds)
        except failures as error:
            raise DetectorError("inference", "onnxruntime could not run the encoder") from error
        return [float(value) for value in logits.reshape(-1)]

    return run


def runtime_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its own classes, which share no base but `Exception`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names)


def _open(folder: Path) -> tuple[Manifest, str, Any, Run]:
    manifest, digest = read_manifest(folder)
    return manifest, digest, open_tokenizer(folder / TOKENIZER_FILE), open_session(folder / MODEL_FILE)
