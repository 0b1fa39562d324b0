"""Error objects as clients of OpenAI and of Anthropic expect them. Knows no server."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

WITHOUT_V1 = ("tokenize", "detokenize", "apply-template")  # llama-server's paths; here, v1/ before them is allowed
ANTHROPIC = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 503: "overloaded_error"}
HEADERS = {400: {"Connection": "close"}, 401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


class ApiError(HTTPException):
    """A request that is answered with an error object. `code` is OpenAI's word for some errors."""

    def __init__(self, status: int, sentence: str, code: str | None = None) -> None:
        super().__init__(status, sentence, HEADERS.get(status))
        self.code = code

    def body(self, path: str) -> dict[str, object]:
        """path: of the API. It decides the shape."""
        kind = "invalid_request_error" if self.status_code < 500 else "server_error"
        if path.startswith("v1/messages"):
            kind = ANTHROPIC.get(self.status_code, "api_error" if self.status_code >= 500 else kind)
            return {"type": "error", "error": {"type": kind, "message": self.detail}}
        return {"error": {"message": self.detail, "type": kind, "param": None, "code": self.code}}


def invalid_key(command: str) -> ApiError:
    """command: prints the key."""
    sentence = "The key is missing or wrong: send Authorization: Bearer KEY."
    return ApiError(401, f"{sentence} `{command}` prints KEY.", "invalid_api_key")


async def error_response(request: Request, error: Exception) -> Response:
    """The answer to an ApiError, or to one of Starlette's own errors: an unknown path or method."""
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):
        here = f"There is no {request.method} {request.scope['path'][:80]} here"
        error = ApiError(error.status_code, f"{here}; the API begins at /v1.")
    return JSONResponse(error.body(api_path(request.scope)), error.status_code, error.headers)


def api_path(scope: Scope) -> str:
    """The path as TorchServe's handler knows it, such as v1/models."""
    path = str(scope["path"]).strip("/")
    return path.removeprefix("v1/") if path.removeprefix("v1/") in WITHOUT_V1 else path
