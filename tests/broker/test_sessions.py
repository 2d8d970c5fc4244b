"""Who is there: old births and deaths are refused, a device with a new flash is not."""

from broker.sessions import PAIRS_MAX, Sessions
from wire.messages import Birth, Death


def birth(boot: int, connection: int, epoch: int = 0) -> Birth:
    return Birth(boot, connection, epoch, 0, 8, "edge-agent")


def sessions(epoch: int = 5) -> Sessions:
    made = Sessions()
    made.begin(epoch)
    return made


def test_an_older_birth_that_answers_no_epoch_is_a_replay() -> None:
    there = sessions()
    assert there.on_birth("cabin", birth(3, 7, 5))
    for old in (birth(3, 6), birth(2, 9), birth(2, 9, 4), birth(3, 6, 6)):
        assert not there.on_birth("cabin", old)
    assert there.present() == {"cabin": birth(3, 7, 5)}


def test_a_birth_that_was_heard_in_this_epoch_is_a_replay_when_it_comes_again() -> None:
    there = sessions()
    assert there.on_birth("cabin", birth(3, 6, 5))
    assert there.on_birth("cabin", birth(3, 7, 5))
    assert not there.on_birth("cabin", birth(3, 6, 5))
    there.begin(6)
    assert not there.on_birth("cabin", birth(3, 6, 5)), "it answers an epoch that is over"


def test_a_device_whose_flash_was_replaced_is_believed_and_its_former_life_is_not() -> None:
    there = sessions()
    assert there.on_birth("cabin", birth(9, 100, 5))
    assert not there.on_birth("cabin", birth(1, 42)), "it has not heard the epoch yet"
    assert there.on_birth("cabin", birth(1, 42, 5))
    assert there.present() == {"cabin": birth(1, 42, 5)}
    assert not there.on_death("cabin", Death(9, 100))
    assert there.on_death("cabin", Death(1, 42))


def test_the_same_birth_may_be_repeated() -> None:
    there = sessions()
    assert there.on_birth("cabin", birth(1, 1, 5))
    assert there.on_birth("cabin", birth(1, 1, 5))


def test_what_is_remembered_of_a_device_is_bounded() -> None:
    there = sessions()
    for connection in range(1, 10 * PAIRS_MAX):
        assert there.on_birth("cabin", birth(1, connection, 5))
    assert len(there._heard["cabin"]) == PAIRS_MAX
