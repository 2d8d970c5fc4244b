"""Who is there: old births and deaths are refused, a device with a new flash is not."""

from broker.sessions import BOOTS_MAX, CARDS_MAX, Sessions
from wire.messages import Birth, Death

NEW = 9 + BOOTS_MAX  # the first boot of another flash


def birth(boot: int, connection: int, epoch: int = 0) -> Birth:
    return Birth(boot, connection, epoch, 0, 8, "edge-agent")


def sessions(epoch: int = 5) -> Sessions:
    made = Sessions()
    made.begin(epoch)
    return made


def test_an_older_birth_that_answers_no_epoch_is_a_replay() -> None:
    there = sessions()
    assert there.on_birth("cabin", birth(3, 7, 5))
    for old in (birth(3, 6), birth(2, 9), birth(2, 9, 5), birth(3, 6, 5)):
        assert not there.on_birth("cabin", old)
    assert there.present() == {"cabin": birth(3, 7, 5)}


def test_a_device_whose_flash_was_replaced_is_believed_and_its_former_life_is_not() -> None:
    there = sessions()
    assert there.on_birth("cabin", birth(9, 7, 5))
    assert not there.on_birth("cabin", birth(NEW, 1)), "it has not heard the epoch yet"
    assert there.on_birth("cabin", birth(NEW, 1, 5))
    assert there.present() == {"cabin": birth(NEW, 1, 5)}
    assert not there.on_death("cabin", Death(9, 7))
    assert there.on_death("cabin", Death(NEW, 1))


def test_a_new_flash_may_count_from_below_the_old_one_whose_births_are_replayed() -> None:
    there = sessions()
    assert there.on_birth("cabin", birth(NEW, 7, 5))
    assert there.on_birth("cabin", birth(9, 1, 5))
    for old in (birth(NEW, 7, 5), birth(NEW, 6, 5)):
        assert not there.on_birth("cabin", old)
    assert there.on_birth("cabin", birth(9, 1, 5)), "its own may be said again"
    there.begin(6)
    assert not there.on_birth("cabin", birth(NEW, 8, 5)), "it answers an epoch that is over"


def test_the_old_flash_may_come_back() -> None:
    there = sessions()
    for boot, connection in ((9, 7), (NEW, 1), (9, 8), (NEW, 2)):
        assert there.on_birth("cabin", birth(boot, connection, 5))
        assert there.present() == {"cabin": birth(boot, connection, 5)}
    assert not there.on_birth("cabin", birth(9, 8, 5))


def test_the_same_birth_may_be_repeated() -> None:
    there = sessions()
    assert there.on_birth("cabin", birth(1, 1, 5))
    assert there.on_birth("cabin", birth(1, 1, 5))


def test_what_is_remembered_of_a_device_is_bounded() -> None:
    there = sessions()
    for card in range(10 * CARDS_MAX):
        assert there.on_birth("cabin", birth(card * BOOTS_MAX, 1, 5))
    assert len(there._former["cabin"]) == CARDS_MAX
