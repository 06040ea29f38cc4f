"""Extension of griffe: a docstring's section "Example:" is one of "Examples:", which griffe reads and draws as code."""

import re

import griffe


class ExampleSections(griffe.Extension):
    """Write the section's title as griffe knows it."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
