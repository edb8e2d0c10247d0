import pathlib

import pytest

from plait.tables import check_output, replacing


def test_an_output_is_there_only_when_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def interrupted():
        with replacing(path) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_asking_whether_an_output_can_be_written_leaves_nothing(tmp_path):
    check_output(tmp_path / "a.keras", ".keras")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "suffix", "error", "match"),
    [
        ("gone/a.keras", ".keras", FileNotFoundError, r"folder of an output must exist.*mkdir -p"),
        ("a.h5", ".keras", ValueError, r"ends in \.keras\. Received: .*a\.h5.*a\.keras"),
        ("", None, ValueError, r"An output is a file\. Received: the folder"),
        ("/proc/a.keras", ".keras", PermissionError, r"must be writable\. Received: '/proc/a"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_early(tmp_path, path, suffix, error, match):
    if path.startswith("/proc") and not pathlib.Path("/proc").is_dir():
        pytest.skip("this system has no folder that even root cannot write")
    with pytest.raises(error, match=match):
        check_output(tmp_path / path, suffix)
