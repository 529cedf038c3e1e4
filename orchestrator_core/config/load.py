"""A configuration folder to a :class:`Configuration`, with all of its problems."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import attrs
from attrs import define, field, frozen

from orchestrator_core.config.model import (
    AppConfig,
    Configuration,
    DomainFile,
    Endpoint,
    EndpointConfig,
    Section,
    Step,
    StepConfig,
    check_path_name,
)
from orchestrator_core.config.secrets import Redactor, Secret, resolve_secrets
from orchestrator_core.config.structure import Located, kind_of, salvage
from orchestrator_core.config.yaml import SHORTAGES, Document, load_document
from orchestrator_core.errors import Problem, did_you_mean

_SUFFIXES = (".yaml", ".yml", ".json")
"""Endings of files that are read, and of those that are told to have the wrong ending."""
CLOSE_NAME = 0.85
"""How alike the name of a file has to be to that of one that is read: ``databse.yaml``, not ``config.example.yaml``."""
CORE_KEYS = tuple(attribute.name for attribute in attrs.fields(AppConfig))


def _of_section(key: str) -> str:
    """Return the hint that a key of the file is one within a section of it; an empty string where it is not."""
    sections = attrs.fields(attrs.resolve_types(AppConfig))
    classes = ((each.name, cls) for each in sections for cls in get_args(each.type) or (each.type,) if attrs.has(cls))
    places = [f"'{name}.{key}'" for name, cls in classes if key in {option.name for option in attrs.fields(cls)}]
    return f"did you mean {' or '.join(places)}?" if places else ""


@frozen
class Image:
    """A configuration folder as it was at one moment: ``files`` is a copy, ``secrets`` what its secret files said."""

    files: Path
    secrets: Mapping[Path, str] = field(factory=dict, repr=False)


def load_configuration(
    folder: Path, environment: Mapping[str, str] | None = None, image: Image | None = None
) -> Configuration:
    """Read every file of the folder. Parts that are wrong are left out, and their problems are in the result.

    With an ``image`` its files are read instead; ``folder`` is still what paths in them are relative to. Raises
    ``OSError`` when the system is short of something for the moment, such as file descriptors.
    """
    image = image or Image(folder)
    loader = _Loader(image.files, folder, os.environ if environment is None else environment, image.secrets)
    hint = f"make one with: orchestrator init {folder}"
    if not image.files.is_dir():
        message = f"there is no configuration folder at {folder}"
        if image.files.is_file():
            message = f"{folder} is a file and no configuration folder"
            hint = f"give its folder: --config {folder.parent}"
        loader.problems.append(Problem(code="ORC100", message=message, hint=hint))
        return loader.finish()
    files = image.files
    loader.read_folder("", files)
    for path in _yaml_files(files / "domains", loader):
        loader.domain(path)
        scoped = path.with_suffix("")
        if scoped.is_dir():
            loader.read_folder(path.stem, scoped)
    for scoped in sorted(_folders(files / "domains")):
        if not scoped.with_name(f"{scoped.name}.yaml").exists():
            message = f"no domain file {loader.name(scoped)}.yaml belongs to this folder"
            loader.problems.append(Problem(loader.name(scoped), code="ORC112", message=message))
    if not loader.digests and not loader.problems:  # as while a deployment writes it anew
        loader.problems.append(Problem(code="ORC100", message=f"there is no configuration in {folder}", hint=hint))
    return loader.finish()


def configuration_paths(folder: Path) -> Iterator[Path]:
    """Yield what :func:`load_configuration` looks at: the folder, those in it, and their files."""
    scopes = [folder, *_folders(folder / "domains")]
    for place in (*scopes, folder / "domains", *(scope / "integrations" for scope in scopes)):
        yield place
        if place.is_dir():
            yield from (path for path in place.iterdir() if path.suffix in _SUFFIXES and not _hidden(path))


def _folders(folder: Path) -> Iterable[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not _hidden(path)] if folder.is_dir() else []


def _hidden(path: Path) -> bool:
    """Return whether a name is an editor's or a ConfigMap's own, such as ``.x.swp`` or ``..data``."""
    return path.name.startswith((".", "#")) or path.name.endswith("~")


def _yaml_files(folder: Path, loader: _Loader) -> list[Path]:
    try:
        paths = sorted(folder.iterdir()) if folder.exists() or folder.is_symlink() else []
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        message = f"cannot read: {error.strerror}"
        loader.problems.append(Problem(loader.name(folder), code="ORC101", message=message))
        loader.incomplete = True
        return []
    found = []
    for path in paths:
        if _hidden(path):
            continue
        if path.suffix == ".yaml":
            if loader.name(path).endswith(path.name):
                found.append(path)
            else:  # no domain, page or record can have such a name in it
                loader.problems.append(
                    Problem(loader.name(path), code="ORC101", message="the file's name is not UTF-8")
                )
        elif path.suffix in _SUFFIXES:
            loader.unread(path, _other_ending(path))
    return found


def _other_ending(path: Path) -> str:
    return f"only files that end in .yaml are read, not {path.suffix}"


def _meant(path: Path, names: Sequence[str]) -> str:
    """Return a hint at the one of the names that a path's is much alike, or nothing."""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=CLOSE_NAME)
    return f"did you mean '{close[0]}'?" if close else ""


@define
class _Parts:
    """A section while its files are being read."""

    located: Located
    sources: dict[str, Located] = field(factory=dict)
    operations: dict[str, Located] = field(factory=dict)


@define
class _Loader:
    folder: Path
    place: Path
    environment: Mapping[str, str]
    secret_texts: Mapping[Path, str]
    app: AppConfig = field(factory=AppConfig)
    app_located: Located | None = None
    problems: list[Problem] = field(factory=list)
    endpoints: list[Endpoint] = field(factory=list)
    descriptions: dict[str, str] = field(factory=dict)
    domain_files: dict[str, str] = field(factory=dict)
    sections: dict[tuple[str, str], _Parts] = field(factory=dict)
    digests: dict[str, str] = field(factory=dict)
    texts: dict[str, str] = field(factory=dict)
    secrets: list[str] = field(factory=list)
    secret_files: dict[Path, Secret | None] = field(factory=dict)
    telemetry: Located | None = None
    incomplete: bool = False

    def name(self, path: Path) -> str:
        """Return the name of a file as it is told, where ``?`` is for what is not UTF-8."""
        return path.relative_to(self.folder).as_posix().encode("utf-8", "replace").decode()

    def read(self, path: Path) -> Document:
        document = load_document(path, self.name(path))
        self.digests[document.name] = hashlib.sha256(document.text.encode()).hexdigest()
        self.texts[document.name] = document.shown_text()
        self.problems.extend(document.problems)
        if document.data is None and document.problems:
            self.incomplete = True
        return document

    def read_folder(self, scope: str, folder: Path) -> None:
        """Read ``config.yaml`` (global only), ``database.yaml`` and ``integrations/*.yaml``."""
        names = ["database.yaml"] if scope else ["config.yaml", "database.yaml"]
        self.look_for_unread(folder, names)
        for path in (*(folder / name for name in names), *_yaml_files(folder / "integrations", self)):
            if path.exists() or path.is_symlink():
                self.sectioned(scope, path, self.read(path))

    def look_for_unread(self, folder: Path, names: Sequence[str]) -> None:
        """Tell of files beside those that are read whose names say that they are meant to be."""
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            return  # those that are read tell what is wrong
        of_domain = "config.yaml" not in names
        for path in paths:
            if _hidden(path):
                continue
            if path.is_dir():
                self.look_at_folder(path, ["integrations"] if of_domain else ["integrations", "domains"])
                continue
            if path.suffix not in _SUFFIXES or path.name in names:
                continue
            if f"{path.stem}.yaml" in names:
                self.unread(path, _other_ending(path))
            elif path.name == "config.yaml":
                self.unread(path, "a domain has no config.yaml of its own", "remove it, or say this in config.yaml")
            elif hint := _meant(path, names):
                self.passed_over(path, "no file of this name is read", hint)
            elif of_domain:  # its folder has nothing else in it
                hint = "endpoints stand in the domain's own file, sources in database.yaml and integrations/"
                self.passed_over(path, "no file of this name is read", hint)

    def look_at_folder(self, path: Path, names: Sequence[str]) -> None:
        """Tell of a folder that is meant to be read and is not, or has one in it that is not."""
        if path.name == "integrations":
            for inner in sorted({file.parent for suffix in _SUFFIXES for file in path.glob(f"*/*{suffix}")}):
                if not _hidden(inner):
                    self.passed_over(inner, "folders in integrations/ are not read", "put the files in integrations/")
        elif path.name not in names and (hint := _meant(path, names)):
            self.passed_over(path, "no folder of this name is read", hint)

    def passed_over(self, path: Path, message: str, hint: str) -> None:
        self.problems.append(Problem(self.name(path), code="ORC112", message=message, hint=hint).as_warning())

    def unread(self, path: Path, message: str, hint: str = "rename it") -> None:
        self.problems.append(Problem(self.name(path), code="ORC112", message=message, hint=hint))

    def sectioned(self, scope: str, path: Path, document: Document) -> None:
        resolved = resolve_secrets(document, self.place, self.environment, self.secret_texts)
        self.problems.extend(resolved.problems)
        self.secrets.extend(resolved.secrets)
        self.secret_files.update(resolved.files)
        root = Located(document, (), resolved.data)
        if root.data is None:
            return
        if not isinstance(root.data, dict):
            self.problems.append(root.problem("ORC202", f"expected a mapping, got {kind_of(root.data)}"))
            return
        core = {key: value for key, value in root.data.items() if key in CORE_KEYS}
        if any(problem.path == "plugins_dir" for problem in resolved.problems):
            del core["plugins_dir"]  # what is left of it is another folder, whose files would be run
        if core and path == self.folder / "config.yaml":
            self.app_located = Located(document, (), core)
            app, problems = salvage(AppConfig, self.app_located)
            self.app = app or self.app
            self.problems.extend(problems)
            self.telemetry = root["telemetry"] if "telemetry" in core else None
        elif core:
            for key in core:
                message = f"'{key}' belongs in config.yaml"
                self.problems.append(root.problem("ORC205", message, key, at_key=True))
        for key in root.data:
            if key not in CORE_KEYS:
                self.section(scope, key, root[key])

    def section(self, scope: str, kind: str, located: Located) -> None:
        keys = set(located.data) if isinstance(located.data, dict) else set()
        is_setting = isinstance(located.data, str | int | float | list)
        meant = (is_setting and _of_section(kind)) or did_you_mean(kind, CORE_KEYS)
        if meant.startswith("did you mean") and not keys & {"sources", "operations"}:
            self.problems.append(located.problem("ORC201", f"unknown key '{kind}'", at_key=True, hint=meant))
            return
        parts = self.sections.setdefault((scope, kind), _Parts(located))
        if located.data is None:
            return
        if not isinstance(located.data, dict):
            message = f"expected a mapping with 'sources' and 'operations', got {kind_of(located.data)}"
            self.problems.append(located.problem("ORC202", message))
            return
        for key in located.data:
            if key not in ("sources", "operations"):
                hint = did_you_mean(key, ("sources", "operations"))
                message = f"unknown key '{key}' in the section of source type '{kind}'"
                self.problems.append(located.problem("ORC201", message, key, at_key=True, hint=hint))
        self.merge(parts.sources, located, "sources", f"{kind} source")
        self.merge(parts.operations, located, "operations", f"{kind} operation")

    def merge(self, into: dict[str, Located], located: Located, key: str, what: str) -> None:
        data = located.data.get(key)
        if data is None:
            return
        if not isinstance(data, dict):
            self.problems.append(located.problem("ORC202", f"expected a mapping, got {kind_of(data)}", key))
            return
        for name in data:
            item = located[key][name]
            if name in into:
                first = into[name]
                line = first.document.keys[first.path].line
                message = f"the {what} '{name}' is defined twice"
                hint = f"first defined at {first.document.name}:{line}"
                self.problems.append(item.problem("ORC206", message, at_key=True, hint=hint))
            else:
                into[name] = item

    def domain(self, path: Path) -> None:
        document = self.read(path)
        if document.data is None:
            return
        root = Located(document, (), document.data)
        if not isinstance(root.data, dict):
            self.problems.append(root.problem("ORC202", f"expected a mapping, got {kind_of(root.data)}"))
            return
        endpoints = root.data.get("endpoints")
        head = {key: value for key, value in root.data.items() if key != "endpoints"}
        config, problems = salvage(DomainFile, Located(document, (), head))
        self.problems.extend(problems)
        config = config or DomainFile()
        name = self.domain_name(config, root, path.stem)
        self.descriptions[name] = config.description
        if endpoints is None:
            endpoints = {}
        if not isinstance(endpoints, dict):
            message = f"expected a mapping of names to endpoints, got {kind_of(endpoints)}"
            self.problems.append(root.problem("ORC202", message, "endpoints"))
            return
        for key in endpoints:
            self.endpoint(name, path.stem, key, root["endpoints"][key])

    def domain_name(self, config: DomainFile, root: Located, stem: str) -> str:
        if config.domain_id and config.domain_name and config.domain_id != config.domain_name:
            message = f"domain_id is '{config.domain_id}' but domain_name is '{config.domain_name}'"
            self.problems.append(root.problem("ORC207", message, "domain_name", hint="give one of them"))
        key = "domain_id" if config.domain_id else "domain_name"
        name = config.domain_id or config.domain_name or stem
        if unfit := check_path_name(name):
            self.problems.append(root.problem("ORC208", unfit, key))
        if other := self.domain_files.get(name):
            message = f"the domain '{name}' is defined twice"
            self.problems.append(root.problem("ORC206", message, key, hint=f"first defined in {other}"))
        self.domain_files.setdefault(name, root.document.name)
        return name

    def endpoint(self, domain: str, scope: str, name: str, located: Located) -> None:
        if unfit := check_path_name(name):
            self.problems.append(located.problem("ORC208", unfit, at_key=True))
        data = located.data
        entries = data.get("data_sources") if isinstance(data, dict) else None
        head = {key: value for key, value in data.items() if key != "data_sources"} if isinstance(data, dict) else data
        config, problems = salvage(EndpointConfig, Located(located.document, located.path, head))
        self.problems.extend(problems)
        if entries is not None and not isinstance(entries, list):
            message = f"expected a list of steps, got {kind_of(entries)}"
            self.problems.append(located.problem("ORC202", message, "data_sources"))
            return
        steps: list[Step] = []
        unreadable: list[Located] = []
        for index in range(len(entries or ())):
            step, problems = salvage(StepConfig, located["data_sources"][index])
            self.problems.extend(problems)
            if step:
                steps.append(Step(step, located["data_sources"][index]))
            else:
                unreadable.append(located["data_sources"][index])
        if config:
            endpoint = Endpoint(domain, scope, name, config, tuple(steps), located, tuple(unreadable))
            self.endpoints.append(endpoint)

    def finish(self) -> Configuration:
        whole = hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()
        sections: dict[tuple[str, str], Section] = {
            key: Section(parts.located, parts.sources, parts.operations) for key, parts in self.sections.items()
        }
        return Configuration(
            folder=self.place,
            app=self.app,
            app_located=self.app_located,
            descriptions=self.descriptions,
            endpoints=tuple(self.endpoints),
            sections=sections,
            files=self.digests,
            generation=whole[:12],
            redactor=Redactor.of(self.secrets),
            secret_files=self.secret_files,
            secrets=hashlib.sha256(repr(self.secrets).encode()).hexdigest(),
            telemetry=self.telemetry,
            problems=tuple(self.problems),
            incomplete=self.incomplete,
            texts=self.texts,
        )
