"""What the fleet does when engines are lost, with stand-ins for the engines: what is replaced, refitted and asked again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rlpost.actors import ActorGoneError
from rlpost.config import Repair as Settings
from rlpost.rollout import repair as repairs
from rlpost.rollout.fleet import Fleet
from rlpost.rollout.health import Health, State
from rlpost.rollout.repair import Repair
from rlpost.rollout.seat import EnginesGoneError, Flight, Loss, Seat

GONE = Loss("is gone: killed")


class Places:
    """Launches nothing, and remembers for whom."""

    def __init__(self) -> None:
        self.launched: list[int] = []

    def __len__(self) -> int:
        return 2

    def launch(self, number: int) -> Seat:
        self.launched.append(number)
        return Seat(number, None, SimpleNamespace(name=f"engine {number}"), None)


@pytest.fixture
def repair(monkeypatch):
    """Two engines that serve; others are ready at once."""
    monkeypatch.setattr(repairs.ray, "kill", lambda _: None)
    made = Repair(Places(), None, Settings(restarts=2), start_deadline=1)
    made.said = []
    made.say = lambda who, what: made.said.append(f"{who}: {what}")

    def ready() -> None:
        for seat in made.seats:
            if seat.health.state is State.RESTARTING:
                seat.health.to(State.STALE)

    monkeypatch.setattr(made, "ready", ready)
    for seat in made.seats:
        seat.health = Health(State.HEALTHY)
    return made


def test_what_a_lost_engine_sampled_is_given_back_once(repair):
    lost, flight = repair.seats[1], Flight(SimpleNamespace(group=7), None)
    lost.flights = {7: flight}
    assert repair.replace({lost: GONE}, repair.serve) == [flight]
    assert not repair.taken(lost, 7), "an answer that comes late after all is nobody's"
    assert repair.seats[1] is not lost
    assert [seat.health.state for seat in repair.seats] == [State.HEALTHY] * 2
    assert repair.replace({repair.seats[0]: GONE}, repair.serve) == []
    assert repair.replaced == 2


def test_engines_that_are_lost_while_others_are_refitted_are_replaced_too(repair):
    told = [{repair.seats[0]: GONE}]

    def finish() -> None:
        if told:
            raise EnginesGoneError(told.pop())
        repair.serve()

    repair.replace({repair.seats[1]: GONE}, finish)
    assert repair._places.launched == [0, 1, 1, 0]
    assert [seat.health.state for seat in repair.seats] == [State.HEALTHY] * 2


def test_one_that_is_lost_too_often_is_given_up_by_name_and_kept_in_the_crew_for_what_is_said_of_it(repair):
    for _ in range(2):
        repair.replace({repair.seats[1]: GONE}, repair.serve)
    lost = repair.seats[1]
    with pytest.raises(ActorGoneError, match="engine 1 is gone: killed, and was replaced 2 times") as raised:
        repair.replace({lost: GONE}, repair.serve)
    assert raised.value.member is lost.member is repair.crew[1]


@pytest.mark.parametrize(("version", "learned", "given"), [(3, 3, 3), (3, 4, 4), (1, 0, 1)])
def test_one_that_comes_anew_is_given_the_weights_of_the_learner_under_their_version(repair, version, learned, given):
    fleet, found = object.__new__(Fleet), []
    fleet.version, fleet.learned, fleet._learner, fleet._repair = version, learned, None, repair
    lost = repair.seats[1]
    fleet._watch = SimpleNamespace(look=lambda seats: {lost: GONE} if lost in seats else {})
    fleet._fit = lambda version, seats: found.append((version, list(seats)))
    assert fleet.attend()
    assert found == [(given, [repair.seats[1]])]
    assert not fleet.attend()
