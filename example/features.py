"""The example's feature store: Feast's registry and a SQLite online store, made by Feast itself."""

from __future__ import annotations

import importlib.util
from contextlib import redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path
from types import ModuleType

from example.tables import AS_OF


def materialise(repository: Path) -> None:
    """Apply the definitions of a repository and write the features to its online store."""
    from feast import Entity, FeatureStore, FeatureView

    definitions = _load(repository / "definitions.py")
    store = FeatureStore(repo_path=str(repository))
    store.apply([each for each in vars(definitions).values() if isinstance(each, Entity | FeatureView)])
    day = timedelta(days=1)
    with redirect_stdout(StringIO()):  # it prints bars of its own
        store.materialize(AS_OF - day, AS_OF + day)
    store._get_provider().online_store._conn.close()  # Feast has no way to ask for it


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
