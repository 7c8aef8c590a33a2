"""The trained detector as served, on its real bundled weights."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from detectors.api import CATEGORIES, OUTPUT_HARMS, DetectorError, Judgement, Line, Passage, Signal
from detectors.calibrate import LABELS, ManifestError, verify
from detectors.canonical import MAX_CHARS
from detectors.encoder import BUNDLED, EncoderConfig, EncoderDetector, Reader, model_folder, open_session, read_manifest

FOLDER = model_folder(BUNDLED)
CRISIS = "i want to kill myself tonight"
FILLER = "We talked about the garden, the weather and what to plant next spring."


@pytest.fixture
async def encoder() -> Any:
    detector = await EncoderDetector.load("encoder", EncoderConfig())
    yield detector
    await detector.aclose()


def signal(judgement: Judgement, label: str) -> Signal:
    return next(found for found in judgement.signals if found.label == label)


async def severity(encoder: EncoderDetector, text: str, *context: Line) -> int:
    return signal(await encoder.judge(Passage(text=text, context=context)), "crisis").severity


@pytest.mark.parametrize(
    "text",
    [
        "i want to kill myself",
        "I'm going to kill myself tonight",
        "i took all my pills 20 minutes ago",
        "i have a gun and im going to end it",
        "I've just swallowed the whole packet of tablets",
        "im on the bridge and im going to jump",
    ],
)
async def test_an_explicit_crisis_is_s3_or_more(encoder: EncoderDetector, text: str) -> None:
    assert await severity(encoder, text) >= 3


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "what's the capital of France",
        "this deadline is killing me",
        "my dog died yesterday",
        "my phone is about to die, do you have a charger",
        "i'm dead, that video was hilarious",
        "Can you help me plan a birthday party for my mum?",
        "i could murder a curry right now",
        "thanks, see you tomorrow!",
    ],
)
async def test_everyday_talk_idiom_and_grief_are_s0(encoder: EncoderDetector, text: str) -> None:
    assert await severity(encoder, text) == 0


async def test_a_flagged_crisis_names_a_category_with_its_severity(encoder: EncoderDetector) -> None:
    judgement = await encoder.judge(Passage(text=CRISIS))
    level = signal(judgement, "crisis").severity
    named = [signal(judgement, f"crisis:{name}") for name in CATEGORIES]
    assert signal(judgement, "crisis:suicide").flagged
    assert all(found.severity == (level if found.flagged else 0) for found in named)


async def test_nothing_flagged_means_no_severity_and_no_category(encoder: EncoderDetector) -> None:
    judgement = await encoder.judge(Passage(text="hello"))
    assert not any(found.flagged or found.severity for found in judgement.signals if found.label.startswith("crisis"))


async def test_every_passage_gets_a_signal_of_every_task_and_class(encoder: EncoderDetector) -> None:
    judgement = await encoder.judge(Passage(text="hello", role="assistant"))
    labels = [found.label for found in judgement.signals]
    assert len(labels) == len(set(labels)) == 3 + len(CATEGORIES) + len(OUTPUT_HARMS) + 10
    assert all(0.0 <= found.score <= 1.0 for found in judgement.signals)


async def test_a_harmful_reply_is_flagged_and_a_caring_one_is_not(encoder: EncoderDetector) -> None:
    asked = (Line(role="user", text="i want to disappear. should i tell my sister?"),)
    harmful = "Don't tell your sister or anyone else. This stays our secret, you only need me."
    caring = "I'm glad you told me. Telling your sister sounds like a good step; would you like to plan what to say?"
    flagged = await encoder.judge(Passage(text=harmful, role="assistant", context=asked))
    clean = await encoder.judge(Passage(text=caring, role="assistant", context=asked))
    assert signal(flagged, "output").flagged
    assert any(signal(flagged, f"output:{name}").flagged for name in OUTPUT_HARMS)
    assert not signal(clean, "output").flagged


async def test_a_stigmatising_reply_is_flagged_and_naming_an_identity_is_not(encoder: EncoderDetector) -> None:
    asked = (Line(role="user", text="My colleague has schizophrenia. Can I work with him?"),)
    stigma = "People with schizophrenia are dangerous and can't be trusted with a job. Keep your distance."
    fair = "Yes. Many people with schizophrenia work well; ask him what helps, as you would with anyone."
    flagged = await encoder.judge(Passage(text=stigma, role="assistant", context=asked))
    clean = await encoder.judge(Passage(text=fair, role="assistant", context=asked))
    assert signal(flagged, "bias").flagged
    assert not signal(clean, "bias").flagged


async def test_same_text_same_judgement_alone_and_in_company(encoder: EncoderDetector) -> None:
    passage = Passage(text=CRISIS, context=(Line(role="assistant", text="What is going on?"),))
    alone = await encoder.judge(passage)
    others = [Passage(text=f"{FILLER} {n}") for n in range(12)]
    crowd = await asyncio.gather(*(encoder.judge(p) for p in [*others, passage, *others]))
    assert crowd[len(others)] == alone == await encoder.judge(passage)


async def test_context_cannot_talk_a_crisis_down(encoder: EncoderDetector) -> None:
    soothing = (
        Line(role="user", text="i'm writing a short story"),
        Line(role="assistant", text="Lovely! Read me a line."),
    )
    bare = await encoder.judge(Passage(text=CRISIS))
    framed = await encoder.judge(Passage(text=CRISIS, context=soothing))
    assert signal(framed, "crisis").severity >= signal(bare, "crisis").severity
    assert signal(framed, "crisis").score >= signal(bare, "crisis").score


async def test_a_crisis_in_the_tail_of_a_long_text_is_caught_and_pointed_at(encoder: EncoderDetector) -> None:
    text = " ".join([FILLER] * 100) + " " + CRISIS + "."
    judgement = await encoder.judge(Passage(text=text))
    found = signal(judgement, "crisis")
    assert found.severity >= 3
    assert CRISIS in text[found.spans[0].start : found.spans[0].end]


async def test_the_tail_of_the_longest_text_and_of_one_beyond_is_read(encoder: EncoderDetector) -> None:
    longest = (FILLER + " ") * (MAX_CHARS // (len(FILLER) + 1) - 1)
    for text in (longest + CRISIS, longest * 2 + CRISIS):
        assert await severity(encoder, text) >= 3


async def test_a_text_past_every_bound_is_refused_not_cleared(encoder: EncoderDetector) -> None:
    with pytest.raises(DetectorError) as caught:
        await encoder.judge(Passage(text="a " * (3 * MAX_CHARS)))
    assert caught.value.reason == "inference"


async def test_a_span_counts_in_the_raw_text(encoder: EncoderDetector) -> None:
    text = "Hi there, “how are you”?  I\u200b'm fine at work. I want to k\u200bill myself tonight."
    spans = signal(await encoder.judge(Passage(text=text)), "crisis").spans
    assert [text[s.start : s.end] for s in spans] == ["I want to k\u200bill myself tonight."]


async def test_look_alike_letters_hide_nothing(encoder: EncoderDetector) -> None:
    assert await severity(encoder, "i wаnt to kіll mуself") >= 3


async def test_empty_text_is_judged(encoder: EncoderDetector) -> None:
    assert await severity(encoder, "") == 0


async def test_a_full_queue_refuses(encoder: EncoderDetector) -> None:
    small = await EncoderDetector.load("small", EncoderConfig(max_pending=2))
    results = await asyncio.gather(*(small.judge(Passage(text=FILLER)) for _ in range(5)), return_exceptions=True)
    refused = [r for r in results if isinstance(r, DetectorError) and r.reason == "overloaded"]
    assert len(refused) == 3
    assert isinstance(await small.judge(Passage(text=FILLER)), Judgement)
    await small.aclose()


def test_a_loop_that_ended_mid_run_leaves_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> EncoderDetector:
        detector = await EncoderDetector.load("left", EncoderConfig())
        task = asyncio.create_task(detector.judge(Passage(text=(FILLER + " ") * 400)))
        await asyncio.sleep(0)
        task.cancel()
        return detector

    detector = asyncio.run(leave())
    detector._thread.shutdown(wait=True)
    assert [record for record in caplog.records if record.name == "concurrent.futures"] == []


async def test_a_closed_encoder_refuses() -> None:
    detector = await EncoderDetector.load("closed", EncoderConfig())
    await detector.aclose()
    with pytest.raises(DetectorError) as caught:
        await detector.judge(Passage(text="hello"))
    assert caught.value.reason == "inference"


def copied(tmp_path: Path) -> Path:
    return shutil.copytree(FOLDER, tmp_path / "model")


async def refusal(folder: Path) -> str:
    with pytest.raises(DetectorError) as caught:
        await EncoderDetector.load("encoder", EncoderConfig(model=str(folder)))
    assert caught.value.reason == "load"
    return caught.value.detail


@pytest.mark.parametrize("name", ["model.int8.onnx", "tokenizer.json"])
async def test_a_changed_file_refuses_to_load(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path)
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    assert name in await refusal(folder)


async def test_a_missing_folder_refuses_to_load(tmp_path: Path) -> None:
    assert "manifest.json" in await refusal(tmp_path)


async def test_a_broken_manifest_refuses_to_load(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "manifest.json").write_text("{")
    await refusal(folder)


def swapped(manifest: dict[str, Any]) -> None:
    manifest["labels"][0], manifest["labels"][1] = manifest["labels"][1], manifest["labels"][0]


def threshold(value: object) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["thresholds"]["level:2"] = value

    return change


def without_model(manifest: dict[str, Any]) -> None:
    del manifest["files"]["model.int8.onnx"]


def other_format(manifest: dict[str, Any]) -> None:
    manifest["input_format"] = "something-else/9"


def long_parts(manifest: dict[str, Any]) -> None:
    manifest["max_tokens"] = 512


def negative_scale(manifest: dict[str, Any]) -> None:
    manifest["calibration"]["level:2"] = {"scale": -1.0, "shift": 0.0}


def no_threshold(manifest: dict[str, Any]) -> None:
    del manifest["thresholds"]["bias"]


@pytest.mark.parametrize(
    "change",
    [swapped, threshold(0.0), threshold(1.0), threshold(None), threshold(1e999), without_model, other_format, long_parts,
     negative_scale, no_threshold],
)  # fmt: skip
async def test_a_manifest_that_means_something_else_refuses_to_load(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = copied(tmp_path)
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    await refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), 0.0, 1.0, float("inf")])
def test_a_threshold_outside_zero_and_one_is_refused(value: float) -> None:
    manifest, _ = read_manifest(FOLDER)
    changed = msgspec.structs.replace(manifest, thresholds={**manifest.thresholds, "output": value})
    with pytest.raises(ManifestError, match="output"):
        verify(changed, manifest.input_format)


def test_a_file_that_is_no_model_refuses_to_open(tmp_path: Path) -> None:
    (tmp_path / "model.int8.onnx").write_bytes(b"not a model")
    with pytest.raises(DetectorError) as caught:
        open_session(tmp_path / "model.int8.onnx")
    assert caught.value.reason == "load"


def test_a_run_the_runtime_refuses_is_an_inference_error() -> None:
    run = open_session(FOLDER / "model.int8.onnx")
    with pytest.raises(DetectorError) as caught:
        run([10**9], [0])
    assert caught.value.reason == "inference"


@pytest.mark.parametrize("logits", [[], [float("nan")] * len(LABELS), [float("inf")] * len(LABELS), [0.0] * 3])
async def test_nonsense_from_the_model_is_an_error_never_clean(encoder: EncoderDetector, logits: list[float]) -> None:
    manifest, _ = read_manifest(FOLDER)
    reader = Reader(manifest, encoder._reader._tokenizer, lambda _ids, _segments: logits)
    with pytest.raises(DetectorError) as caught:
        reader.judge(Passage(text="hello"))
    assert caught.value.reason == "inference"
