"""What each backend of the example knows of the customers: the lender's database, the partner's, and the features."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from example.people import Customer, Past, affinity

AS_OF = datetime(2026, 1, 1, tzinfo=UTC)

LENDER = """
CREATE TABLE customers (
    customer_id   INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    age           INTEGER NOT NULL,
    credit_score  INTEGER NOT NULL,   -- 300 to 850
    annual_income INTEGER             -- null: not known
);
CREATE TABLE loans (                  -- how earlier loans ended: what the credit model learns from
    customer_id INTEGER PRIMARY KEY REFERENCES customers,
    defaulted   INTEGER NOT NULL
);
"""
PARTNER = """
CREATE TABLE contracts (
    customer_id     INTEGER PRIMARY KEY,
    tenure_months   INTEGER NOT NULL,
    monthly_charges REAL NOT NULL
);
CREATE TABLE scores (
    customer_id INTEGER PRIMARY KEY,
    score       INTEGER NOT NULL
);
"""

People = Sequence[tuple[Customer, Past | None]]


def write_lender(path: Path, people: People, advance: Callable[[], object]) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(LENDER)
        with database:
            for who, past in people:
                row = (who.customer_id, who.name, who.age, who.credit_score, who.annual_income)
                database.execute("INSERT INTO customers VALUES (?, ?, ?, ?, ?)", row)
                if past is not None:
                    database.execute("INSERT INTO loans VALUES (?, ?)", (who.customer_id, int(past.defaulted)))
                advance()


def write_partner(path: Path, people: People) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(PARTNER)
        with database:
            contracts = [(who.customer_id, who.tenure, who.monthly_charges) for who, _ in people]
            scores = [(who.customer_id, who.bureau_score) for who, _ in people]
            database.executemany("INSERT INTO contracts VALUES (?, ?, ?)", contracts)
            database.executemany("INSERT INTO scores VALUES (?, ?)", scores)


def write_features(path: Path, people: People, pandas: Any) -> None:
    """Write the file that Feast materialises, as its definitions read it."""
    known = [who for who, _ in people if who.has_features]
    columns = {
        "customer_id": [who.customer_id for who in known],
        "event_timestamp": [AS_OF] * len(known),
        "payment_history": [who.payment_history for who in known],
        "purchase_history": [list(who.purchases) for who in known],
        "category_affinity": [affinity(who.purchases) for who in known],
    }
    pandas.DataFrame(columns).to_parquet(path)
