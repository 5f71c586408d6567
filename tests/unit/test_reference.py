"""A referral's reference: readable over the phone, the same each time, giving nothing away."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from referrals.reference import ALPHABET, is_reference, referral_reference

SOME = [referral_reference(f"CASE-{number}", "mediation") for number in range(12)]


def dashed(whole: str) -> str:
    return "-".join(whole[start : start + 4] for start in range(0, len(whole), 4))


def test_the_alphabet_has_no_look_alikes_and_makes_no_words() -> None:
    assert not set(ALPHABET) & set("0O1I5S8BAEU")
    assert len(set(ALPHABET)) == len(ALPHABET) == 25


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(max_size=30))
def test_a_reference_has_its_form_and_check_character(case: str, intervention: str) -> None:
    intervention = intervention.encode("utf-8", "ignore").decode()
    made = referral_reference(case, intervention)

    assert re.fullmatch(rf"([{ALPHABET}]{{4}}-){{2}}[{ALPHABET}]{{4}}", made)
    assert is_reference(made)
    assert is_reference(made.lower().replace("-", ""))
    assert made == referral_reference(case, intervention)


def test_the_same_case_and_intervention_give_the_same_reference_for_ever() -> None:
    """Fixed by hand: a referral made last year must still be found by its reference."""
    assert referral_reference("NCC-26-0193", "victim-hardening") == "324M-DTDF-RDFH"


def test_cases_and_interventions_are_told_apart() -> None:
    made = {
        referral_reference(f"C-{number}", intervention)
        for number in range(2_000)
        for intervention in ("mediation", "victim-hardening")
    }
    assert len(made) == 4_000
    assert referral_reference("C-1", "2x") != referral_reference("C-12", "x")


@pytest.mark.parametrize("reference", SOME)
def test_every_single_wrong_character_is_noticed(reference: str) -> None:
    whole = reference.replace("-", "")
    for place, right in enumerate(whole):
        for wrong in set(ALPHABET) - {right}:
            assert not is_reference(dashed(whole[:place] + wrong + whole[place + 1 :]))


@pytest.mark.parametrize("reference", SOME)
def test_every_swap_of_neighbours_is_noticed(reference: str) -> None:
    whole = reference.replace("-", "")
    for place in range(len(whole) - 1):
        first, second = whole[place], whole[place + 1]
        if first != second:
            swapped = whole[:place] + second + first + whole[place + 2 :]
            assert not is_reference(dashed(swapped))


@pytest.mark.parametrize(
    "text", ["", "K7QM", "0000-0000-0000", SOME[0][:-1], SOME[0] + "C", "é" * 12]
)
def test_other_text_is_no_reference(text: str) -> None:
    assert not is_reference(text)
