"""Asking a service over HTTP from inside a verifier: deadline, retries with back-off, several requests at once.

A service that is down, slow or broken raises, which the pool calls unverified. Give the verifier the attribute
`service = True`, so that its time-out is not laid to the completion either, and an argument `timeout`, which is filled
with the seconds it has.
"""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from rlpost.verify.protocol import VerifierError

BACKOFF = 0.25  # seconds before the second attempt; doubled for each further one
MAX_RESPONSE = 16 * 2**20
BUSY = (408, 425, 429)  # client errors that mean "later"


class ServiceError(RuntimeError):
    """A service gave no usable answer: no connection, no answer in time, an error of its own, not JSON."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key in the headers to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def post_json(
    url: str, payload: Any, *, deadline: float, retries: int = 2, headers: Mapping[str, str] | None = None
) -> Any:
    """The JSON that a service answers to JSON.

    Args:
        deadline: seconds for all attempts together.
        retries: further attempts after a connection failure, a status from 500 up, 408, 425 or 429, or an answer that
            is not JSON. The wait before them doubles and is drawn at random, so that workers do not return in step.

    Raises:
        ServiceError: no attempt gave an answer within the deadline.
        VerifierError: the service refuses the request (another status from 300 up), so the next would be refused too.
    """
    if not url.startswith(("http://", "https://")):
        raise VerifierError(f"service {url!r}: the address must begin with http:// or https://")
    body = json.dumps(payload).encode()
    ends = time.monotonic() + deadline
    problem = "no time for an attempt"
    for attempt in range(retries + 1):
        if attempt:
            pause = BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            if pause >= ends - time.monotonic():
                break
            time.sleep(pause)
        left = ends - time.monotonic()
        if left <= 0:
            break
        request = urllib.request.Request(url, body, {"Content-Type": "application/json", **(headers or {})})
        try:
            with _OPENER.open(request, timeout=left) as response:
                return _parsed(response, ends)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(500).decode(errors="replace")
            problem = f"status {error.code}: {text}"
            if error.code < 500 and error.code not in BUSY:
                raise VerifierError(f"service {url} refuses the request: {problem}") from error
        except (OSError, HTTPException, ValueError) as error:
            problem = repr(error)
    raise ServiceError(f"service {url} gave no answer within {deadline:g} s and {retries + 1} attempts: {problem}")


def post_all(
    url: str,
    payloads: Sequence[Any],
    *,
    deadline: float,
    retries: int = 2,
    concurrency: int = 8,
    headers: Mapping[str, str] | None = None,
) -> list[Any | Exception]:
    """`post_json` for each of `payloads`, at most `concurrency` at once, within one deadline.

    What fails has its exception in the list, which is what a batched verifier may return for that sample.
    """
    ends = time.monotonic() + deadline

    def one(payload: Any) -> Any | Exception:
        try:
            return post_json(url, payload, deadline=ends - time.monotonic(), retries=retries, headers=headers)
        except (ServiceError, VerifierError) as error:
            return error

    with ThreadPoolExecutor(max_workers=concurrency) as threads:
        return list(threads.map(one, payloads))


def _parsed(response: Any, ends: float) -> Any:
    """The body, read in pieces: a service that drips has no more time than one that is silent."""
    body = bytearray()
    while chunk := response.read1(2**16):
        body += chunk
        if len(body) > MAX_RESPONSE:
            raise ValueError(f"an answer longer than {MAX_RESPONSE} bytes")
        if time.monotonic() > ends:
            raise TimeoutError("the answer did not end in time")
    return json.loads(body)
