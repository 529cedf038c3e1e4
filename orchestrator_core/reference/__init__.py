"""The reference pages, written from the option classes that parse the configuration.

``python -m orchestrator_core.reference`` writes them all into ``docs/reference``; a test compares. A page for each
source type and model type that an installed plugin provides comes by itself.
"""

from orchestrator_core.reference.configuration import configuration_page
from orchestrator_core.reference.kinds import kind_pages
from orchestrator_core.reference.pages import reference_pages
from orchestrator_core.reference.tables import options_reference

__all__ = ["configuration_page", "kind_pages", "options_reference", "reference_pages"]
