"""Which district a postcode is in, from a table that needs no network.

The file is a line `referrals-postcodes 1 SHA256`, a line of JSON (what the table holds and where
it comes from), then one 56-byte record for each district of each postcode sector: the sector, as
`NG5 1` or `NG171` (5 bytes); the district's place in the header's list, or 255 for elsewhere
(1 byte); and 400 bits (50 bytes, little-endian), one for each unit AA, AB, AD … ZZ. The checksum
covers all that follows the first line. The records are left as they are: a compressor's bytes
differ from one zlib to another, and packing a wheel shrinks them anyway.

The directory of the Office for National Statistics (ONS) gives each postcode one district, by
its grid reference, so some addresses of a postcode on a boundary are in the next district, and a
PO box is where it is sorted. Retired postcodes are in the table, as an old record may hold one,
but the source does not mark them, so neither can we.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_MAGIC = b"referrals-postcodes 1"
_INWARD_LETTERS = "ABDEFGHJLNPQRSTUWXYZ"  # not C I K M O V
_UNITS = {
    a + b: n * 20 + m for n, a in enumerate(_INWARD_LETTERS) for m, b in enumerate(_INWARD_LETTERS)
}
_BITMAP_BYTES = len(_UNITS) // 8
_RECORD_BYTES = 5 + 1 + _BITMAP_BYTES
_ELSEWHERE = 255
_LONGEST_INPUT = 40  # a postcode and some stray spaces

_POSTCODE = re.compile(
    r"""\s*
    ( [A-PR-UWYZ] [0-9] [0-9]?                      # M1, M60
    | [A-PR-UWYZ] [0-9] [ABCDEFGHJKPSTUW]           # W1A
    | [A-PR-UWYZ] [A-HK-Y] [0-9] [0-9]?             # CR2, DN55
    | [A-PR-UWYZ] [A-HK-Y] [0-9] [ABEHMNPRVWXY]     # EC1A
    )
    \s*
    ( [0-9] [ABD-HJLNP-UW-Z]{2} )
    \s*""",
    re.VERBOSE | re.ASCII,
)


def normalise(text: str) -> str | None:
    """`NG5 1AA` from `ng51aa`; None for what is not of the shape of a UK postcode.

    Only ASCII letters and digits count: a look-alike is a mistake to put right, not to guess at.

    Source: Royal Mail, Programmers' Guide to the PAF; the GOV.UK valid postcode format (ILR
    specification, appendix C).
    """
    if len(text) > _LONGEST_INPUT or not text.isascii():
        return None
    found = _POSTCODE.fullmatch(text.upper())
    return f"{found[1]} {found[2]}" if found else None


@dataclass(frozen=True, eq=False)
class PostcodeTable:
    """Every postcode of a region with its district, as one edition of the ONS's directory has it.

    A postcode that `district_of` doesn't know is outside the region if `is_outside` says so;
    otherwise it is mistyped, or newer than `edition`.
    """

    edition: str
    count: int
    districts: frozenset[str]
    _sectors: Mapping[str, tuple[tuple[str | None, int], ...]] = field(repr=False)
    _outwards: frozenset[str] = field(repr=False)

    @classmethod
    def from_bytes(cls, data: bytes) -> PostcodeTable:
        """Read a table that `encode_table` made.

        Raises:
            ValueError: this is not such a table, or not all of it, or it was altered.
        """
        first, _, body = data.partition(b"\n")
        magic, _, checksum = first.rpartition(b" ")
        if magic != _MAGIC:
            raise ValueError("This is not a postcode table of a kind we can read.")
        if checksum != hashlib.sha256(body).hexdigest().encode("ascii"):
            raise ValueError("The postcode table is cut short or altered: its checksum is wrong.")
        header_line, _, records = body.partition(b"\n")
        try:
            header = json.loads(header_line)
            edition, count = str(header["edition"]), int(header["count"])
            names = [str(name) for name in header["districts"]]
            sectors = _read_sectors(records, names)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError("The postcode table was wrongly made.") from error
        in_region = [
            (sector, bits) for sector, layers in sectors.items() for name, bits in layers if name
        ]
        if count != sum(bits.bit_count() for _, bits in in_region):
            raise ValueError("The postcode table was wrongly made: its count is wrong.")
        return cls(
            edition=edition,
            count=count,
            districts=frozenset(names),
            _sectors=sectors,
            _outwards=frozenset(sector[:4].rstrip() for sector, _ in in_region),
        )

    def district_of(self, postcode: str) -> str | None:
        """The id of the district of a normalised postcode; None if it has none here."""
        return self._find(postcode)[1]

    def is_outside(self, postcode: str) -> bool:
        """Is this normalised postcode outside the region, as far as this edition knows?

        It is listed as being elsewhere, or no postcode of the region has its outward code.
        """
        listed, district = self._find(postcode)
        if listed:
            return district is None
        return not self.knows_outward(postcode.partition(" ")[0])

    def knows_outward(self, outward: str) -> bool:
        """Does any postcode of the region begin with this outward code, such as `NG5`?"""
        return outward in self._outwards

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Every (postcode, district) of the region; this one is slow."""
        for sector, layers in self._sectors.items():
            outward, digit = sector[:4].rstrip(), sector[4]
            for unit, place in _UNITS.items():
                for district, bits in layers:
                    if district is not None and bits >> place & 1:
                        yield f"{outward} {digit}{unit}", district

    def _find(self, postcode: str) -> tuple[bool, str | None]:
        outward, _, inward = postcode.partition(" ")
        place = _UNITS.get(inward[1:])
        if place is not None:
            for district, bits in self._sectors.get(f"{outward:<4}{inward[0]}", ()):
                if bits >> place & 1:
                    return True, district
        return False, None


def _read_sectors(
    records: bytes, names: list[str]
) -> dict[str, tuple[tuple[str | None, int], ...]]:
    if len(records) % _RECORD_BYTES:
        raise ValueError("a record is incomplete")
    sectors: dict[str, tuple[tuple[str | None, int], ...]] = {}
    for start in range(0, len(records), _RECORD_BYTES):
        sector = records[start : start + 5].decode("ascii")
        layer = records[start + 5]
        bits = int.from_bytes(records[start + 6 : start + _RECORD_BYTES], "little")
        others = sectors.get(sector, ())
        if any(bits & other for _, other in others):
            raise ValueError("a postcode is in two districts")
        sectors[sector] = (*others, (None if layer == _ELSEWHERE else names[layer], bits))
    return sectors


def encode_table(
    districts: Mapping[str, str], elsewhere: Iterable[str] = (), *, edition: str, **about: str
) -> bytes:
    """The bytes of a table: the same ones for the same input, in whatever order.

    Args:
        districts: normalised postcode → id of its district.
        elsewhere: normalised postcodes known to be outside the region.
        edition: of the data, as `November 2025`.
        about: more for the header, such as the source and the licence.

    Raises:
        ValueError: a postcode is not normalised or is both in and out, or there are too many
            districts.
    """
    names = sorted(set(districts.values()))
    if len(names) > _ELSEWHERE:
        raise ValueError(f"A postcode table holds at most {_ELSEWHERE} districts.")
    layers = {postcode: names.index(district) for postcode, district in districts.items()}
    for postcode in elsewhere:
        if layers.setdefault(postcode, _ELSEWHERE) != _ELSEWHERE:
            raise ValueError(f"{postcode} is both in the region and elsewhere.")
    bitmaps: dict[tuple[str, int], int] = {}
    for postcode, layer in layers.items():
        if normalise(postcode) != postcode:
            raise ValueError(f"{postcode!r} is not a normalised postcode.")
        outward, inward = postcode.split(" ")
        key = f"{outward:<4}{inward[0]}", layer
        bitmaps[key] = bitmaps.get(key, 0) | 1 << _UNITS[inward[1:]]
    header = {
        **about,
        "edition": edition,
        "districts": names,
        "count": len(districts),
        "elsewhere": len(layers) - len(districts),
    }
    records = (
        sector.encode("ascii") + bytes([layer]) + bits.to_bytes(_BITMAP_BYTES, "little")
        for (sector, layer), bits in sorted(bitmaps.items())
    )
    body = json.dumps(header, sort_keys=True).encode("ascii") + b"\n" + b"".join(records)
    return _MAGIC + b" " + hashlib.sha256(body).hexdigest().encode("ascii") + b"\n" + body
