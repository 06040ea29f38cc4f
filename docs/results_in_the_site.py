"""Hook of MkDocs: puts the files of results/ that pages refer to into the site.

Pages refer to them as `../results/NAME`, which is where they lie for a reader of the repository.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

LINK = re.compile(r"\]\(\.\./(results/[^)#]+)")
PAGES = (
    "results/README.md",
    "results/REPLICATION.md",
)  # In the navigation of mkdocs.yml.


def on_files(files, config):
    """Add the pages and each file that a page refers to."""
    texts = [page.content_string for page in files.documentation_pages()]
    names = {*PAGES, *(name for text in texts for name in LINK.findall(text))}
    root = Path(config.docs_dir).parent
    for name in sorted(names):
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """In the site, results/ lies beside the pages."""
    return LINK.sub(r"](\1", markdown)
