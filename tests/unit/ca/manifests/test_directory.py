"""A directory of manifests: what stays in force when files break, double or go."""

import hashlib
import os
import subprocess
from pathlib import Path

from ca.manifests import DirectoryState, Namespace, ObjectKey, Pod, directory_digest, read_directory


def pod(name: str, ip: str) -> str:
    return f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {ip}}}\n"


def key(name: str) -> ObjectKey:
    return ObjectKey("Pod", "default", name)


def address(state: DirectoryState, name: str) -> str:
    found = state.objects[key(name)]
    assert isinstance(found, Pod)
    return found.addresses[0]


def test_only_manifest_files_are_read(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml", "c.json", ".d.yaml", "e.yaml~", ".#f.yaml", "#g.yaml#", "h.yaml.swp", "README.md"):
        (tmp_path / name).write_text(
            '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "' + name[0] + '"}}'
        )
    state = read_directory(tmp_path)
    assert sorted(state.files) == ["a.yaml", "b.yml", "c.json"]
    assert state.objects[ObjectKey("Namespace", "", "a")] == Namespace(name="a")
    assert state.problems == ()


def test_a_broken_file_keeps_its_last_good_version_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a", "10.1.0.1") + pod("b", "10.1.0.2"))
    before = read_directory(tmp_path)
    (tmp_path / "a.yaml").write_text(pod("a", "10.1.0.9") + pod("b", "nowhere"))
    after = read_directory(tmp_path, before)
    assert address(after, "a") == "10.1.0.1"
    (problem,) = after.problems
    assert (problem.file, problem.document, problem.line, problem.path) == ("a.yaml", 2, 10, "status.podIP")
    (tmp_path / "a.yaml").write_text(pod("a", "10.1.0.9"))
    mended = read_directory(tmp_path, after)
    assert address(mended, "a") == "10.1.0.9"
    assert key("b") not in mended.objects
    assert mended.problems == ()
    assert mended.touched == {key("a"), key("b")}


def test_a_removed_file_takes_its_objects_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a", "10.1.0.1"))
    before = read_directory(tmp_path)
    (tmp_path / "a.yaml").unlink()
    after = read_directory(tmp_path, before)
    assert after.objects == {}
    assert after.touched == {key("a")}
    assert before.objects != {}, "the state before is not changed in place"


def test_a_missing_directory_keeps_the_last_good_state(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    nothing = read_directory(directory)
    assert nothing.objects == {}
    assert "No such file or directory" in str(nothing.problems[0])
    directory.mkdir()
    (directory / "a.yaml").write_text(pod("a", "10.1.0.1"))
    there = read_directory(directory, nothing)
    assert there.problems == ()
    directory.rename(tmp_path / "elsewhere")
    gone = read_directory(directory, there)
    assert address(gone, "a") == "10.1.0.1"
    assert len(gone.problems) == 1
    (tmp_path / "elsewhere").rename(directory)
    assert read_directory(directory, gone).problems == ()


def test_an_object_in_two_files_is_in_force_from_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(pod("x", "10.1.0.2"))
    one = read_directory(tmp_path)
    (tmp_path / "a.yaml").write_text(pod("x", "10.1.0.1"))
    two = read_directory(tmp_path, one)
    assert address(two, "x") == "10.1.0.1"
    (problem,) = two.problems
    assert problem.file == "b.yaml"
    assert "Pod default/x is in force from a.yaml" in problem.reason
    (tmp_path / "a.yaml").unlink()
    three = read_directory(tmp_path, two)
    assert address(three, "x") == "10.1.0.2"
    assert three.problems == ()
    assert read_directory(tmp_path).objects == three.objects


def test_files_that_can_not_be_manifests_are_problems_not_failures(tmp_path: Path) -> None:
    (tmp_path / "directory.yaml").mkdir()
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: café\n".encode("latin-1"))
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    (tmp_path / "empty.yaml").write_text("")
    state = read_directory(tmp_path)
    assert [(each.file, each.line) for each in state.problems] == [
        ("directory.yaml", 0),
        ("fifo.yaml", 0),
        ("latin.yaml", 2),
    ]
    assert read_directory(tmp_path, state) is state, "nothing new, nothing made"


def test_only_the_named_files_are_read(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(pod(name, "10.1.0.1"))
    before = read_directory(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(pod(name, "10.1.0.2"))
    after = read_directory(tmp_path, before, names={"a.yaml"})
    assert (address(after, "a"), address(after, "b")) == ("10.1.0.2", "10.1.0.1")
    assert after.touched == {key("a")}


def test_the_digest_is_of_what_is_on_disk_even_if_broken(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(pod("b", "10.1.0.1"))
    (tmp_path / "a.json").write_text("broken")
    state = read_directory(tmp_path)
    expected = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.json", "b.yaml")}
    assert state.digest == directory_digest(expected)
    by_hand = subprocess.run(
        "sha256sum *.yaml *.json | LC_ALL=C sort -k2 | sha256sum",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert by_hand.stdout.split()[0] == state.digest
