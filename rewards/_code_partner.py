"""What runs in the candidate's process while tests talk to it: load the program, then do what the tests ask.

Its source, behind those it imports from here, is what the sandbox runs. Beside it lies `request.json`,
    {"header": source, "sources": [program, fallback, ...], "names": [name, ...], "classes": [name, ...]}
and standard input is the socket to the tests. Its first message says what came of the loading: the values of the names.
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

from rewards._code_bridge import Bridge, Candidate, Gone
from rewards._code_program import defined, load, silence


class Partner(Bridge):
    """The program's end: the tests may do whatever a caller in the same process could."""

    def __init__(self, socket: int) -> None:
        super().__init__(socket, "solution")
        self.classes: tuple[type, ...] = ()

    def by_value(self, value: Any) -> bool:
        return not isinstance(value, self.classes)

    def start(self, request: dict[str, Any]) -> list[list[Any]]:
        """By name [whether it is there, what it is]."""
        module = load(request["sources"], request["header"])
        found = []
        for name in request["names"]:
            try:
                found.append([True, defined(module, name)])
            except Exception:  # noqa: BLE001 - not there, or its class cannot be made
                found.append([False, None])
        by_name = dict(zip(request["names"], found, strict=True))
        self.classes = tuple(by_name[n][1] for n in request["classes"] if isinstance(by_name[n][1], type))
        return found

    def take_global(self, number: int, description: dict[str, Any]) -> Any:
        found: Any = importlib.import_module(description["module"])
        for part in description["name"].split("."):
            found = getattr(found, part)
        return found


def main() -> None:
    """Load, then answer until the tests have ended; end without the program's own exit handlers."""
    with open("request.json", encoding="utf-8") as file:
        request = json.load(file)
    os.unlink("request.json")
    bridge = Partner(os.dup(0))
    silence()
    try:
        try:
            found = bridge.start(request)
        # SystemExit, and whatever else the program thinks of, is its failure.
        except BaseException as error:  # noqa: BLE001
            bridge.send_error(error)
            os._exit(0)
        bridge.send(["value", found, None])
        while True:
            try:
                what, *message = bridge.receive()
            except Candidate as error:
                bridge.send_error(error)
                continue
            if what == "ask":
                bridge.answer(message)
    except Gone:
        os._exit(0)


if __name__ == "__main__":
    main()
