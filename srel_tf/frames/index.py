"""The index of a `FrameStore`: which parts hold its rows, and which state belongs to them. Knows no TensorFlow.

    DIR/index.json            the latest parts, the state, and the page before
    DIR/index-000064.json …   a page: the parts before the 64th that are on no earlier page, and the page before

Every page is named with its size and SHA-256 by what comes after it, and index.json has a checksum of its own: a chain
in which nothing is altered or lost unnoticed. Pages are never written again, so that however many parts there are, a
commit writes `PARTS` entries at most, and a page now and then.
"""

import dataclasses
import hashlib
import json
import re

from srel_tf.errors import StorageError
from srel_tf.files import fault, fingerprint, read_json, write_json

INDEX, FORMAT, PARTS = "index.json", 2, 64
STATE = re.compile(r"state-\d{6,12}\.npz")
OWN = re.compile(r"part-\d{6,12}\.parquet|state-\d{6,12}\.npz|index-\d{6,12}\.json")
GIVE_UP = "give the rows up: FrameStore(path, write=True, anew=True)"


@dataclasses.dataclass(frozen=True)
class Index:
    """What index.json says.

    saved: how often rows or a state have been saved. parts: entries {file, rows, bytes, sha256} of the latest parts.
    before: the page of the parts before those, {file, parts, rows, bytes, sha256}, with the numbers of parts and rows
    up to its end. left_out: {file, rows, fault} of parts that are read no more. state: {file, bytes, sha256, about}.
    """

    saved: int = 0
    parts: list = dataclasses.field(default_factory=list)
    before: dict | None = None
    left_out: list = dataclasses.field(default_factory=list)
    state: dict | None = None

    @property
    def num_parts(self):
        """Parts so far, those that are left out included."""
        return _reach(self.before, self.parts)["parts"]

    @property
    def num_rows(self):
        """Rows of the parts that are read."""
        return _reach(self.before, self.parts)["rows"] - sum(part["rows"] for part in self.left_out)

    def added(self, directory, entry):
        """The index with one part more; the parts that fill a page go there first."""
        if len(self.parts) < PARTS:
            return dataclasses.replace(self, parts=[*self.parts, entry])
        file = directory / page_name(self.num_parts)
        write_json(file, {"format": FORMAT, "before": self.before, "parts": self.parts})
        page = {"file": file.name, **_reach(self.before, self.parts), **fingerprint(file)}
        return dataclasses.replace(self, parts=[entry], before=page)

    def all_parts(self, directory):
        """The entries of all parts in order, those that are left out included. `StorageError` for a damaged page."""
        pages, before = [self.parts], self.before
        while before:
            file = directory / before["file"]
            wrong = fault(file, before)
            if wrong:
                raise StorageError(f"the page {file} of the index {wrong}: restore it, or {GIVE_UP}")
            page = read_json(file)
            if not _is_page(page) or not _reach(page["before"], page["parts"]).items() <= before.items():
                raise StorageError(f"{file} is no page of this index: entries are missing, or of other types")
            pages.append(page["parts"])
            before = page["before"]
        return [entry for page in reversed(pages) for entry in page]


def read_index(directory):
    """The index in `directory`, its pages checked. `StorageError` where there is none, or it is damaged."""
    file = directory / INDEX
    if not file.exists():
        lost = has_files(directory)
        remedy = f"restore it, or {GIVE_UP}" if lost else "look elsewhere"
        raise StorageError(f"{directory} holds {'parts of a frame' if lost else 'no frame'}, but no {INDEX}: {remedy}")
    content = read_json(file)
    if content.get("format") != FORMAT:
        raise StorageError(
            f"{file} has format {content.get('format')!r}, this version reads {FORMAT}: use the one that wrote it"
        )
    if content.pop("sha256", None) != seal(content):
        raise StorageError(f"{file} has been altered: its checksum does not fit; restore it")
    if not _is_index(content):
        raise StorageError(f"{file} is no index of a frame: entries are missing, of other types, or name other places")
    del content["format"]
    index = Index(**content)
    rows = {part["file"]: part["rows"] for part in index.all_parts(directory)}
    names = [part["file"] for part in index.left_out]
    if len(set(names)) < len(names) or any(rows.get(part["file"]) != part["rows"] for part in index.left_out):
        raise StorageError(f"{file} is no index of a frame: it leaves out parts that it does not have")
    return index


def write_index(directory, index):
    """Let `index` take the place of the one before, in one act."""
    content = {"format": FORMAT, **dataclasses.asdict(index)}
    write_json(directory / INDEX, {**content, "sha256": seal(content)})


def own_files(directory, kind=""):
    """The parts, states and pages that lie there, named by an index or not; of one kind, say "state"."""
    return [file for file in directory.glob(f"{kind}*") if OWN.fullmatch(file.name)]


def has_files(directory):
    """Whether rows or a state lie there."""
    return any(own_files(directory, kind) for kind in ("part", "state"))


def state_name(number):
    """Of the state that is saved at the `number`-th time."""
    return f"state-{number:06}.npz"


def part_name(number):
    """Of the part before which there are `number` others."""
    return f"part-{number:06}.parquet"


def page_name(parts):
    """Of the page whose last part is the `parts`-th."""
    return f"index-{parts:06}.json"


def seal(content):
    """The checksum of an index, which it holds itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _reach(before, parts):
    """The numbers of parts and rows up to the end of `parts`."""
    done = before or {"parts": 0, "rows": 0}
    return {"parts": done["parts"] + len(parts), "rows": done["rows"] + sum(part["rows"] for part in parts)}


# A checksum proves no good will: names stay within the directory, and are those of their place; sizes are numbers.


def _is_index(content):
    """Whether it has what `Index` says, each thing of its type."""
    state, left_out = content.get("state"), content.get("left_out")
    return (
        set(content) == {"format", *(field.name for field in dataclasses.fields(Index))}
        and _is_count(content["saved"])
        and _are_parts(content["before"], content["parts"])
        and isinstance(left_out, list)
        and all(isinstance(p, dict) and _is_count(p.get("rows")) and isinstance(p.get("file"), str) for p in left_out)
        and (
            state is None
            or (_is_entry(state) and STATE.fullmatch(state["file"]) and isinstance(state.get("about"), dict))
        )
    )


def _is_page(content):
    return (
        set(content) == {"format", "before", "parts"}
        and bool(content["parts"])  # So that the chain ends.
        and _are_parts(content["before"], content["parts"])
    )


def _are_parts(before, parts):
    """Whether they are entries of parts that follow the page `before`, under the names that they have there."""
    if before is not None and not (_is_entry(before, "parts", "rows") and before["file"] == page_name(before["parts"])):
        return False
    first = before["parts"] if before else 0
    return isinstance(parts, list) and all(
        _is_entry(part, "rows") and part["file"] == part_name(first + i) for i, part in enumerate(parts)
    )


def _is_entry(entry, *counts):
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("file", "sha256"))
        and all(_is_count(entry.get(name)) for name in ("bytes", *counts))
    )


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
