"""Whether a model was saved with other versions than those that are to load it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = {
    ("sklearn", "sklearn_version"): "scikit-learn",
    ("lightgbm", "lgb_version"): "lightgbm",
    ("xgboost", "xgb_version"): "xgboost",
}
_ALSO = {"xgboost": "xgboost-cpu"}


def differences(flavors: Mapping[str, Mapping[str, Any]], used: str) -> list[str]:
    """Return a sentence for each of Python and the flavor's library that differs in more than its last number."""
    found = []
    saved_python = str(flavors.get("python_function", {}).get("python_version") or "")
    if used in ("sklearn", "python_function") and _differ(saved_python, platform.python_version()):
        found.append(f"it was saved with Python {saved_python}, this is {platform.python_version()}")
    for (flavor, key), package in _PACKAGES.items():
        saved = str(flavors.get(flavor, {}).get(key) or "")
        installed = _installed(package)
        if flavor == used and installed and _differ(saved, installed):
            found.append(f"it was saved with {package} {saved}, {installed} is installed")
    return found


def _installed(package: str) -> str:
    for name in (package, _ALSO.get(package, package)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def _differ(saved: str, here: str) -> bool:
    return bool(saved) and saved.split(".")[:2] != here.split(".")[:2]
