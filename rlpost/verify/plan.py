"""Which verifiers score a sample, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify.protocol import Traits, VerifierError
from rlpost.verify.task import Entry, Item, Siblings, Task, encoded

if TYPE_CHECKING:
    from rlpost import config


@dataclass(frozen=True)
class Plan:
    """The verifiers of a pool. It holds no state."""

    entries: tuple[Entry, ...]

    def applying(self, metadata: Mapping[str, Any]) -> list[Entry]:
        return [entry for entry in self.entries if entry.spec.applies(metadata)]

    def items(self, rollouts: Sequence[Rollout], prompt: Prompt) -> list[Item]:
        """Items whose verdicts are still to come, but those of aborted rollouts and those that nothing will give.

        Raises:
            VerifierError: the prompt's reference or metadata is not plain JSON.
        """
        applying = self.applying(prompt.metadata)
        weighted = [e for e in self.entries if e.spec.weight != 0]
        # A row that nothing rewards must not have the reward of an empty sum.
        missing = (
            [] if any(e in applying for e in weighted) or (applying and not weighted) else weighted or self.entries
        )
        columns = {column: prompt.metadata.get(column) for e in self.entries for column in e.spec.when}
        nothing = Verdict("unverified", None, "no_verifier", details=columns)
        items = []
        for rollout in rollouts:
            aborted = rollout.finish_reason == "abort"
            future: Future[Rollout] = Future()
            future.set_running_or_notify_cancel()
            verdicts: dict[str, Verdict | None] = {}
            for entry in self.entries:
                if entry in applying or entry in missing:
                    to_come = None if entry in applying else nothing
                    verdicts[entry.spec.name] = Verdict("unverified", None, "aborted") if aborted else to_come
            weights = {e.spec.name: e.spec.weight for e in self.entries if e.spec.name in verdicts}
            sample = b"" if aborted else encoded(rollout, prompt)
            items.append(Item(rollout, sample, verdicts, weights, future))
        return items

    def tasks(self, items: Sequence[Item], prompt: Prompt) -> list[Task]:
        """What is to be done for the items of one prompt; each task is also put down where it waits for others."""
        tasks = []
        applying = self.applying(prompt.metadata)
        there = {entry.spec.name for entry in applying}
        for entry in applying:
            needs = there.intersection(entry.needs)
            together = entry.traits.mode == "group" and items
            siblings = Siblings(len(items)) if len(items) > 1 and not together else None
            for of in [tuple(items)] if together else [(item,) for item in items]:
                task = Task(entry, of, siblings=siblings, needs=len(needs) * len(of))
                for item in of:
                    for name in needs:
                        item.dependents.setdefault(name, []).append(task)
                tasks.append(task)
        return tasks


def made_of(specs: Sequence[config.VerifierSpec], traits: Sequence[Traits], prefixes: Sequence[bytes]) -> Plan:
    """The plan of a configuration.

    A verifier with an argument `verdicts` waits for those in its parameter `of`, or for all that wait for none.

    Raises:
        VerifierError: `of` names a verifier that is not there, or the verifiers wait for each other.
    """
    plain = tuple(spec.name for spec, t in zip(specs, traits, strict=True) if not t.dependent)
    names = [spec.name for spec in specs]
    entries = []
    for index, (spec, trait, prefix) in enumerate(zip(specs, traits, prefixes, strict=True)):
        of = spec.params.get("of", plain) if trait.dependent else ()
        of = (of,) if isinstance(of, str) else tuple(of)
        for name in of:
            if name not in names:
                raise VerifierError(
                    f"verifier {spec.name!r}: `of` names {name!r}, which is not among the verifiers: {', '.join(names)}"
                )
        entries.append(Entry(index, spec, trait, of, prefix))
    try:
        TopologicalSorter({entry.spec.name: entry.needs for entry in entries}).prepare()
    except CycleError as error:
        raise VerifierError(f"verifiers wait for each other's verdicts: {' <- '.join(error.args[1])}") from None
    return Plan(tuple(entries))
