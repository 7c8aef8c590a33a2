"""``POST /v1/moderations``: OpenAI's shape, our scores.

The category names that OpenAI's clients know are filled from ours where one means the other and stay
false where nothing here judges them; our own names stand beside them (``crisis/suicide``, ``bias/religion``).
"""

from __future__ import annotations

from typing import Any, Final

from litestar import Request, post

from detectors.api import BIAS_AXES, CATEGORIES, OUTPUT_HARMS, Passage
from detectors.fusion import Reading
from gateway.auth.guards import scope
from gateway.errors import BadRequest, NotReady
from gateway.http import openai
from gateway.http.front import Front, read_body, request_id_of

MAX_INPUTS: Final = 32
MODEL: Final = "havengate-moderation"
_UNJUDGED: Final = (
    "harassment",
    "harassment/threatening",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "sexual",
    "sexual/minors",
    "violence/graphic",
)


@post("/v1/moderations", opt=scope("moderations"), status_code=200)
async def create_moderation(request: Request[Any, Any, Any], front: Front) -> dict[str, Any]:
    """Judge one text or several, each by itself."""
    body = openai.decode(await read_body(request), openai.ModerationRequest)
    results = [await _judge(front, text) for text in _inputs(body, front)]
    return {"id": f"modr-{request_id_of(request)}", "model": MODEL, "results": results}


def _inputs(body: openai.ModerationRequest, front: Front) -> list[str]:
    given = [body.input] if isinstance(body.input, str) else body.input
    if not 0 < len(given) <= MAX_INPUTS:
        raise BadRequest(f"'input' takes 1 to {MAX_INPUTS} texts.", param="input")
    texts: list[str] = []
    for item in given:
        if isinstance(item, str):
            texts.append(item)
        elif item.type == "text" and item.text is not None:
            texts.append(item.text)
        else:
            raise BadRequest("Only text can be moderated.", param="input")
    if any(len(text) > front.limits.max_message_chars for text in texts):
        raise BadRequest(f"A text is longer than {front.limits.max_message_chars} characters.", param="input")
    return texts


async def _judge(front: Front, text: str) -> dict[str, Any]:
    """One result.  Nobody says who wrote the text, so it is read as a person's and as a model's.

    A text that could not be judged is an error, never an unflagged result.
    """
    said = await front.house.panel.read(Passage(text=text, role="user"))
    answered = await front.house.panel.read(Passage(text=text, role="assistant"))
    if said.unavailable_tasks or answered.unavailable_tasks:
        raise NotReady("The text could not be judged now; retry shortly.", retry_after_s=2)
    return _result(said, answered)


def _result(said: Reading, answered: Reading) -> dict[str, Any]:
    crisis, output, bias = said.crisis, answered.output, said.bias
    scores = {f"crisis/{name}": crisis.scores.get(name, 0.0) for name in CATEGORIES}
    scores |= {f"output/{name}": output.scores.get(name, 0.0) for name in OUTPUT_HARMS}
    scores |= {f"bias/{name}": bias.scores.get(name, 0.0) for name in BIAS_AXES}
    flags = {f"crisis/{name}": name in crisis.categories for name in CATEGORIES}
    flags |= {f"output/{name}": name in output.labels for name in OUTPUT_HARMS}
    flags |= {f"bias/{name}": name in bias.labels for name in BIAS_AXES}

    own = {"suicide", "self_harm"}
    hurting = bool(own.intersection(crisis.categories))
    score = max(crisis.scores.get("suicide", 0.0), crisis.scores.get("self_harm", 0.0))
    flags |= {
        "self-harm": hurting,
        "self-harm/intent": hurting and crisis.severity >= 3,
        "self-harm/instructions": "method_information" in output.labels,
        "violence": "harm_to_others" in crisis.categories,
        "hate": bias.flagged,
    } | dict.fromkeys(_UNJUDGED, False)
    scores |= {
        "self-harm": score,
        "self-harm/intent": score if crisis.severity >= 3 else 0.0,
        "self-harm/instructions": output.scores.get("method_information", 0.0),
        "violence": crisis.scores.get("harm_to_others", 0.0),
        "hate": bias.score,
    } | dict.fromkeys(_UNJUDGED, 0.0)
    return {
        "flagged": crisis.severity > 0 or output.flagged or bias.flagged,
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in flags},
        "havengate": {
            "severity": crisis.severity,
            "score": crisis.score,
            "subject": crisis.subject,
            "imminence": crisis.imminence,
            "detectors": dict(said.detectors),
        },
    }
