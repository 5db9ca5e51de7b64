"""A sandbox elsewhere: a service that speaks SandboxFusion's `POST /run_code`."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from rlpost.verify import isolation
from rlpost.verify.sandbox.limits import Limits, Outcome, SandboxError, Status, Tier

ANSWER_SECONDS = 60.0  # for the service, on top of the program's own limit
MAX_ANSWER = 64 * 2**20


class RemoteSandbox:
    """`Sandbox.run` and `Sandbox.command`, done by a service.

    Args:
        url: where it listens, such as http://sandbox:8080; `/run_code` is added.
    """

    tier: Tier = "C"
    layers: tuple[str, ...] = ("remote",)

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise SandboxError(f"sandbox url {url!r}: it must begin with http:// or https://")
        self._url = url.rstrip("/") + "/run_code"
        # No proxy: what the model wrote, and the tests, go where the configuration says and nowhere else.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def run(
        self,
        source: str,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        argv: Sequence[str] = (),
        limits: Limits = Limits(),
    ) -> Outcome:
        """Raises SandboxError: the service cannot be reached, or failed."""
        files = dict(files or {})
        if argv:
            files["program.py"] = source.encode("utf-8", "surrogatepass")
            words = ["program.py", *argv]
            source = f"import runpy, sys\nsys.argv = {words!r}\nrunpy.run_path('program.py', run_name='__main__')\n"
        return self._post(source, stdin, files, limits)

    def command(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits = Limits(),
    ) -> Outcome:
        """Raises SandboxError: the service cannot be reached, or failed."""
        executable = "".join(f"os.chmod({name!r}, 0o700)\n" for name in files or {})
        source = f"import os\n{executable}os.execvp({argv[0]!r}, {list(argv)!r})\n"
        return self._post(source, stdin, files or {}, limits)

    def close(self) -> None:
        pass

    def _post(self, source: str, stdin: bytes, files: Mapping[str, bytes], limits: Limits) -> Outcome:
        body = {
            "code": source,
            "language": "python",
            "stdin": stdin.decode("utf-8", "replace"),
            "run_timeout": limits.seconds,
            "memory_limit_MB": limits.memory_mb,
            "files": {name: base64.b64encode(content).decode() for name, content in files.items()},
        }
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json", "Accept": "application/json"}
        )
        isolation.ran(self.tier, self.layers)
        started = time.monotonic()
        try:
            with self._opener.open(request, timeout=limits.seconds + ANSWER_SECONDS) as answer:
                text = answer.read(MAX_ANSWER + 1)
            if len(text) > MAX_ANSWER:
                raise ValueError(f"more than {MAX_ANSWER} bytes")
            return self._outcome(json.loads(text), limits, time.monotonic() - started)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise SandboxError(f"sandbox service {self._url}: {type(error).__name__}: {error}") from error

    def _outcome(self, answer: Mapping[str, Any], limits: Limits, seconds: float) -> Outcome:
        if answer["status"] == "SandboxError":
            raise SandboxError(f"sandbox service {self._url}: {answer.get('message') or 'it failed'}")
        ran = answer.get("run_result") or answer.get("compile_result")
        if ran is None:
            raise ValueError(f"no run_result in an answer of status {answer['status']!r}")
        if ran["status"] == "Error" and ran.get("return_code") is None:
            raise SandboxError(f"sandbox service {self._url}: {ran.get('stderr') or 'the program did not run'}")
        cap = limits.output_kb * 1024
        out = (ran.get("stdout") or "").encode("utf-8", "surrogatepass")
        err = (ran.get("stderr") or "").encode("utf-8", "surrogatepass")
        code = ran.get("return_code")
        status: Status
        if ran["status"] == "TimeLimitExceeded":
            status, code = "timeout", None
        elif len(out) + len(err) > cap:
            status, code = "output", None
        elif code == 0:
            status = "ok"
        elif b"MemoryError" in err[-200:]:
            status = "memory"
        else:
            status = "nonzero" if code > 0 else "killed"
        return Outcome(
            status, code, out[:cap], err[: max(0, cap - len(out))], *[ran.get("execution_time") or seconds] * 2
        )
