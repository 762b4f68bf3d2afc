"""Augmentation: one key, one text; values, numbers, quotations, parameters and summaries never change."""

import re
from collections import Counter

import pytest

from engine.corpus import augment, instructions
from engine.corpus.lexicon import canonical
from engine.corpus.records import Record
from engine.mixture import generator

PROCEDURE = """Module: AccountsPayable
The customer must verify the invoice prior to payment of 1,250.00 EUR by "the customer" in order to commence AccountsPayable.

Parameters:
- customer_id: 17 (the customer's number)
- vendor: "ACME use Ltd"
  with a second line
- limit = 3.5 mg

Steps:
1. Utilize verify.sh and check customer@vendor.com.
2. Purchase 2 units from vendor X-200.
"""
BASE = Record("p1", "procedure", PROCEDURE, "Verify and pay.", instruction="Summarize the following procedure.")


def variants(record: Record, count: int = 60) -> list[Record]:
    return [augment.augmented(record, seed=3, epoch=epoch) for epoch in range(1, count)]


def parameters(source: str) -> Counter:
    """Entries below the heading, with their further lines."""
    block = re.search(r"Parameters(?: List)?:\n((?:[-* ].*\n?)+)", source).group(1)
    return Counter(re.split(r"\n(?=- )", block.rstrip("\n")))


def test_one_key_gives_one_text_and_other_epochs_other_texts():
    assert variants(BASE) == variants(BASE)
    assert augment.augmented(BASE, 3, 0) is BASE
    assert len({record.source for record in variants(BASE)}) > 40
    assert augment.augmented(BASE, 4, 1) != augment.augmented(BASE, 3, 1)


def test_every_kind_of_change_happens():
    sources = "\n".join(record.source for record in variants(BASE))
    for form in ("AccountsPayable", "accounts_payable", "accounts-payable", "Accounts Payable"):
        assert f"Module: {form}\n" in sources and f"{form}.\n" in sources
    for heading in augment.HEADINGS:
        assert f"\n{heading}:\n- " in sources
    assert "The client must check the invoice before payment" in sources
    assert len({tuple(re.findall(r"^- (\w+)", record.source, re.M)) for record in variants(BASE)}) == 6
    plain, *others = instructions.requests("procedure")
    assert BASE.instruction == plain and {record.instruction for record in variants(BASE)} == {None, *others}


def test_an_instruction_of_ones_own_stays():
    own = Record("p", "paper", "x", "y", instruction="Name the drug.")
    assert {record.instruction for record in variants(own)} == {"Name the drug."}
    asked = {record.instruction for record in variants(Record("v", "video", "x", "y"))}
    assert len(asked) == 5 and None in asked and "Please summarize this video transcript." in asked


def numbers(text: str) -> Counter:
    return Counter(re.findall(r"\d[\d.,]*", text))


def made_up(number: int) -> Record:
    """A procedure of random pieces, most of which carry meaning."""
    chance = generator("procedure", number)
    name = chance.choice(["StockControl", "stock_control", "Stock Control", "HRModule2", "X"])
    words = [w for group in augment.WORDS for w in group] + [
        "12 mg",
        '"verify customer"',
        "`buy()`",
        "user_id",
        "ISO9001",
        "{customer}",
        "https://vendor.example/use",
        "v1.2.3",
    ]
    prose = " ".join(chance.choices(words, k=30)).capitalize()
    entries = "".join(
        f"- {chance.choice(['verify', 'limit', 'client'])}{n}: {chance.choice(words)}\n"
        for n in range(chance.randint(1, 6))
    )
    return Record(
        f"r{number}",
        "procedure",
        f"Module: {name}\n{prose} {name}.\n\nParameters:\n{entries}\nEnd 7.",
        chance.choice(words),
    )


@pytest.mark.parametrize("number", range(60))
def test_what_carries_meaning_never_changes(number):
    record = made_up(number)
    for changed in variants(record, 12):
        assert (changed.id, changed.summary, changed.modality) == (record.id, record.summary, record.modality)
        assert numbers(changed.source) == numbers(record.source)
        assert parameters(changed.source) == parameters(record.source)
        for kept in (
            '"verify customer"',
            "`buy()`",
            "user_id",
            "ISO9001",
            "{customer}",
            "https://vendor.example/use",
            "v1.2.3",
            "12 mg",
        ):
            assert changed.source.count(kept) == record.source.count(kept)
        names = [re.match(r"Module: (.*)", r.source).group(1) for r in (record, changed)]
        assert canonical(names[0]) == canonical(names[1])
        assert changed.source.count(names[1]) >= record.source.count(names[0])
