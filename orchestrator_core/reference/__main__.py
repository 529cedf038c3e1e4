"""``python -m orchestrator_core.reference [FOLDER]`` writes the pages, by default into ``docs/reference``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchestrator_core.plugins import discover
from orchestrator_core.reference.pages import reference_pages


def main(arguments: list[str]) -> int:
    """Write the pages of the kinds that installed plugins provide. Other files in the folder stay."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator_core.reference", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/reference"), help="default: %(default)s")
    folder: Path = parser.parse_args(arguments).folder
    registry = discover()
    failed = [f"{plugin}: {plugin.error.strip().splitlines()[-1]}" for plugin in registry.plugins if plugin.error]
    if failed:
        print("\n".join(failed), file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    pages = reference_pages(registry, folder)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(pages)} pages in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
