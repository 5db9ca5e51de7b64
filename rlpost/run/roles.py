"""The roles a configuration names, each built once, and what they ask of the learner.

Building them is also the check: a wrong parameter or a broken file of the user's is refused here, before anything starts.
"""

from __future__ import annotations

from rlpost.config import Config, ConfigError
from rlpost.data import STRATEGIES, Strategy
from rlpost.learner.references import AnchorSpec
from rlpost.models.source import ModelSource
from rlpost.objective import REFERENCES, Credit, Objective, Reference


class Roles:
    """
    Attributes:
        credit: the objective's half on the driver.
        references: the anchors that something in the objective compares with, by name.
        strategy: which prompts come next, and what is learned from beside them.
        wanted: what a forward pass before the update has to give: for credit, the ratio, divergences, replay.
    """

    def __init__(self, config: Config) -> None:
        """
        Raises:
            ConfigError: an entry does not take what it is given, or a term has no samples to be about.
        """
        settings = config.objective
        self.credit = Credit(settings, config.ends_with or 0)  # not known yet where only the configuration is checked
        self.strategy = STRATEGIES.create(config.data.strategy)
        if not isinstance(self.strategy, Strategy):
            raise ConfigError(
                f"data.strategy: {config.data.strategy.name} is no strategy: derive the class from "
                "rlpost.data.strategy.Strategy"
            )
        given = {*self.strategy.provides, *(["reference"] if settings.likelihood else [])}
        for key, summand in settings.summands():
            if summand.source not in given:
                raise ConfigError(
                    f"objective.{key}.source: {summand.source}, but data.strategy {config.data.strategy.name} gives "
                    f"{', '.join(sorted(given))}"
                )
        terms = Objective(settings)
        used = terms.anchors | {anchor for anchor, _ in terms.exact.values()}
        used |= {n.removeprefix("anchors.") for n in self.credit.needs if n.startswith("anchors.")}
        if settings.likelihood is not None and settings.likelihood.scorer != "learner":
            used.add(settings.likelihood.scorer)
        made = {name: REFERENCES.create(settings.reference(name)) for name in sorted(used | settings.references.keys())}
        for name, reference in made.items():
            if not isinstance(reference, Reference):
                raise ConfigError(
                    f"objective.references.{name}: {settings.reference(name).name} is no reference: derive the class from "
                    "rlpost.objective.Reference"
                )
        self.references = {name: made[name] for name in sorted(used)}

        models = {name for name, reference in self.references.items() if reference.origin()}
        self.wanted = {*self.credit.needs, *(f"anchors.{name}" for name in terms.anchors & models)}
        if config.learner.optimizer_steps_per_batch > 1 and settings.proximal == "learner":
            self.wanted.add("old_logp")  # with one step it is the policy itself, detached
        if config.routing.replay == "r2":
            self.wanted |= {"old_logp", "routes"}  # of one and the same forward

    def anchors(self, base: ModelSource) -> dict[str, AnchorSpec]:
        """The models the learner holds beside the policy, which starts as `base`."""
        return {
            name: AnchorSpec(
                tuple((_source(name, reference, path, base), share) for path, share in reference.origin()),
                reference.moves,
            )
            for name, reference in self.references.items()
            if reference.origin()
        }


def _source(name: str, reference: Reference, path: str | None, base: ModelSource) -> ModelSource:
    """A model an anchor begins as; whether its code is run is the policy's switch, where it has none of its own."""
    if path is None:
        return base
    trusted = reference.trust_remote_code
    return ModelSource(
        path,
        reference.revision,
        base.trust_remote_code if trusted is None else trusted,
        key=f"objective.references.{name}",
    )
