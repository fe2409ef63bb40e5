"""The tools that hold the documentation to what the program does find what they are there to find."""

from __future__ import annotations

from pathlib import Path

import check_docs
import check_photos
import command_reference
import pytest
import readme_commands

from verydeep.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent


def test_the_readme_shows_the_two_commands_that_ci_runs() -> None:
    found = readme_commands.commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found.keys() == {"try", "test"}
    assert "verydeep classify examples/photos" in found["try"]
    assert "pytest" in found["test"]


def test_a_command_is_the_block_right_after_its_mark() -> None:
    text = "<!-- ci: a -->\n\n```bash\none\ntwo\n```\n\n```sh\nthree\n```\n"
    text += "<!-- ci: b -->\n```sh\nfour\n```\n"
    assert readme_commands.commands(text) == {"a": "one\ntwo", "b": "four"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- ci: a -->\nwords\n```sh\none\n```\n", "1 .* marks, 0 of them"),
        ("<!-- ci: a -->\n```python\none\n```\n", "1 .* marks, 0 of them"),
        ("<!-- ci: a -->\n```sh\none\n```\n" * 2, "two blocks are marked"),
    ],
)
def test_a_mark_that_cannot_be_run_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        readme_commands.commands(text)


def test_links_of_the_documentation_lead_somewhere() -> None:
    assert list(check_docs.broken_links(ROOT)) == []


@pytest.mark.parametrize(
    ("link", "complaint"),
    [
        ("[a](other.md)", None),
        ("[a](other.md#two-words)", None),
        ("[a](#here-it-is)", None),
        ("[a](https://example.org/none)", None),
        ("`[a](none.md)`", None),
        ("```\n[a](none.md)\n```", None),
        ("[a](none.md)", "there is no none.md"),
        ("![a](none.png 'title')", "there is no none.png"),
        ("[a]: none.md", "there is no none.md"),
        ('<img src="none.png">', "there is no none.png"),
        ("[a](other.md#three)", "no heading makes #three"),
        ("[a](../outside.md)", "leads out of the repository"),
    ],
)
def test_a_broken_link_is_found(tmp_path: Path, link: str, complaint: str | None) -> None:
    (tmp_path / "outside.md").write_text("outside")
    root = tmp_path / "repository"
    root.mkdir()
    (root / "other.md").write_text("# One\n\n## Two `words`\n")
    (root / "page.md").write_text(f"# Here it is\n\n{link}\n")
    found = list(check_docs.broken_links(root))
    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1
        assert complaint in found[0]


def test_the_command_reference_has_a_section_for_every_verb() -> None:
    page = command_reference.reference()
    for verb in VERBS:
        assert f"\n### verydeep {verb}\n" in page
    assert list(check_docs.stale_reference(command_reference.PAGE)) == []


def test_a_stale_command_reference_is_found(tmp_path: Path) -> None:
    page = tmp_path / "commands.md"
    assert "is missing" in next(check_docs.stale_reference(page))
    page.write_text(command_reference.reference().replace("--json", "--jason"), encoding="utf-8")
    lines = list(check_docs.stale_reference(page))
    assert "out of date" in lines[0]
    assert any(line.startswith("-") and "--jason" in line for line in lines)


def test_every_photo_has_its_row() -> None:
    table = (check_photos.PHOTOS / "README.md").read_text(encoding="utf-8")
    photos = {path.name for path in check_photos.PHOTOS.iterdir()} - {"README.md"}
    assert check_photos.expected(table).keys() == photos


TABLE = """\
| `bee.jpg` | a honey bee | bee (n02206856) | who | CC0 1.0 | where | nothing |
| `cat.png` | a cat | tabby, tabby cat (n02123045) | who | CC0 1.0 | where | nothing |
"""
RIGHT = """\
photos/bee.jpg
  bee       ████████████████████████  99.1%
  fly       ░░░░░░░░░░░░░░░░░░░░░░░░   0.4%
photos/cat.png  not sure
  tabby cat  ####....  41.0%
  fur coat   ##......  20.5%
"""


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (RIGHT, None),
        (RIGHT.replace("tabby cat", "tabby"), None),
        (RIGHT.replace("bee  ", "fly  "), "bee.jpg: fly"),
        (RIGHT.replace("99.1%", ""), "bee.jpg: fly"),
        (RIGHT.replace("  99.1%", " 199.1%"), "no probability"),
        (RIGHT.split("photos/cat.png")[0], "cat.png: no label"),
    ],
)
def test_a_wrong_answer_is_found(output: str, complaint: str | None) -> None:
    found = check_photos.complaints(output, TABLE, {"bee.jpg", "cat.png"})
    if complaint is None:
        assert found == []
    else:
        assert any(complaint in line for line in found), found


def test_photos_and_rows_must_match() -> None:
    found = check_photos.complaints(RIGHT, TABLE, {"bee.jpg", "dog.jpg"})
    assert found == [
        "dog.jpg: no row in the README's table",
        "cat.png: in the table, but not there",
    ]
