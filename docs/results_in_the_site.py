"""Hook of MkDocs that copies into the site the files of results/ to which pages refer.

Pages refer to these files as `../results/NAME`, their path in the repository.
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
    """Add the pages of results/, and each file to which a page refers."""
    texts = [page.content_string for page in files.documentation_pages()]
    names = {*PAGES, *(name for text in texts for name in LINK.findall(text))}
    root = Path(config.docs_dir).parent
    for name in sorted(names):
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Change the links: in the site, results/ is in the same directory as the pages."""
    return LINK.sub(r"](\1", markdown)
