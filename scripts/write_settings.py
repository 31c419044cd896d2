"""Write the table of settings into docs/settings.md; a test compares the two."""

import sys
from pathlib import Path

import click

from whisper_byoc.settings import setting_rows

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
BEGIN = "<!-- settings: written by `make settings` -->\n"
END = "<!-- end of settings -->\n"


def table() -> str:
    """The settings as a Markdown table."""
    rows = (f"| `{row.variable}` | `{row.default}` | {row.description} |" for row in setting_rows())
    return "\n".join(["| variable | default | what it is |", "|---|---|---|", *rows]) + "\n"


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
