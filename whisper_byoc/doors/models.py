"""`/v1/models`: the weights that are served, as OpenAI lists models."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from whisper_byoc.doors import openai
from whisper_byoc.doors.requests import check_token_or_session, service_of
from whisper_byoc.errors import UnknownModel
from whisper_byoc.settings import own_model_name

_CREATED = 1663718400
"""2022-09-21, when Whisper's weights were published; a field that clients want to be there."""


async def listing(request: Request) -> JSONResponse:
    """Raises Unauthorized and NotReady."""
    await check_token_or_session(request)
    return JSONResponse({"object": "list", "data": [_document(name) for name in _names(request)]})


async def model(request: Request) -> JSONResponse:
    """Also by Hugging Face's name. Raises Unauthorized, NotReady and UnknownModel."""
    await check_token_or_session(request)
    asked = request.path_params["name"]
    names = _names(request)
    if asked not in names and own_model_name(asked) not in names:
        raise UnknownModel(asked, names)
    return JSONResponse(_document(asked))


def _names(request: Request) -> list[str]:
    return [*service_of(request).jobs.kind.model_names, openai.MODEL]


def _document(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "whisper-byoc"}


routes = [Route("/v1/models", listing), Route("/v1/models/{name:path}", model)]
