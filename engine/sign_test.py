"""The sign test: of the examples that only one of two models gets right, does either get too many to be chance?"""


def is_worse(won: int, lost: int) -> bool:
    """Is a model worse than another, beyond two standard deviations: (lost - won)² > 4 (lost + won)?

    `won` examples it alone got right, `lost` the other alone.
    """
    return lost > won and (lost - won) ** 2 > 4 * (lost + won)
