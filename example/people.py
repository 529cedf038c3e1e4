"""Who the example's customers are: seven with a story, and the others by a seeded generator that reads no clock.

One customer has one number everywhere: in the lender's database, in the feature store and at the partner. What is
known in which of them is decided where it is written, in ``tables``.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import exp
from random import Random
from typing import NamedTuple

SEED = 20260101
CUSTOMERS = 10_000

CATALOGUE = {
    "kitchen": ("espresso machine", "coffee grinder", "milk frother", "kitchen scale", "kettle"),
    "garden": ("hedge trimmer", "rose shears", "watering can", "raised bed", "hose reel"),
    "outdoor": ("tent", "sleeping bag", "camping stove", "headlamp", "hammock"),
    "music": ("turntable", "record brush", "headphones", "speaker stands", "phono cable"),
}
PLANS = (19.0, 29.0, 39.0, 59.0, 89.0)  # what a month costs


class Customer(NamedTuple):
    """What all the backends together know of a customer."""

    customer_id: int
    name: str
    age: int
    annual_income: int | None  # None: not known
    credit_score: int  # in the lender's books, 300 to 850
    bureau_score: int  # at the credit bureau today: the books can be out of date
    payment_history: float  # the share of bills that were paid on time
    tenure: int  # months with the partner
    monthly_charges: float
    purchases: tuple[str, ...]
    has_features: bool = True  # whether the feature store has heard of them


class Past(NamedTuple):
    """What became of a generated customer: what the models learn from. The named ones have no past."""

    defaulted: bool
    granted: bool
    interest_rate: float | None  # of the loan that was granted
    churned: bool


NAMED = (
    # good in every respect
    Customer(1001, "Amara Okafor", 46, 142_000, 815, 822, 0.99, 84, 29.0, ("espresso machine", "coffee grinder")),
    # good in the lender's books; the bureau and the unpaid bills know better
    Customer(1002, "Bruno Keller", 38, 61_000, 720, 545, 0.71, 30, 59.0, ("rose shears", "hedge trimmer")),
    # middling in the books; pays every bill, and pays so much that she may leave
    Customer(1003, "Chloe Martin", 29, 44_000, 630, 672, 1.0, 7, 89.0, ("tent", "sleeping bag", "headphones")),
    # someone has to look at it
    Customer(1004, "Dev Patel", 33, 39_000, 560, 634, 0.91, 40, 59.0, ("turntable",)),
    # bad in every respect, and loyal
    Customer(1005, "Elif Kaya", 24, 21_000, 480, 470, 0.55, 52, 19.0, ("kettle", "watering can")),
    # the income is not known: what needs it is not scored
    Customer(1006, "Farid Haddad", 51, None, 702, 710, 0.93, 3, 89.0, ("headlamp", "hammock")),
    # joined this morning: the feature store has not heard of her
    Customer(1007, "Grace Lindqvist", 27, 52_000, 690, 695, 1.0, 0, 39.0, (), has_features=False),
)


def customers() -> Iterator[tuple[Customer, Past | None]]:
    for customer in NAMED:
        yield customer, None
    chance = Random(SEED)
    for customer_id in range(NAMED[-1].customer_id + 1, NAMED[0].customer_id + CUSTOMERS):
        yield _generated(customer_id, chance)


def affinity(purchases: tuple[str, ...]) -> dict[str, float]:
    """Return for each category its share in what a customer bought."""
    return {
        category: round(sum(product in products for product in purchases) / len(purchases), 2)
        for category, products in CATALOGUE.items()
    }


def _generated(customer_id: int, chance: Random) -> tuple[Customer, Past]:
    credit_score = _within(300, 850, chance.gauss(665, 85))
    income = round(_within(12_000, 400_000, chance.lognormvariate(10.85, 0.45)), -2)
    bureau_score = _within(300, 850, chance.gauss(credit_score, 20))
    paid = round(min(1.0, max(0.0, chance.gauss(0.62 + 0.4 * (bureau_score - 300) / 550, 0.07))), 2)
    customer = Customer(
        customer_id,
        f"Customer {customer_id}",
        _within(18, 90, chance.gauss(44, 14)),
        income,
        credit_score,
        bureau_score,
        paid,
        _within(0, 240, chance.expovariate(1 / 30)),
        chance.choice(PLANS),
        _basket(chance),
    )
    return customer, _past(customer, income, chance)


def _past(customer: Customer, income: int, chance: Random) -> Past:
    """Draw what happened, from rules that the models are not told."""

    def happens(odds: float) -> bool:
        return chance.random() < 1 / (1 + exp(-odds))

    defaulted = happens(-1.2 - 0.017 * (customer.credit_score - 640) - 0.000_02 * (income - 50_000))
    bureau, paid = customer.bureau_score, customer.payment_history
    granted = happens(
        0.022 * (bureau - 620) + 9 * (paid - 0.88) + 0.000_025 * (income - 45_000) + 0.01 * (customer.age - 35)
    )
    rate = 9 - 0.018 * (bureau - 650) - 6 * (paid - 0.9) - 0.000_012 * (income - 50_000) + chance.gauss(0, 0.3)
    churned = happens(1.2 - 0.06 * customer.tenure + 0.035 * (customer.monthly_charges - 50))
    return Past(defaulted, granted, round(max(1.9, rate), 2) if granted else None, churned)


def _basket(chance: Random) -> tuple[str, ...]:
    """Draw two to five different products: mostly of one category, and what goes together with what is there."""
    favourite = CATALOGUE[chance.choice(list(CATALOGUE))]
    found = [chance.choice(favourite)]
    for _ in range(chance.randint(1, 4)):
        if chance.random() < 0.25:
            found.append(chance.choice(CATALOGUE[chance.choice(list(CATALOGUE))]))
        elif chance.random() < 0.6 and found[-1] in favourite:
            found.append(favourite[(favourite.index(found[-1]) + 1) % len(favourite)])
        else:
            found.append(chance.choice(favourite))
    return tuple(dict.fromkeys(found))


def _within(least: int, most: int, value: float) -> int:
    return min(most, max(least, round(value)))
