"""The written forms of values that may belong to one task: ids, amounts, dates, names, addresses, files. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reflect_middleware.evidence import plain

_LABEL = (
    r"(?:order|invoice|ticket|booking|customer|client|user|case|reservation|shipment|parcel|tracking|transaction|payment"
    r"|request|employee|patient|contract|claim|member|passenger|bestellung|rechnung|kunde|kundin|auftrag|buchung|vorgang"
    r"|commande|facture|dossier|client[e]?|pedido|factura|reserva|ordine|fattura|cliente|pnr|id)"
)
_NUMBER = r"(?:\s+(?:number|no\.?|nr\.?|n[°º]|num|id|code))?"
_IDS = (
    re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE),
    re.compile(rf"\b{_LABEL}s?[-_ ]*{_NUMBER}[\s:=\"'#]*#?\s*((?=[\w/-]*\d)[A-Z0-9][\w/-]*\w)\b", re.IGNORECASE),
    re.compile(r"(?<![\w&/#])#(\d{2,})\b"),
    re.compile(r"\b((?:ORD|INV|TKT|CUST|PO|TXN|RMA|INC|USR|BKG|REQ|CASE)[-_/#]?\d{2,}[\w-]*)\b"),
)
_AMOUNT = re.compile(
    r"(?:[€$£¥]|\b(?:EUR|USD|GBP|CHF|JPY|SEK|NOK|DKK|PLN|INR)\b)\s?(\d[\d.,' ]*\d|\d)"
    r"|(?<![\w.,])(\d[\d.,']*\d|\d)\s?(?:[€$£¥]|(?:EUR|USD|GBP|CHF|JPY|SEK|NOK|DKK|PLN|INR|euros?|dollars?|pounds?)\b)",
    re.IGNORECASE,
)
_JSON_NUMBER = re.compile(r"\"\s*:\s*\"?(\d[\d.,]*\d)\"?\s*[,}\]]")
_LONG = re.compile(r"(?<![\w.,/:-])(\d{5,})(?![\w/:-]|[.,]\d)")
_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january januar janvier enero gennaio",
            "february februar février febrero febbraio",
            "march märz mars marzo",
            "april avril abril aprile",
            "may mai mayo maggio",
            "june juni juin junio giugno",
            "july juli juillet julio luglio",
            "august août agosto",
            "september septembre septiembre settembre",
            "october oktober octobre octubre ottobre",
            "november novembre noviembre",
            "december dezember décembre diciembre dicembre",
        ),
        1,
    )
    for name in names.split()
}
MONTHS, DAYS = 12, 31
_MONTH = "|".join(sorted({*_MONTHS, *(name[:3] for name in _MONTHS)}, key=len, reverse=True))
_DATES = (
    re.compile(r"(?<!\d)(?P<y>(?:19|20)\d\d)[-/.]?(?P<m>0[1-9]|1[0-2])[-/.]?(?P<d>0[1-9]|[12]\d|3[01])(?!\d)"),
    re.compile(r"(?<!\d)(?P<d>\d{1,2})[-/.]\s?(?P<m>\d{1,2})[-/.]\s?(?P<y>(?:19|20)\d\d)(?!\d)"),
    re.compile(
        rf"\b(?P<d>\d{{1,2}})\.?(?:st|nd|rd|th)?\s+(?:de\s+)?(?P<m>{_MONTH})\w*\.?\s+(?:de\s+)?(?P<y>\d{{4}})",
        re.IGNORECASE,
    ),
    re.compile(rf"\b(?P<m>{_MONTH})\w*\.?\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<y>\d{{4}})\b", re.IGNORECASE),
)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_ROLES = frozenset(
    """support info sales billing help helpdesk admin noreply no-reply hr security accounts accounting legal team office
    contact service services postmaster abuse privacy press jobs orders returns refunds finance it""".split()  # noqa: SIM905
)
"""Mailboxes of a function, not of a person."""
_URL = re.compile(r"\bhttps?://[^\s\"'<>)\]}]+", re.IGNORECASE)
_PATHS = (
    re.compile(r"(?<!\w)(?:~|/home/[\w.-]+|/Users/[\w.-]+|/root|/mnt|/media|/data)(?:/[\w.@+-]+)+"),
    re.compile(r"\b[A-Za-z]:\\(?:[^\\\s\"'<>|]+\\)*[^\\\s\"'<>|]+"),
    re.compile(
        r"(?<![\w/.-])[\w-]+(?:[/.][\w-]+)*\.(?:csv|tsv|xlsx?|docx?|pptx?|pdf|png|jpe?g|gif|mp[34]|zip|parquet)\b"
    ),
)
_TITLE = r"(?:Mr|Mrs|Ms|Dr|Prof|Herrn?|Frau|Mme|M|Señora?|Sra?|Signora?|Sig)\.?"
_NAME = r"([A-ZÀ-ÖØ-Þ][\w'\u2019-]+(?:[ ][A-ZÀ-ÖØ-Þ][\w'\u2019-]+){0,2})"
_NAMES = (
    re.compile(rf"\b{_TITLE}\s+{_NAME}"),
    re.compile(
        r"\b(?:[Mm]y name is|[Ii]ch hei(?:ß|ss)e|[Mm]ein Name ist|[Jj]e m'appelle|[Mm]e llamo|[Mm]i chiamo"
        rf"|(?:[Cc]ustomer|[Cc]lient|[Uu]ser|[Ee]mployee|[Pp]atient|[Pp]assenger|Kunde|Kundin|[Cc]liente|[Pp]aciente)s?"
        rf"(?:\s+name)?:?)\s+{_NAME}"
    ),
    re.compile(
        r"\"(?:\w*_)?(?:name|customer|user|passenger|employee|patient|client)\"\s*:\s*\"([A-ZÀ-ÖØ-Þ][^\"\d]{1,40})\""
    ),
)
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«\s?([^»]+?)\s?»|`([^`]+)`')

_TRAILING = ".,;:!?)'\""


@dataclass(frozen=True, slots=True)
class Value:
    """A value in a text that has the form of something particular."""

    kind: str
    text: str
    """As it stands there."""
    key: str
    """What all its written forms share."""
    at: int = 0
    """Where it begins in the text."""


def values_in(text: str) -> Iterator[Value]:
    """Everything in a text that has the form of a particular value; names are found by `names_in`."""
    yield from _dates(text)
    yield from _addresses(text)
    yield from _numbers(text)
    for match in _QUOTED.finditer(text):
        inner = next(filter(None, match.groups()))
        if plain(inner) and inner[0].isalnum() and not inner.isdigit():
            yield Value("quoted text", inner, f'"{plain(inner)}"', match.start())


def _dates(text: str) -> Iterator[Value]:
    for pattern in _DATES:
        for match in pattern.finditer(text):
            if key := _day(match):
                yield Value("date", match[0], key, match.start())


def _addresses(text: str) -> Iterator[Value]:
    """E-mails, URLs and files; not the mailbox of a function, a bare host, or a file that every system has."""
    for match in _MAIL.finditer(text):
        if match[0].partition("@")[0].casefold() not in _ROLES:
            yield Value("e-mail", match[0], match[0].casefold(), match.start())
    for match in _URL.finditer(text):
        url = match[0].rstrip(_TRAILING).rstrip("/")
        if "/" in url.partition("://")[2]:
            yield Value("URL", url, url.casefold(), match.start())
    for pattern in _PATHS:
        yield from (Value("path", m[0], m[0].casefold(), m.start()) for m in pattern.finditer(text))


def _numbers(text: str) -> Iterator[Value]:
    for pattern in _IDS:
        for match in pattern.finditer(text):
            named = match[match.lastindex or 0]
            yield Value("id", named, named.casefold(), match.start(match.lastindex or 0))
    for match in _AMOUNT.finditer(text):
        group = 1 if match[1] else 2
        yield Value("amount", match[0].strip(), number(match[group]), match.start())
    for pattern in (_JSON_NUMBER, _LONG):
        for match in pattern.finditer(text):
            yield Value("number", match[1], number(match[1]), match.start(1))


THOUSAND, EXACT = 3, 15
"""Digits behind a separator of thousands, and those that a float holds exactly."""


def number(text: str) -> str:
    """The number as Python writes it, whatever its separators: 1,182.50, 1.182,50 and 1182.5 are one."""
    bare = text.replace("'", "").replace(" ", "").strip(".,")
    mark = max(bare.rfind("."), bare.rfind(","))
    fraction = bare[mark + 1 :] if mark >= 0 else ""
    whole = mark < 0 or (len(fraction) == THOUSAND and len({".", ","} & set(bare)) == 1)
    digits = re.sub(r"[.,]", "", bare) if whole else f"{re.sub(r'[.,]', '', bare[:mark])}.{fraction}"
    try:
        return f"{float(digits):.10g}" if len(digits) <= EXACT else digits
    except ValueError:
        return digits


def _day(match: re.Match[str]) -> str:
    """A date as `2026-03-05`; empty where there is no such day."""
    word, day = match["m"].casefold(), int(match["d"])
    month = int(word) if word.isdigit() else next(n for name, n in _MONTHS.items() if name.startswith(word[:3]))
    if month > MONTHS:  # 12/31/2025: the month came first
        month, day = day, month
    return f"{match['y']}-{month:02}-{day:02}" if 1 <= month <= MONTHS and 1 <= day <= DAYS else ""


def named_in(text: str) -> Iterator[str]:
    """Names of people in a text that says that they are names."""
    for pattern in _NAMES:
        yield from (match[1].strip() for match in pattern.finditer(text))
    for mail in _MAIL.findall(text):
        parts = mail.partition("@")[0].split(".")
        if len(parts) == 2 and all(len(part) > 1 and part.isalpha() for part in parts):  # noqa: PLR2004 - first.last@
            yield " ".join(part.capitalize() for part in parts)


def names_in(text: str, names: Sequence[str]) -> Iterator[Value]:
    """Those of the names that a text has."""
    for name in dict.fromkeys(names):
        match = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
        if match:
            yield Value("name", name, plain(name), match.start())


def holds(text: str, value: Value) -> bool:
    """True if the text has the value, in whatever form it is written there."""
    if value.kind == "quoted text":
        return any(f'"{plain(next(filter(None, groups)))}"' == value.key for groups in _QUOTED.findall(text))
    if value.kind == "name":
        return value.text in text or f" {value.key} " in f" {plain(text)} "
    if value.kind in READ:
        return value.key in READ[value.kind](text)
    folded = text.casefold()
    return value.key in folded and bool(re.search(rf"(?<![\w-]){re.escape(value.key)}(?![\w-])", folded))


def _all_days(text: str) -> frozenset[str]:
    return frozenset(_day(match) for pattern in _DATES for match in pattern.finditer(text))


def _all_numbers(text: str) -> frozenset[str]:
    return frozenset(number(found) for found in re.findall(r"\d[\d.,']*", text))


READ = {"date": _all_days, "amount": _all_numbers, "number": _all_numbers}
"""Where a kind of value has several written forms: all that a text has, in one."""
