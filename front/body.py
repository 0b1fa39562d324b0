"""Reads the body of a request, of at most the size that TorchServe accepts. Does not know what the body means."""

import re

from starlette.requests import Request

from front.errors import ApiError

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
BARE_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")  # TorchServe fails at it, and writes the body into its log


async def read_body(request: Request, limit: int) -> tuple[bytes, str]:
    """The body of at most `limit` bytes, and its content type, JSON or FORM. Raises ApiError and ClientDisconnect.

    An object is JSON whatever its type says: curl's default type is FORM.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "Content-Encoding: this server takes no compressed bodies; send the body as it is.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ApiError(413, f"The body is larger than max_request_size of config.properties, {limit:,} bytes.")
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind == JSON or body[:64].lstrip().startswith(b"{"):
        return bytes(body), JSON
    if kind == FORM:
        if BARE_PERCENT.search(body):
            raise ApiError(400, f"The form is not valid: a % must be %25. Or send JSON with Content-Type: {JSON}.")
        return bytes(body), FORM
    raise ApiError(415, f"Content-Type: send a JSON object with Content-Type: {JSON}.")
