"""What keeps secrets out of what a command says besides its answer: its log, and how it fails."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType

from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.secrets import Redactor

Mask = Callable[[str], str]


def mask_of(folder: Path | None) -> Mask:
    """Return what masks the secrets of a configuration, which is read once there is something to mask."""

    @cache
    def redactor() -> Redactor:
        try:
            return Redactor() if folder is None else load_configuration(folder).redactor
        except Exception:  # that may be the very defect which is to be told, and then nothing was read
            return Redactor()

    return lambda text: redactor()(text)


def show_tracebacks_masked(mask: Mask) -> None:
    """Have Python mask the traceback that it ends with."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(mask("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = show
