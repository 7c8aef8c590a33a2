"""OpenAI's own Python SDK against a running gateway: changing ``base_url`` is all an application has to do."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionContentPartParam,
    ChatCompletionMessageParam,
)

from tests.support import scripts
from tests.support.gateway import Gateway

MODEL = "havengate"
CRISIS = "I want to end my life tonight."


def connect(gateway: Gateway, key: str | None = None) -> OpenAI:
    return OpenAI(base_url=gateway.api_url, api_key=key or gateway.key, max_retries=0, timeout=60)


@pytest.fixture
def client(scripted_gateway: Gateway) -> Iterator[OpenAI]:
    with connect(scripted_gateway) as client:
        yield client


def said(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def ask(client: OpenAI, text: str, **fields: object) -> ChatCompletion:
    answer = client.chat.completions.create(model=MODEL, messages=said(text), **fields)  # type: ignore[call-overload]
    assert isinstance(answer, ChatCompletion)
    return answer


def ask_streamed(client: OpenAI, text: str, **fields: object) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(model=MODEL, messages=said(text), stream=True, **fields))  # type: ignore[call-overload]


def spoken(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# --- chat ---------------------------------------------------------------------------------------


def test_a_completion_from_the_real_model(embedded_gateway: Gateway) -> None:
    with connect(embedded_gateway) as client:
        answer = ask(client, "Name a vegetable that grows well in shade.", max_tokens=16, temperature=0, seed=1)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length", "content_filter"), (
        "the demonstration model may say what is stopped"
    )
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_from_the_real_model(embedded_gateway: Gateway) -> None:
    with connect(embedded_gateway) as client:
        chunks = ask_streamed(
            client,
            "Name a vegetable that grows well in shade.",
            max_tokens=16,
            temperature=0,
            stream_options={"include_usage": True},
        )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert spoken(chunks).strip()
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] in (
        ["stop"],
        ["length"],
        ["content_filter"],
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_whole_answer_and_the_stream_say_the_same(client: OpenAI) -> None:
    whole = ask(client, "How does sourdough work?").choices[0].message.content
    assert whole == spoken(ask_streamed(client, "How does sourdough work?")) == scripts.BENIGN


def test_usage_comes_with_a_stream_only_when_asked_for(client: OpenAI) -> None:
    plain = ask_streamed(client, "How does sourdough work?")
    assert all(chunk.usage is None and chunk.choices for chunk in plain)
    counted = ask_streamed(client, "How does sourdough work?", stream_options={"include_usage": True})
    assert [chunk.usage is not None for chunk in counted] == [False] * (len(counted) - 1) + [True]


def test_the_sdks_own_stream_helper_reads_it(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=said("How does sourdough work?")) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == scripts.BENIGN


def test_headers_tell_what_was_decided(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=said(CRISIS), metadata={"region": "US"}
    )
    assert raw.headers["x-havengate-decision"] == "replace"
    assert raw.headers["x-havengate-policy"]
    answer = raw.parse()
    assert answer.id == f"chatcmpl-{raw.headers['x-request-id']}"
    assert answer._request_id == raw.headers["x-request-id"]
    told = (answer.model_extra or {})["havengate"]
    assert told["incident_id"]
    assert told["severity"] >= 3
    assert "988" in (answer.choices[0].message.content or "")


def test_a_stopped_stream_is_well_formed(client: OpenAI) -> None:
    chunks = ask_streamed(client, scripts.ASK_TURNING, stream_options={"include_usage": True})
    text = spoken(chunks)
    assert text.startswith(scripts.SAFE_START)
    assert scripts.HARM not in text
    assert chunks[-2].choices[0].finish_reason == "content_filter"
    assert (chunks[-2].model_extra or {})["havengate"]["stage"] == "output"


async def test_the_async_client(scripted_gateway: Gateway) -> None:
    async with AsyncOpenAI(base_url=scripted_gateway.api_url, api_key=scripted_gateway.key, max_retries=0) as client:
        messages = said("How does sourdough work?")
        whole = await client.chat.completions.create(model=MODEL, messages=messages)
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        chunks = [chunk async for chunk in stream]
        names = [model.id async for model in client.models.list()]
    assert whole.choices[0].message.content == spoken(chunks) == scripts.BENIGN
    assert MODEL in names


def test_multipart_text_is_read_as_one_message(client: OpenAI) -> None:
    parts: list[ChatCompletionContentPartParam] = [
        {"type": "text", "text": "I want to end my "},
        {"type": "text", "text": "life tonight."},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert (answer.model_extra or {})["havengate"]["severity"] >= 3


def test_every_usual_field_is_accepted(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Answer in English."},
            {"role": "user", "content": "Hello!", "name": "sam"},
            {"role": "assistant", "content": "Hello, what would you like to know?"},
            {"role": "user", "content": "How does sourdough work?"},
        ],
        temperature=0.7,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        seed=42,
        max_completion_tokens=64,
        n=1,
        logprobs=False,
        tools=[],
        response_format={"type": "text"},
        store=False,
        user="someone",
        metadata={"conversation_id": "every-field"},
    )
    assert answer.choices[0].message.content == scripts.BENIGN


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_ends_with_length(client: OpenAI, field: str) -> None:
    (choice,) = ask(client, scripts.ASK_COUNTING, **{field: 2}).choices
    assert (choice.message.content, choice.finish_reason) == ("One, two, ", "length")
    chunks = ask_streamed(client, scripts.ASK_COUNTING, **{field: 2})
    assert (spoken(chunks), chunks[-1].choices[0].finish_reason) == ("One, two, ", "length")


@pytest.mark.parametrize("stop", ["three", ["nine", "three"]])
def test_a_stop_string_ends_the_answer_before_it(client: OpenAI, stop: str | list[str]) -> None:
    (choice,) = ask(client, scripts.ASK_COUNTING, stop=stop).choices
    assert (choice.message.content, choice.finish_reason) == ("One, two, ", "stop")


def test_a_token_limit_holds_for_the_real_model(embedded_gateway: Gateway) -> None:
    with connect(embedded_gateway) as client:
        asked = (ask(client, question, max_tokens=5, temperature=0) for question in scripts.EVERYDAY_QUESTIONS)
        answer = next((one for one in asked if one.choices[0].finish_reason == "length"), None)
    assert answer is not None, "no answer of the model was cut at the limit"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


# --- models and moderations ----------------------------------------------------------------------


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [MODEL, "scripted"]
    assert [client.models.retrieve(name).id for name in names] == names
    answer = client.chat.completions.create(model="scripted", messages=said("Hello!"))
    assert answer.model == "scripted"


def test_moderations_flag_a_crisis_and_a_harmful_reply(client: OpenAI) -> None:
    texts = ["How does sourdough work?", CRISIS, f"Honestly, {scripts.HARM}."]
    plain, crisis, harm = client.moderations.create(input=texts).results
    assert not plain.flagged
    assert crisis.flagged
    assert crisis.categories.self_harm
    assert crisis.categories.self_harm_intent
    assert crisis.category_scores.self_harm > 0.5
    assert (crisis.model_extra or {})["havengate"]["severity"] >= 3
    assert harm.flagged
    assert (harm.categories.model_extra or {})["output/encouragement"]


def test_moderations_take_one_text_or_parts(client: OpenAI) -> None:
    assert len(client.moderations.create(input=CRISIS).results) == 1
    parts = [{"type": "text", "text": CRISIS}]
    assert client.moderations.create(input=parts).results[0].flagged  # type: ignore[arg-type]


# --- errors are the SDK's own --------------------------------------------------------------------


def test_a_wrong_key(scripted_gateway: Gateway) -> None:
    with connect(scripted_gateway, "hg_not_a_key") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=said("Hello"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[], stream=stream)
    assert caught.value.param == "messages"
    assert caught.value.type == "invalid_request_error"


def test_a_key_without_the_scope(scripted_gateway: Gateway) -> None:
    with connect(scripted_gateway, scripted_gateway.create_key("models")) as client:
        assert [model.id for model in client.models.list()]
        with pytest.raises(openai.PermissionDeniedError) as caught:
            ask(client, "Hello")
        assert caught.value.code == "insufficient_scope"
        with pytest.raises(openai.PermissionDeniedError):
            client.moderations.create(input="Hello")
