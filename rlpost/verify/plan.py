"""Which verifiers score a sample, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify.protocol import Traits, VerifierError
from rlpost.verify.task import Entry, Item, Siblings, Task, encoded

if TYPE_CHECKING:
    from rlpost import config


@dataclass(frozen=True)
class Plan:
    """The verifiers of a pool. It holds no state."""

    entries: tuple[Entry, ...]

    def of(self, prompt: Prompt) -> list[Entry]:
        """The verifiers of a prompt's source, the judge first: those it names, or all."""
        by_label = {entry.spec.label: entry for entry in self.entries}
        return [by_label[spec.label] for spec in chosen_by(prompt, [entry.spec for entry in self.entries])]

    def applying(self, prompt: Prompt) -> list[Entry]:
        """Those of them that score its row."""
        return [entry for entry in self.of(prompt) if entry.spec.applies(prompt.metadata)]

    def items(self, rollouts: Sequence[Rollout], prompt: Prompt) -> list[Item]:
        """Items whose verdicts are still to come, but those of aborted rollouts and those that nothing will give.

        Raises:
            VerifierError: the prompt's reference or metadata is not plain JSON.
        """
        chosen, applying = self.of(prompt), self.applying(prompt)
        weighted = [e for e in chosen if e.spec.weight != 0]
        # A row that nothing rewards must not have the reward of an empty sum.
        missing = [] if any(e in applying for e in weighted) or (applying and not weighted) else weighted or chosen
        columns = {column: prompt.metadata.get(column) for e in chosen for column in e.spec.when}
        nothing = Verdict("unverified", None, "no_verifier", details=columns)
        items = []
        for rollout in rollouts:
            aborted = rollout.finish_reason == "abort"
            future: Future[Rollout] = Future()
            future.set_running_or_notify_cancel()
            verdicts: dict[str, Verdict | None] = {}
            for entry in chosen:
                if entry in applying or entry in missing:
                    to_come = None if entry in applying else nothing
                    verdicts[entry.spec.label] = Verdict("unverified", None, "aborted") if aborted else to_come
            weights = {e.spec.label: e.spec.weight for e in chosen if e.spec.label in verdicts}
            sample = b"" if aborted else encoded(rollout, prompt)
            raw = encoded(rollout, prompt, raw=True) if not aborted and any(e.raw for e in applying) else b""
            items.append(Item(rollout, sample, raw, verdicts, weights, future))
        return items

    def tasks(self, items: Sequence[Item], prompt: Prompt) -> list[Task]:
        """What is to be done for the items of one prompt; each task is also put down where it waits for others."""
        tasks = []
        applying = self.applying(prompt)
        there = {entry.spec.label for entry in applying}
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


def chosen_by(prompt: Prompt, specs: Sequence[config.VerifierSpec]) -> list[config.VerifierSpec]:
    """The verifiers of a prompt's source, the judge first: those it names, or all.

    Raises:
        VerifierError: it names one that is not there.
    """
    if not prompt.verifiers:
        return list(specs)
    by_label = {spec.label: spec for spec in specs}
    if unknown := [label for label in prompt.verifiers if label not in by_label]:
        raise VerifierError(
            f"prompt {prompt.id!r} is scored by {unknown[0]!r}, which is not among the verifiers: {', '.join(by_label)}"
        )
    return [by_label[label] for label in prompt.verifiers]


def made_of(specs: Sequence[config.VerifierSpec], traits: Sequence[Traits], prefixes: Sequence[bytes]) -> Plan:
    """The plan of a configuration.

    A verifier with an argument `verdicts` waits for those in its parameter `of`, or for all that wait for none.

    Raises:
        VerifierError: `of` names a verifier that is not there, or the verifiers wait for each other.
    """
    plain = tuple(spec.label for spec, t in zip(specs, traits, strict=True) if not t.dependent)
    names = [spec.label for spec in specs]
    entries = []
    for index, (spec, trait, prefix) in enumerate(zip(specs, traits, prefixes, strict=True)):
        of = spec.params.get("of", plain) if trait.dependent else ()
        of = (of,) if isinstance(of, str) else tuple(of)
        for name in of:
            if name not in names:
                raise VerifierError(
                    f"verifier {spec.label!r}: `of` names {name!r}, which is not among the verifiers: {', '.join(names)}"
                )
        entries.append(Entry(index, spec, trait, of, prefix))
    try:
        TopologicalSorter({entry.spec.label: entry.needs for entry in entries}).prepare()
    except CycleError as error:
        raise VerifierError(f"verifiers wait for each other's verdicts: {' <- '.join(error.args[1])}") from None
    return Plan(tuple(entries))
