"""Trees that a sandbox has left are removed, whatever it has made of them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from headrace_runtimes.trees import remove_tree


def dig(path, levels):
    """A chain of directories, made as user code can: one below the other, by relative names."""
    code = f"import os\nfor _ in range({levels}): os.mkdir('d'); os.chdir('d')\nopen('f', 'w').close()"
    subprocess.run([sys.executable, "-c", code], cwd=path, check=True)


def test_a_tree_deeper_than_any_recursion_goes(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    dig(top, 3000)
    assert remove_tree(top)
    assert not top.exists()


def test_links_are_removed_and_not_followed(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    kept.chmod(0o755)
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    for place in (top, top / "a", top / "a" / "b"):
        (place / "link").symlink_to(kept)
        (place / "file").symlink_to(kept / "file")
        (place / "gone").symlink_to("/nowhere")
    assert remove_tree(top)
    assert not top.exists()
    assert (kept / "file").read_text() == "x"
    assert kept.stat().st_mode & 0o777 == 0o755
    link = tmp_path / "link"
    link.symlink_to(kept)
    assert remove_tree(link)
    assert not os.path.lexists(link)
    assert (kept / "file").exists()


def test_what_is_no_tree_goes_too(tmp_path):
    assert remove_tree(tmp_path / "never")
    file = tmp_path / "file"
    file.write_text("x")
    assert remove_tree(file)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "top").mkdir()
    os.mkfifo(tmp_path / "top" / "fifo")
    assert remove_tree(tmp_path / "top")
    assert remove_tree(tmp_path / "fifo")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_its_owner_can_remove_what_is_closed_to_itself(tmp_path):
    top = tmp_path / "top"
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "a" / "b" / "file").write_text("x")
    for root, _, files in os.walk(tmp_path):
        for name in (root, *(os.path.join(root, f) for f in files)):
            os.chown(name, 65534, 65534)
    for path, mode in ((top / "a/b/c", 0o000), (top / "a/b", 0o555), (top / "a", 0o000)):
        path.chmod(mode)
    for up in tmp_path.parents:
        # Pytest's own directories, of which each worker of a parallel run has one more.
        if up.is_relative_to(tempfile.gettempdir()) and up != Path(tempfile.gettempdir()):
            up.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os._exit(0 if remove_tree(top) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not top.exists()
