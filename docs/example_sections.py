"""Extension of griffe that shows the section "Example:" of a docstring as code.

Griffe recognises only the title "Examples:".
"""

import re

import griffe


class ExampleSections(griffe.Extension):
    """Replace the title "Example:" by "Examples:" in every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
