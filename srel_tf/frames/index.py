"""The index of a `FrameStore`: which parts hold its rows, and which state belongs to them. Knows no TensorFlow.

    DIR/index.json            the latest parts, the state, and the name of the previous page
    DIR/index-000064.json …   a page: the 64 parts before part 64, and the name of the page before this one

index.json names the latest page with its size and SHA-256, each page names the previous one in the same way, and
index.json has a checksum of its own. Thus every altered or lost file is noticed. Pages are never written again:
however many parts there are, a commit writes at most `PARTS_PER_PAGE` entries, and sometimes one page.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

from srel_tf.errors import StorageError
from srel_tf.files import JsonObject, find_damage, fingerprint, read_json, write_json

INDEX, FORMAT, PARTS_PER_PAGE = "index.json", 2, 64
STATE = re.compile(r"state-\d{6,12}\.npz")
OWN = re.compile(r"part-\d{6,12}\.parquet|state-\d{6,12}\.npz|index-\d{6,12}\.json")
INDEX_KEYS = {"format", "saved", "parts", "before", "left_out", "state"}
PAGE_KEYS = {"format", "before", "parts"}
GIVE_UP = "give the rows up: FrameStore(path, write=True, anew=True)"


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of index.json.

    Attributes:
        num_saves: How often rows or a state have been saved.
        parts: Entries {file, rows, bytes, sha256} of the latest parts.
        previous_page: Entry {file, parts, rows, bytes, sha256} of the page with the parts before those; `parts` and
            `rows` count everything up to the end of that page. None if there is no page yet.
        skipped_parts: Entries {file, rows, fault} of damaged parts that are no longer read.
        state: Entry {file, bytes, sha256, about} of the latest state; None if there is no state.
    """

    num_saves: int = 0
    parts: list[JsonObject] = dataclasses.field(default_factory=list)
    previous_page: JsonObject | None = None
    skipped_parts: list[JsonObject] = dataclasses.field(default_factory=list)
    state: JsonObject | None = None

    @property
    def num_parts(self) -> int:
        """Number of parts so far, skipped parts included."""
        return _totals(self.previous_page, self.parts)["parts"]

    @property
    def num_rows(self) -> int:
        """Number of rows in the parts that are read."""
        num_skipped = sum(part["rows"] for part in self.skipped_parts)
        return _totals(self.previous_page, self.parts)["rows"] - num_skipped

    def with_part(self, directory: Path, entry: JsonObject) -> "Index":
        """Return the index with one more part. If `parts` fill a page, they are written to that page first."""
        if len(self.parts) < PARTS_PER_PAGE:
            return dataclasses.replace(self, parts=[*self.parts, entry])
        page_entry = self._write_page(directory)
        return dataclasses.replace(self, parts=[entry], previous_page=page_entry)

    def _write_page(self, directory: Path) -> JsonObject:
        """Write `parts` to a page. Returns the entry of the page."""
        file = directory / page_name(self.num_parts)
        write_json(
            file, {"format": FORMAT, "before": self.previous_page, "parts": self.parts}
        )
        totals = _totals(self.previous_page, self.parts)
        return {"file": file.name, **totals, **fingerprint(file)}

    def all_parts(self, directory: Path) -> list[JsonObject]:
        """Read the entries of all parts in order, skipped parts included. Raises `StorageError` for a damaged page."""
        parts_of_pages = [self.parts]
        page_entry = self.previous_page
        while page_entry:
            page = _read_page(directory, page_entry)
            parts_of_pages.append(page["parts"])
            page_entry = page["before"]
        parts_of_pages.reverse()
        return list(itertools.chain.from_iterable(parts_of_pages))

    def to_json(self) -> JsonObject:
        """Return the content of index.json, its checksum left out."""
        return {
            "format": FORMAT,
            "saved": self.num_saves,
            "parts": self.parts,
            "before": self.previous_page,
            "left_out": self.skipped_parts,
            "state": self.state,
        }

    @classmethod
    def from_json(cls, content: JsonObject) -> "Index":
        """Make an index from the content of index.json."""
        return cls(
            num_saves=content["saved"],
            parts=content["parts"],
            previous_page=content["before"],
            skipped_parts=content["left_out"],
            state=content["state"],
        )


def _read_page(directory: Path, entry: JsonObject) -> JsonObject:
    """Read the page that `entry` names. Raises `StorageError` if the page is damaged."""
    file = directory / entry["file"]
    damage = find_damage(file, entry)
    if damage:
        raise StorageError(
            f"the page {file} of the index {damage}: restore it, or {GIVE_UP}"
        )
    page = read_json(file)
    if not _is_page(page) or not _has_totals(page, entry):
        raise StorageError(
            f"{file} is not a page of this index: entries are missing, or of other types"
        )
    return page


def read_index(directory: Path) -> Index:
    """Read and check the index in `directory` and its pages. Raises `StorageError` if it is missing or damaged."""
    file = directory / INDEX
    if not file.exists():
        raise _missing_index(directory)
    content = read_json(file)
    if content.get("format") != FORMAT:
        raise StorageError(
            f"{file} has format {content.get('format')!r}, this version reads {FORMAT}: use the one that wrote it"
        )
    if content.pop("sha256", None) != checksum(content):
        raise StorageError(
            f"{file} has been altered: its checksum does not fit; restore it"
        )
    if not _is_index(content):
        raise StorageError(
            f"{file} is not the index of a frame: entries are missing, of other types, or name other places"
        )
    index = Index.from_json(content)
    if not _skips_own_parts(index, directory):
        raise StorageError(
            f"{file} is not the index of a frame: it leaves out parts that it does not have"
        )
    return index


def _missing_index(directory: Path) -> StorageError:
    if has_files(directory):
        return StorageError(
            f"{directory} holds parts of a frame, but no {INDEX}: restore it, or {GIVE_UP}"
        )
    return StorageError(
        f"{directory} holds no frame: it has no {INDEX}; pass the directory of a FrameStore"
    )


def write_index(directory: Path, index: Index) -> None:
    """Replace index.json by `index`, completely or not at all."""
    content = index.to_json()
    write_json(directory / INDEX, {**content, "sha256": checksum(content)})


def own_files(directory: Path, kind: str = "") -> list[Path]:
    """List the parts, states and pages in `directory`, named by an index or not; or one kind of them, say "state"."""
    return [file for file in directory.glob(f"{kind}*") if OWN.fullmatch(file.name)]


def has_files(directory: Path) -> bool:
    """Return whether `directory` has files of rows or of a state."""
    return any(own_files(directory, kind) for kind in ("part", "state"))


def state_name(number: int) -> str:
    """Return the file name of the `number`-th state."""
    return f"state-{number:06}.npz"


def part_name(number: int) -> str:
    """Return the file name of part `number`, counted from 0."""
    return f"part-{number:06}.parquet"


def page_name(num_parts: int) -> str:
    """Return the file name of the page that ends after `num_parts` parts."""
    return f"index-{num_parts:06}.json"


def checksum(content: JsonObject) -> str:
    """Compute the checksum of an index, which is saved in the index itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _totals(
    previous_page: JsonObject | None, parts: list[JsonObject]
) -> dict[str, int]:
    """Count {"parts", "rows"} up to the end of `parts`."""
    before = previous_page or {"parts": 0, "rows": 0}
    num_rows = sum(part["rows"] for part in parts)
    return {"parts": before["parts"] + len(parts), "rows": before["rows"] + num_rows}


def _has_totals(page: JsonObject, entry: JsonObject) -> bool:
    """Return whether a page has as many parts and rows as its entry says."""
    totals = _totals(page["before"], page["parts"])
    return all(entry[name] == number for name, number in totals.items())


# Validate untrusted indexes, whose checksum may be forged: expected file names inside this directory, integer sizes.


def _is_index(content: JsonObject) -> bool:
    """Return whether `content` has the keys and types that `Index` expects."""
    return (
        set(content) == INDEX_KEYS
        and _is_count(content["saved"])
        and _are_parts(content["before"], content["parts"])
        and _are_skipped_parts(content["left_out"])
        and (content["state"] is None or _is_state(content["state"]))
    )


def _is_page(content: JsonObject) -> bool:
    has_parts = set(content) == PAGE_KEYS and bool(
        content["parts"]
    )  # So that the chain of pages ends.
    return has_parts and _are_parts(content["before"], content["parts"])


def _are_parts(previous_page: Any, parts: Any) -> bool:
    """Return whether `parts` are entries that follow `previous_page`, each with the file name of its position."""
    if previous_page is not None and not _is_page_entry(previous_page):
        return False
    first = previous_page["parts"] if previous_page else 0
    return isinstance(parts, list) and all(
        _is_part(part, first + i) for i, part in enumerate(parts)
    )


def _is_part(entry: Any, number: int) -> bool:
    return _is_file_entry(entry, "rows") and entry["file"] == part_name(number)


def _is_page_entry(entry: Any) -> bool:
    return _is_file_entry(entry, "parts", "rows") and entry["file"] == page_name(
        entry["parts"]
    )


def _is_state(entry: Any) -> bool:
    has_name = _is_file_entry(entry) and STATE.fullmatch(entry["file"]) is not None
    return has_name and isinstance(entry.get("about"), dict)


def _are_skipped_parts(parts: Any) -> bool:
    return isinstance(parts, list) and all(_is_skipped_part(part) for part in parts)


def _is_skipped_part(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and _is_count(entry.get("rows"))
        and isinstance(entry.get("file"), str)
    )


def _skips_own_parts(index: Index, directory: Path) -> bool:
    """Return whether all skipped parts are parts of the index, each named once and with its number of rows."""
    rows_of = {part["file"]: part["rows"] for part in index.all_parts(directory)}
    names = {part["file"] for part in index.skipped_parts}
    has_repeats = len(names) < len(index.skipped_parts)
    return not has_repeats and all(
        rows_of.get(part["file"]) == part["rows"] for part in index.skipped_parts
    )


def _is_file_entry(entry: Any, *counts: str) -> bool:
    """Return whether `entry` has a file name, a SHA-256, a size and these counts."""
    if not isinstance(entry, dict):
        return False
    has_text = all(isinstance(entry.get(name), str) for name in ("file", "sha256"))
    return has_text and all(_is_count(entry.get(name)) for name in ("bytes", *counts))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
