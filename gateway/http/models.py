"""``GET /v1/models`` and ``GET /v1/models/{id}``: what a client may name in ``model``."""

from __future__ import annotations

from typing import Any

from litestar import get

from gateway.auth.guards import scope
from gateway.errors import ModelNotFound
from gateway.http.front import Front


@get("/v1/models", opt=scope("models"))
async def list_models(front: Front) -> dict[str, Any]:
    """OpenAI's list of models."""
    return {"object": "list", "data": [_model(name) for name in front.models]}


@get("/v1/models/{model:str}", opt=scope("models"))
async def retrieve_model(model: str, front: Front) -> dict[str, Any]:
    """One model, or OpenAI's ``model_not_found``."""
    if model not in front.models:
        raise ModelNotFound("The model does not exist or you do not have access to it.", param="model")
    return _model(model)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "havengate"}
