"""All pages of the reference, with their index."""

from __future__ import annotations

from pathlib import Path

from orchestrator_core.plugins import Registry
from orchestrator_core.reference.configuration import configuration_page
from orchestrator_core.reference.kinds import COMMAND, KindPage, kind_pages
from orchestrator_core.reference.tables import prose


def reference_pages(registry: Registry, folder: Path) -> dict[str, str]:
    """Return the Markdown of each file of a folder, for the kinds that the plugins of a registry provide."""
    kinds = kind_pages(registry, folder)
    pages = {page.file: page.text for page in kinds}
    return {"README.md": _index(kinds), "configuration.md": configuration_page(), **pages}


def _index(kinds: list[KindPage]) -> str:
    rows = [f"| [{page.subject}]({page.file}) | {prose(page.summary)} |" for page in kinds]
    return "\n".join(
        (
            "# Reference",
            "",
            f"Every option, written from the classes that parse them: `{COMMAND}`.",
            "",
            "| page | about |",
            "|---|---|",
            "| [the files of a configuration](configuration.md) | What the core reads in each of them. |",
            *rows,
            "",
        )
    )
