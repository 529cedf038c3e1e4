"""Copies of a configuration folder say what the folder says, and what cannot be read of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.states import read_steadily
from orchestrator_core.testing.service import write_files
from orchestrator_core.workers.images import ordered, take

FILES = {
    "config.yaml": "server: {port: 1}",
    "database.yaml": "database: {}",
    "integrations/a.yaml": "api: {}",
    "domains/d.yaml": "endpoints: {e: {response_mapping: 1}}",
    "domains/d/integrations/b.yaml": "api: {}",
}


def test_a_copy_is_the_same_configuration_and_stays_it(tmp_path: Path) -> None:
    write_files(tmp_path / "config", {**FILES, "notes.txt": "", "domains/.swp": "{", "domains/x.yml": ""})
    taken = take(tmp_path / "config", tmp_path / "copy")
    whole = load_configuration(tmp_path / "config")
    assert taken.configuration.generation == whole.generation
    assert taken.configuration.problems == whole.problems
    assert [problem.code for problem in whole.problems] == ["ORC112"]
    write_files(tmp_path / "config", {"domains/d.yaml": "endpoints: {"})
    again = load_configuration(tmp_path / "config", image=taken.image)
    assert again.generation == whole.generation


@pytest.mark.parametrize("gone", ["config.yaml", "domains/d.yaml", "domains", "integrations/b.yaml", ""])
def test_what_somebody_has_cleaned_up_of_a_copy_is_there_again_for_the_next_worker(tmp_path: Path, gone: str) -> None:
    write_files(tmp_path / "config", {**FILES, "domains/x.yml": ""})
    (tmp_path / "config/integrations/b.yaml").symlink_to("nowhere")  # which cannot be read, and that is told
    taken = take(tmp_path / "config", tmp_path / "runtime/copy")
    place = tmp_path / "runtime" / "copy" / gone if gone else tmp_path / "runtime"
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    again = load_configuration(tmp_path / "config", image=ordered(taken.order()))
    assert again.generation == taken.configuration.generation
    assert again.problems == taken.configuration.problems


def test_a_link_that_is_turned_while_the_folder_is_read_mixes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        files = {"domains/a.yaml": f"description: '{number}'", "domains/b.yaml": f"description: '{number}'"}
        write_files(tmp_path / str(number), files)
    folder, read_bytes = tmp_path / "config", Path.read_bytes

    def read(path: Path) -> bytes:
        text = read_bytes(path)
        if path.parent.parent == folder and not (tmp_path / "turned").exists():
            (tmp_path / "turned").symlink_to("2")
            (tmp_path / "turned").rename(folder)
            (tmp_path / "turned").touch()
        return text

    monkeypatch.setattr(Path, "read_bytes", read)
    for read_whole in (
        lambda: take(folder, tmp_path / "copy").configuration,
        lambda: read_steadily(folder, lambda: load_configuration(folder)),
    ):
        (tmp_path / "turned").unlink(missing_ok=True)
        folder.unlink(missing_ok=True)
        folder.symlink_to("1")
        assert read_whole().descriptions == {"a": "2", "b": "2"}


@pytest.mark.parametrize("name", [*FILES, "integrations", "domains", "domains/d/integrations"])
def test_a_link_to_nothing_is_a_problem_and_not_a_file_less(tmp_path: Path, name: str) -> None:
    """Such as to a folder that is not mounted: without it the service would lose endpoints, or its limits."""
    folder = tmp_path / "config"
    write_files(folder, FILES)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert take(folder, tmp_path / "one").configuration.problems == ()
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    whole = load_configuration(folder)
    assert [(problem.file, problem.code) for problem in whole.problems[:1]] == [(name, "ORC101")]
    assert take(folder, tmp_path / "other").configuration.problems == whole.problems


def test_a_pipe_among_the_files_is_a_problem_of_the_copy_too(tmp_path: Path) -> None:
    """Reading it would hold the reload up for ever."""
    write_files(tmp_path / "config", FILES)
    os.mkfifo(tmp_path / "config/domains/pipe.yaml")
    problems = take(tmp_path / "config", tmp_path / "copy").configuration.problems
    assert [(problem.file, problem.code) for problem in problems] == [("domains/pipe.yaml", "ORC101")]


def test_a_file_where_a_folder_belongs_is_a_problem_and_not_a_folder_less(tmp_path: Path) -> None:
    """As git leaves it of a link, where it may not make links."""
    config = tmp_path / "config"
    write_files(config, {"config.yaml": "{}", "domains": "../domains", "integrations": "../integrations"})
    taken = take(config, tmp_path / "copy")
    expected = [f"{name}: ORC101 cannot read: Not a directory" for name in ("integrations", "domains")]
    for configuration in (taken.configuration, load_configuration(config)):
        assert [str(problem) for problem in configuration.problems] == expected


def test_a_name_that_is_not_utf_8_is_a_problem_that_can_be_told(tmp_path: Path) -> None:
    write_files(tmp_path / "config", FILES)
    for name in (b"domains/caf\xe9.yaml", b"integrations/caf\xe9.yaml"):
        (tmp_path / "config" / os.fsdecode(name)).write_text("{}")
    (tmp_path / "config/domains" / os.fsdecode(b"th\xe9")).mkdir()
    taken = take(tmp_path / "config", tmp_path / "copy")
    for configuration in (taken.configuration, load_configuration(tmp_path / "config")):
        assert [str(problem) for problem in configuration.problems] == [
            "integrations/caf?.yaml: ORC101 the file's name is not UTF-8",
            "domains/caf?.yaml: ORC101 the file's name is not UTF-8",
            "domains/th?: ORC112 no domain file domains/th?.yaml belongs to this folder",
        ]
