"""Answers to requests that the admin listener does not serve: RFC 9457's problem details."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Literal

import orjson
from aiohttp import ClientConnectionError, web

from idagg.errors import StoreError

log = logging.getLogger("idagg.admin")

CONTENT_TYPE = "application/problem+json"
# A store that is away is asked again after this time.
RETRY_S = 5

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Why a request was not served (RFC 9457)."""

    status: int
    title: str
    """The status in words."""
    detail: str
    """What is wrong with this request, and what to do."""
    parameter: str | None = None
    """The parameter that is wrong."""
    type: Literal["about:blank"] = "about:blank"


class ProblemError(Exception):
    """A request that is not served. ``detail`` is one sentence for the client."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        parameter: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.parameter = parameter
        self.headers = headers or {}


def answer(
    status: int, detail: str, *, parameter: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    fields = dataclasses.asdict(Problem(status, HTTPStatus(status).phrase, detail, parameter))
    body = orjson.dumps({name: value for name, value in fields.items() if value is not None})
    response = web.Response(status=status, body=body, content_type=CONTENT_TYPE, headers=headers)
    if status == HTTPStatus.UNAUTHORIZED:
        # Browsers do not know Bearer, and ask for a password.
        response.headers.add("WWW-Authenticate", 'Bearer realm="idagg"')
        response.headers.add("WWW-Authenticate", 'Basic realm="idagg", charset="UTF-8"')
    return response


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong into an answer."""
    try:
        return await handler(request)
    except ProblemError as error:
        return answer(error.status, error.detail, parameter=error.parameter, headers=error.headers)
    except StoreError as error:
        return answer(503, str(error), headers={"Retry-After": str(RETRY_S)})
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return answer(405, f"{request.path} has {allowed} only", headers={"Allow": allowed})
    except web.HTTPNotFound:
        return answer(404, "no resource has this path: /openapi.json lists those of the API")
    except web.HTTPException as error:
        return answer(error.status, error.reason)
    except ClientConnectionError:
        raise  # the client has vanished, and wants no answer
    except Exception:
        log.exception("a request to the admin listener failed: it is answered 500")
        return answer(
            500, "idagg failed to make this answer: its log has the reason; counts are not affected"
        )
