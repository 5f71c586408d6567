"""Workbooks written as XML, part by part: what Excel and others write, and openpyxl never would.

Source: ECMA-376 part 1, §18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr
from zipfile import ZIP_DEFLATED, ZipFile

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
_STRICT = {
    _MAIN: "http://purl.oclc.org/ooxml/spreadsheetml/main",
    _LINKS: "http://purl.oclc.org/ooxml/officeDocument/relationships",
}
_DECLARED = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'


@dataclass(frozen=True)
class Cell:
    """A cell's content as XML, and its attributes but for its place."""

    content: str = ""
    attributes: str = ""


def inline(text: str) -> Cell:
    return Cell(f'<is><t xml:space="preserve">{escape(text)}</t></is>', 't="inlineStr"')


def boolean(value: bool) -> Cell:
    return Cell(f"<v>{value:d}</v>", 't="b"')


def error(shown: str) -> Cell:
    return Cell(f"<v>{shown}</v>", 't="e"')


def formula(code: str, value: str | None = None) -> Cell:
    """With a text that was saved for it, or with nothing."""
    saved = "" if value is None else f"<v>{escape(value)}</v>"
    return Cell(f"<f>{escape(code)}</f>{saved}", "" if value is None else 't="str"')


@dataclass
class Book:
    """The texts and the formats that the sheets of a workbook share."""

    texts: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    sheets: list[tuple[str, str, str]] = field(default_factory=list)

    def text(self, text: str) -> Cell:
        """A text as Excel keeps it, once for the whole workbook."""
        return self.rich(f'<t xml:space="preserve">{escape(text)}</t>')

    def rich(self, xml: str) -> Cell:
        self.texts.append(f"<si>{xml}</si>")
        return Cell(f"<v>{len(self.texts) - 1}</v>", 't="s"')

    def number(self, written: str, shown_as: str = "General") -> Cell:
        if shown_as not in self.formats:
            self.formats.append(shown_as)
        return Cell(f"<v>{written}</v>", f's="{self.formats.index(shown_as) + 1}"')

    def add(
        self,
        rows: Sequence[Sequence[Any]] | Mapping[int, Sequence[Any]],
        name: str = "Sheet1",
        *,
        state: str = "visible",
        hidden: Sequence[int] = (),
        before: str = "",
        after: str = "",
        places: bool = True,
    ) -> None:
        """A sheet of cells, texts and None, its rows counted from 1 or numbered.

        Args:
            before, after: XML around the rows.
            places: whether rows and cells say where they are, as some programs don't.
        """
        numbered = rows if isinstance(rows, Mapping) else dict(enumerate(rows, 1))
        lines = []
        for number, cells in numbered.items():
            made = []
            for place, value in enumerate(cells):
                cell = value if isinstance(value, Cell) else self.text(value) if value else None
                at = f' r="{letters(place)}{number}"' if places else ""
                if cell is not None:
                    made.append(f"<c{at} {cell.attributes}>{cell.content}</c>")
                elif not places:
                    made.append("<c/>")
            hides = ' hidden="1"' if number in hidden else ""
            at = f' r="{number}" spans="1:{len(cells)}"' if places else ""
            lines.append(f"<row{at}{hides}>{''.join(made)}</row>")
        self.add_xml(f"{before}<sheetData>{''.join(lines)}</sheetData>{after}", name, state)

    def add_xml(self, content: str, name: str = "Sheet1", state: str = "visible") -> None:
        xml = f'<worksheet xmlns="{_MAIN}" xmlns:r="{_LINKS}">{content}</worksheet>'
        self.sheets.append((name, state, xml))

    def save(
        self,
        path: Path,
        *,
        date1904: bool = False,
        strict: bool = False,
        prefix: str = "",
        charts: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
    ) -> Path:
        """
        Args:
            strict: with the namespaces of Strict Open XML.
            prefix: before each name of SpreadsheetML, as the Open XML SDK writes `x:`.
            charts: names of chart sheets, before all others.
            extra: further parts, or others in place of ours.
        """
        entries, links = [], []
        for number, name in enumerate(charts, 1):
            entries.append(f'<sheet name="{name}" sheetId="{number + 90}" r:id="rChart{number}"/>')
            links.append((f"rChart{number}", "chartsheet", f"chartsheets/sheet{number}.xml"))
        parts = {}
        for number, (name, state, xml) in enumerate(self.sheets, 1):
            shown = "" if state == "visible" else f' state="{state}"'
            entries.append(
                f'<sheet name={quoteattr(name)} sheetId="{number}"{shown} r:id="rId{number}"/>'
            )
            links.append((f"rId{number}", "worksheet", f"worksheets/sheet{number}.xml"))
            parts[f"xl/worksheets/sheet{number}.xml"] = xml
        links += [("rStyles", "styles", "styles.xml")]
        links += [("rTexts", "sharedStrings", "/xl/sharedStrings.xml")]
        parts["xl/workbook.xml"] = (
            f'<workbook xmlns="{_MAIN}" xmlns:r="{_LINKS}"><workbookPr date1904="{date1904:d}"/>'
            f"<sheets>{''.join(entries)}</sheets></workbook>"
        )
        parts["xl/sharedStrings.xml"] = f'<sst xmlns="{_MAIN}">{"".join(self.texts)}</sst>'
        parts["xl/styles.xml"] = self._styles()
        parts["xl/_rels/workbook.xml.rels"] = _links(links)
        parts["[Content_Types].xml"] = _content_types(parts)
        parts["_rels/.rels"] = _links([("rId1", "officeDocument", "xl/workbook.xml")])
        with ZipFile(path, "w", ZIP_DEFLATED) as packed:
            for name, xml in {**parts, **(extra or {})}.items():
                if prefix and name.startswith("xl/") and not name.endswith(".rels"):
                    xml = _prefixed(xml, prefix)
                for loose, exact in _STRICT.items() if strict else ():
                    xml = xml.replace(loose, exact)
                packed.writestr(name, _DECLARED + xml)
        return path

    def _styles(self) -> str:
        formats = "".join(
            f'<numFmt numFmtId="{164 + number}" formatCode={quoteattr(code)}/>'
            for number, code in enumerate(self.formats)
        )
        cells = "".join(f'<xf numFmtId="{164 + number}"/>' for number in range(len(self.formats)))
        return (
            f'<styleSheet xmlns="{_MAIN}"><numFmts>{formats}</numFmts>'
            f'<cellStyleXfs><xf numFmtId="14"/></cellStyleXfs><cellXfs><xf numFmtId="0"/>{cells}'
            '</cellXfs><cellStyles/><dxfs><dxf><numFmt numFmtId="164" formatCode="d"/></dxf></dxfs>'
            "</styleSheet>"
        )


def _links(links: Sequence[tuple[str, str, str]]) -> str:
    made = "".join(
        f'<Relationship Id="{name}" Type="{_LINKS}/{kind}" Target="{target}"/>'
        for name, kind, target in links
    )
    return f'<Relationships xmlns="{_PACKAGE}">{made}</Relationships>'


def _content_types(parts: Mapping[str, str]) -> str:
    """What no reader of ours needs, but others do."""
    kinds = {"workbook": "sheet.main", "sharedStrings": "sharedStrings", "styles": "styles"}
    made = ['<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.'
            'relationships+xml"/>']  # fmt: skip
    for part in parts:
        kind = kinds.get(Path(part).stem, "worksheet")
        if part.endswith(".xml"):
            made.append(
                f'<Override PartName="/{part}" ContentType="application/vnd.openxmlformats-'
                f'officedocument.spreadsheetml.{kind}+xml"/>'
            )
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    return f'<Types xmlns="{types}">{"".join(made)}</Types>'


def _prefixed(xml: str, prefix: str) -> str:
    xml = xml.replace("</", "\0").replace("<", f"<{prefix}:").replace("\0", f"</{prefix}:")
    return xml.replace(f'xmlns="{_MAIN}"', f'xmlns:{prefix}="{_MAIN}"')


def letters(place: int) -> str:
    name = ""
    number = place + 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(65 + letter) + name
    return name
