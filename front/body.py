"""Reads the body of a request, of at most the size that TorchServe accepts. Does not know what the body means."""

import contextlib
import zlib

from anyio import to_thread
from starlette.requests import Request

from front.errors import ApiError

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


async def read_body(request: Request, limit: int) -> tuple[bytes, str]:
    """The body and its content type, JSON or FORM. Raises ApiError, and ClientDisconnect of Starlette.

    limit: bytes, also after decompression. An object is JSON whatever its type says: curl's default type is FORM.
    """
    too_large = ApiError(413, f"The body is larger than max_request_size in config.properties, {limit:,} bytes.")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        body = await to_thread.run_sync(_decompress, body, limit + 1)
        if len(body) > limit:
            raise too_large
    elif encoding != "identity":
        raise ApiError(415, "Content-Encoding: send the body as it is, or compressed with gzip.")
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind == JSON or body[:64].lstrip().startswith(b"{"):
        return bytes(body), JSON
    if kind == FORM:
        return bytes(body), FORM
    raise ApiError(415, f"Content-Type: send a JSON object with Content-Type: {JSON}.")


def _decompress(body: bytearray, most: int) -> bytearray:
    """At most `most` bytes of the decompressed body."""
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: gzip
    with contextlib.suppress(zlib.error):
        plain = decompressor.decompress(body, most)
        if len(plain) == most or (decompressor.eof and not decompressor.unused_data):
            return bytearray(plain)
    raise ApiError(400, "Content-Encoding is gzip, but the body is not one whole gzip stream.")
