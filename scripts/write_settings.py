"""Write the table of settings into docs/settings.md; a test compares the two."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import SecretStr

from whisper_byoc.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
BEGIN = "<!-- settings: written by `make settings` -->\n"
END = "<!-- end of settings -->\n"


def table() -> str:
    """The settings as a Markdown table."""
    return "\n".join(["| variable | default | what it is |", "|---|---|---|", *rows()]) + "\n"


def rows() -> Iterator[str]:
    """A row for every field, named as its environment variable, in order of declaration."""
    for group_name, group in Settings.model_fields.items():
        for name, field in type(group.default).model_fields.items():
            value = getattr(group.default, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            shown = ",".join(value) if isinstance(value, tuple) else "" if value is None else value
            variable = f"WHISPER_{group_name}_{name}".upper()
            yield f"| `{variable}` | `{shown}` | {field.description} |"


def with_table(text: str) -> str:
    """`text` with the table between its two marks. Exits when a mark is missing."""
    if BEGIN not in text or END not in text:
        sys.exit(f"{PAGE} lacks a mark, expected {BEGIN.strip()} and {END.strip()}")
    before, rest = text.split(BEGIN, 1)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


@click.command()
def main() -> None:
    """Bring the table of settings up to date."""
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
