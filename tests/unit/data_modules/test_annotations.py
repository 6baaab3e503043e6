"""CSV and JSON files as people have them, names that must stay in their folder, id lists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.data_modules.annotations import (
    IdList,
    Problems,
    file_name_problem,
    is_safe_id,
    items_of,
    objects_of,
    parse_seconds,
    read_csv,
    read_id_list,
    read_json,
    relative_path_problem,
)
from avcap_zoo.errors import DataError


def written(folder: Path, content: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path, **options: Any) -> list[tuple[int, dict[str, str]]]:
    problems = Problems(path)
    rows = read_csv(path, ("a", "b"), problems, hint="make it", **options)
    problems.raise_any()
    return [(row.line, row.values) for row in rows]


# -- CSV ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_line_ends(tmp_path: Path, mark: str, end: str) -> None:
    path = written(tmp_path, mark + end.join(["a,b", '1,"x, y"', "", '2,"say ""z"""']))
    assert rows_of(path) == [(2, {"a": "1", "b": "x, y"}), (4, {"a": "2", "b": 'say "z"'})]


@pytest.mark.parametrize("odd", ["\u2028", "\x0b", "\x0c", "\x85", "\u00a0"])
def test_rare_line_breaks_do_not_end_a_row(tmp_path: Path, odd: str) -> None:
    assert rows_of(written(tmp_path, f"a,b\n1,x{odd}y\n2,z\n")) == [
        (2, {"a": "1", "b": f"x{odd}y"}),
        (3, {"a": "2", "b": "z"}),
    ]


def test_the_line_of_a_row_is_where_it_begins(tmp_path: Path) -> None:
    path = written(tmp_path, 'a,b\n1,"two\nlines"\n2\n')
    with pytest.raises(DataError, match=r"file: line 4: 1 fields, wanted 2$"):
        rows_of(path)


def test_without_a_header(tmp_path: Path) -> None:
    path = written(tmp_path, '# a, b\n1,"x, y"\n2,z\n')
    assert [values for _, values in rows_of(path, has_header=False)] == [{"a": "1", "b": "x, y"}, {"a": "2", "b": "z"}]


def test_old_encodings_are_read_only_where_they_are_expected(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n1,caf\xe9\n".encode("cp1252"))
    assert rows_of(path, legacy_encoding="cp1252")[0][1]["b"] == "café"
    with pytest.raises(DataError, match="file is no CSV in UTF-8"):
        rows_of(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist; make it$"):
        rows_of(tmp_path / "gone")
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        rows_of(tmp_path)


def test_problems_come_in_the_order_of_lines_and_the_rest_is_counted(tmp_path: Path) -> None:
    problems = Problems(Path("f.csv"))
    for number in (11, 3, *range(20, 29)):
        problems.add(f"line {number}", "x")
    with pytest.raises(DataError) as caught:
        problems.raise_any()
    assert str(caught.value).startswith("f.csv: line 3: x; line 11: x; line 20: x")
    assert str(caught.value).endswith("line 25: x and 3 more")
    Problems(Path("f.csv")).raise_any()


@pytest.mark.parametrize("cut", range(10))
def test_a_csv_that_breaks_off_is_refused(tmp_path: Path, cut: int) -> None:
    content = "a,b\n" + "".join(f'{number},"caption, {number}"\n' for number in range(9))
    path = written(tmp_path, content[: len(content) * cut // 10])
    if cut == 8:  # right after a comma: the last caption is empty, which readers count as missing
        assert [values["b"] for _, values in rows_of(path)] == [*(f"caption, {number}" for number in range(7)), ""]
    else:
        with pytest.raises(DataError, match=r"no column|no rows|line \d+: (1 fields|unexpected end)"):
            rows_of(path)


# -- JSON --------------------------------------------------------------------------------------------------------


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_json(written(tmp_path, '\ufeff["é"]'), hint="") == ["é"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is no JSON: line 1 column 1"),
        ('[1,\n2,\n{"a": }]', "is no JSON: line 3 column 7"),
        ("[" * 100_000, "is no usable JSON"),
        (b'["caf\xe9"]', "is no JSON in UTF-8"),
        ('["a"]'.encode("utf-16"), "is no JSON in UTF-8"),
        (b"[\0]", "holds zero bytes"),
        ("<html>404</html>", "is no JSON: line 1 column 1"),
    ],
)
def test_files_that_are_no_json(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_json(written(tmp_path, content), hint="")


@pytest.mark.parametrize("cut", range(10))
def test_json_that_breaks_off_is_refused(tmp_path: Path, cut: int) -> None:
    content = json.dumps([{"id": number, "caption": "x"} for number in range(20)], indent=1)
    with pytest.raises(DataError, match=r"is no JSON: line \d+ column \d+"):
        read_json(written(tmp_path, content[: len(content) * cut // 10]), hint="")


@pytest.mark.parametrize(
    ("content", "key", "said"),
    [
        ({"a": 1, "b": 2}, None, r"holds an object with the keys 'a', 'b', wanted a list"),
        ([1], "data", r"holds a list, wanted an object with a list 'data'"),
        ({"data": 3}, "data", r"keys 'data', wanted an object with a list 'data'"),
        ("text", None, "holds a text, wanted a list"),
        (None, None, "holds null"),
        (3, None, "holds a number"),
        ([], None, "holds an empty list"),
    ],
)
def test_lists_that_are_not_there(content: Any, key: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        items_of(Path("f.json"), content, key)


def test_items_that_are_not_as_wanted() -> None:
    problems = Problems(Path("f.json"))
    assert objects_of([{"id": 1, "x": 2}, {"x": 2}, 3], ("id",), problems) == [("item 1", {"id": 1, "x": 2})]
    with pytest.raises(DataError, match="item 2: has no id; found x; item 3: is a number, wanted an object with id"):
        problems.raise_any()


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Ab-_9xyzQ1w", "--0w1YA1Hm4", "_9mgOkzm-xg", "91"])
def test_safe_ids(name: str) -> None:
    assert is_safe_id(name)


@pytest.mark.parametrize("name", ["", "../a", "a/b", "a.b", "a b", "é", "a\n", "a" * 300, 7, None, True])
def test_ids_that_are_not_safe(name: object) -> None:
    assert not is_safe_id(name)


@pytest.mark.parametrize("name", ["young artists.wav", 'it\'s "that" – ü 犬.wav', "a..b.wav", "-.wav", "$HOME", "*"])
def test_file_names_of_any_script(name: str) -> None:
    assert file_name_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "no file name"),
        ("  ", "no file name"),
        (None, "no file name"),
        (3, "no file name"),
        ("..", "another folder"),
        (".", "another folder"),
        ("../a.wav", "another folder"),
        ("/etc/passwd", "another folder"),
        ("a\\b", "another folder"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("\ud800", "control characters"),
        ("ü" * 200, "longer than 240 bytes"),
    ],
)
def test_file_names_that_may_not_be_used(name: object, said: str) -> None:
    assert said in file_name_problem(name)


def test_relative_paths() -> None:
    assert relative_path_problem("val2014/COCO_val2014_000000391895.jpg") == ""
    for path in ("../a.jpg", "a/../../b.jpg", "/a.jpg", "a//b.jpg", "a/./b", "a\\..\\b", "", None):
        assert relative_path_problem(path), path


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), (" 0.5 ", 0.5), (7, 7.0), ("-1", None), ("nan", None), ("inf", None),
                          ("1e999", None), ("1e308", None), (10**400, None), ("", None), (None, None), (True, None)]
)  # fmt: skip
def test_points_in_time(text: object, seconds: float | None) -> None:
    assert parse_seconds(text) == seconds


# -- id lists ----------------------------------------------------------------------------------------------------


def test_an_id_list(tmp_path: Path) -> None:
    content = "\ufeff# of the paper\r\nAb-_9xyzQ1w\r\n\r\n  #tag\r\nyoung artists\r\n".encode()
    path = written(tmp_path, content)
    expected = IdList(path, ("Ab-_9xyzQ1w", "#tag", "young artists"), hashlib.sha256(content).hexdigest())
    assert read_id_list(path) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no ids"), ("# none\n\n", "holds no ids"), ("a\nb\na\n", "line 3: id 'a' stands on line 1, too")],
)
def test_id_lists_that_are_none(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_id_list(written(tmp_path, content))


def test_an_id_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ids.txt does not exist; data.init_args.subset names it"):
        read_id_list(tmp_path / "ids.txt")
