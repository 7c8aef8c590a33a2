"""The exposure map: every field of a chat that a model could read or a client receives, and what becomes of it.

One frozen table, `ROWS`.  `gateway/http/openai.py` takes what it refuses from here; `tests/unit/test_exposure.py` walks
the wire types and fails for a field without a row; `case` names the row's proof in the conformance kit
(`tests/conformance`), which runs against any gateway.  A field that stands nowhere is refused by name.

Paths are OpenAI's, ``[]`` stands for each item.  Shapes: OpenAI's Chat Completions reference, and the fields that vLLM
and others add to it (``reasoning``, ``reasoning_content``).  The reasons are in ``docs/adr/0008-exposure-map.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

Direction = Literal["request", "response"]
Treatment = Literal["guarded", "setting", "refused", "dropped", "ours"]
Phase = Literal["input", "output"]


class Row(msgspec.Struct, frozen=True):
    """What becomes of one field.

    - ``guarded``: text that a verdict covers before it goes on; ``phase`` says which, ``extractor`` who reads it;
    - ``setting``: a number, a switch or a word from a closed list; no text fits into it;
    - ``refused``: 400 naming the field, unless it holds one of the ``neutral`` values, which say nothing;
    - ``dropped``: read by nobody; it reaches neither the model nor the client;
    - ``ours``: written by the gateway, whatever the model's server sent in its place.
    """

    direction: Direction
    path: str
    treatment: Treatment
    case: str
    phase: Phase | None = None
    extractor: str | None = None
    neutral: tuple[Any, ...] = ()
    when: str = ""
    """Which values of the field this row speaks of, where not all are treated alike."""


_HEARD: Final = "gateway.pipeline.listen.listen"
_SPOKEN: Final = "gateway.pipeline.listen.reply_passage"
_NOTHING: Final = (None,)


def _guarded(path: str, case: str, extractor: str = _HEARD, when: str = "") -> Row:
    return Row("request", path, "guarded", case, phase="input", extractor=extractor, when=when)


def _setting(path: str) -> Row:
    return Row("request", path, "setting", f"in.setting.{path}")


def _refused(path: str, case: str, neutral: tuple[Any, ...] = _NOTHING, when: str = "") -> Row:
    return Row("request", path, "refused", case, neutral=neutral, when=when)


def _dropped(path: str, case: str) -> Row:
    return Row("request", path, "dropped", case)


def _spoken(path: str, case: str) -> Row:
    return Row("response", path, "guarded", case, phase="output", extractor=_SPOKEN)


def _ours(path: str, case: str) -> Row:
    return Row("response", path, "ours", case)


def _unsaid(path: str, case: str) -> Row:
    return Row("response", path, "dropped", case)


_REQUEST: Final = (
    # --- the conversation
    _guarded("messages[].content", "in.user.plain", when="user"),
    _guarded("messages[].content", "in.system", when="system"),
    _guarded("messages[].content", "in.developer", when="developer"),
    _guarded("messages[].content", "in.assistant.history", when="assistant, followed by a user's message"),
    _refused("messages[].content", "in.assistant.prefill", when="assistant, last: the model would go on from it"),
    _refused("messages[].content", "in.tool.result", when="tool, function"),
    _guarded("messages[].content[].text", "in.user.parts"),
    _setting("messages[].content[].type"),
    _refused("messages[].content[].image_url", "in.part.image_url"),
    _refused("messages[].content[].input_audio", "in.part.input_audio"),
    _refused("messages[].content[].file", "in.part.file"),
    _refused("messages[].content[].refusal", "in.part.refusal"),
    _setting("messages[].role"),
    _dropped("messages[].name", "in.name"),
    _refused("messages[].tool_calls", "in.tool.call", (None, [])),
    _refused("messages[].tool_calls[].function.name", "in.tool.call_name"),
    _refused("messages[].tool_calls[].function.arguments", "in.tool.call"),
    _refused("messages[].tool_call_id", "in.tool.call_id"),
    _refused("messages[].function_call", "in.message.function_call"),
    _refused("messages[].refusal", "in.message.refusal", (None, "")),
    _refused("messages[].audio", "in.message.audio"),
    _dropped("messages[].annotations", "in.message.annotations"),
    _refused("messages[].*", "in.message.unknown"),
    # --- what the answer is to look like
    _setting("model"),
    _setting("stream"),
    _setting("stream_options"),
    _setting("stream_options.include_usage"),
    _setting("stream_options.include_obfuscation"),
    _setting("max_tokens"),
    _setting("max_completion_tokens"),
    _setting("temperature"),
    _setting("top_p"),
    _setting("presence_penalty"),
    _setting("frequency_penalty"),
    _setting("seed"),
    _guarded("stop", "in.stop"),
    _refused("n", "in.n", (None, 1)),
    _refused("logprobs", "in.logprobs", (None, False)),
    _refused("top_logprobs", "in.top_logprobs", (None, 0)),
    _refused("logit_bias", "in.logit_bias", (None, {})),
    _refused("response_format", "in.response_format", (None, {"type": "text"})),
    _refused("modalities", "in.modalities", (None, ["text"])),
    _refused("audio", "in.audio"),
    _refused("prediction", "in.prediction"),
    _refused("reasoning_effort", "in.reasoning_effort"),
    _refused("verbosity", "in.verbosity", (None, "medium")),
    _refused("web_search_options", "in.web_search_options"),
    # --- tools
    _refused("tools", "in.tools", (None, [])),
    _refused("tools[].function.name", "in.tools.name"),
    _refused("tools[].function.description", "in.tools"),
    _refused("tools[].function.parameters", "in.tools.parameters"),
    _refused("tool_choice", "in.tool_choice", (None, "none", "auto")),
    _refused("parallel_tool_calls", "in.parallel_tool_calls", (None, True, False)),
    _refused("functions", "in.functions", (None, [])),
    _refused("function_call", "in.function_call", (None, "none", "auto")),
    # --- who asks; kept, if at all, as a keyed hash
    _dropped("user", "in.user_field"),
    _dropped("safety_identifier", "in.safety_identifier"),
    _dropped("metadata", "in.metadata"),
    _dropped("metadata.conversation_id", "in.metadata.conversation_id"),
    _dropped("metadata.region", "in.metadata.region"),
    # --- what only a server's owner may set
    _dropped("prompt_cache_key", "in.prompt_cache_key"),
    _refused("prompt_cache_options", "in.prompt_cache_options"),
    _refused("prompt_cache_retention", "in.prompt_cache_retention"),
    _refused("moderation", "in.moderation"),
    _refused("store", "in.store", (None, False)),
    _refused("service_tier", "in.service_tier", (None, "auto", "default")),
    _refused("*", "in.unknown"),
)

_RESPONSE: Final = (
    # --- the words
    _spoken("choices[].message.content", "out.whole.content"),
    _spoken("choices[].delta.content", "out.stream.content"),
    # --- what a model's server may send beside them
    _unsaid("choices[1].message.content", "out.whole.second_choice"),
    _unsaid("choices[1].delta.content", "out.stream.second_choice"),
    _ours("choices[].message.refusal", "out.whole.refusal"),
    _unsaid("choices[].delta.refusal", "out.stream.refusal"),
    _unsaid("choices[].message.reasoning_content", "out.whole.reasoning_content"),
    _unsaid("choices[].delta.reasoning_content", "out.stream.reasoning_content"),
    _unsaid("choices[].message.reasoning", "out.whole.reasoning"),
    _unsaid("choices[].delta.reasoning", "out.stream.reasoning"),
    _unsaid("choices[].message.tool_calls[].function.arguments", "out.whole.tool_calls"),
    _unsaid("choices[].delta.tool_calls[].function.arguments", "out.stream.tool_calls"),
    _unsaid("choices[].message.function_call.arguments", "out.whole.function_call"),
    _unsaid("choices[].delta.function_call.arguments", "out.stream.function_call"),
    _unsaid("choices[].message.audio.transcript", "out.whole.audio"),
    _unsaid("choices[].delta.audio.transcript", "out.stream.audio"),
    _unsaid("choices[].message.annotations", "out.whole.annotations"),
    _unsaid("choices[].delta.annotations", "out.stream.annotations"),
    _unsaid("choices[].message.*", "out.whole.unknown_in_message"),
    _unsaid("choices[].delta.*", "out.stream.unknown_in_message"),
    _ours("choices[].logprobs", "out.whole.logprobs"),
    # --- the envelope
    _ours("id", "out.whole.id"),
    _ours("object", "out.whole.object"),
    _ours("created", "out.whole.created"),
    _ours("model", "out.whole.model"),
    _ours("choices[].index", "out.whole.index"),
    _ours("choices[].finish_reason", "out.whole.finish_reason"),
    _ours("choices[].message.role", "out.whole.role"),
    _ours("choices[].delta.role", "out.stream.role"),
    _ours("usage", "out.whole.usage"),
    _ours("usage.prompt_tokens", "out.whole.usage"),
    _ours("usage.completion_tokens", "out.whole.usage"),
    _ours("usage.total_tokens", "out.whole.usage"),
    _ours("havengate", "out.whole.unknown"),
    _unsaid("system_fingerprint", "out.whole.system_fingerprint"),
    _unsaid("service_tier", "out.whole.service_tier"),
    _unsaid("*", "out.whole.unknown"),
    # --- errors: the words of a server's error quote the prompt, and are dropped
    _ours("error", "out.error.before"),
    _ours("error.message", "out.error.before"),
    _ours("error.type", "out.error.before"),
    _ours("error.param", "out.error.before"),
    _ours("error.code", "out.stream.error"),
)

ROWS: Final[tuple[Row, ...]] = _REQUEST + _RESPONSE


def refusals(parent: str) -> Mapping[str, tuple[Any, ...]]:
    """The fields directly under ``parent`` that are refused as a whole, each with the values that say nothing."""
    return {
        row.path.removeprefix(parent): row.neutral
        for row in ROWS
        if row.direction == "request" and row.treatment == "refused" and not row.when and _is_child(row.path, parent)
    }


def says_something(value: Any, neutral: tuple[Any, ...]) -> bool:
    """True unless ``value`` is one of the neutral ones; ``1`` is not ``True`` here."""
    return not any(type(value) is type(choice) and value == choice for choice in neutral)


def _is_child(path: str, parent: str) -> bool:
    name = path.removeprefix(parent)
    return path.startswith(parent) and name.isidentifier()
