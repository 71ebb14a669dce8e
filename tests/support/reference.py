"""The commands' own help in docs/commands.md, written or checked: python -m tests.support.reference [--fix]."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.commands import every_command

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def reference() -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    environment.pop("DSH_MODEL", None)
    parts = ["# Commands\n\nMade from the program's own help by `make fix`.\n"]
    for command in every_command():
        shown = subprocess.run(
            [sys.executable, "-m", "dsh_cli", *command.split(), "--help"],
            capture_output=True,
            text=True,
            env=environment,
        )
        lines = "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines())
        parts.append(f"\n## dsh {command}\n\n```text\n{lines}\n```\n")
    return "".join(parts)


def main() -> int:
    text = reference()
    if "--fix" in sys.argv:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"{PAGE} does not say what --help says; mend it with: make fix")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
