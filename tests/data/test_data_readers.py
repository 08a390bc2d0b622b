"""Files as people really have them: encodings, quotes, headers, shapes of JSON."""

import csv
import json
import os

import pytest

from finetune.data.formats.readers import read_file
from finetune.data.schema.columns import find_columns
from finetune.data.schema.rows import Rows
from finetune.errors import DataError

TEXTS = ["Ein schöner Film – “große” Klasse", "langweilig, zäh", "naïve but très joli", "£5 well spent", "plain words"]


def read(path):
    tables = read_file(path, path.name)
    assert list(tables) == [""]
    return tables[""]


def write(tmp_path, content, name="data.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_western_text_survives_in_any_encoding(tmp_path, encoding):
    path = write(tmp_path, "text;label\n" + "".join(f"{text};{i % 2}\n" for i, text in enumerate(TEXTS * 20)),
                 encoding=encoding)
    table = read(path)
    assert table.columns == ["text", "label"]
    assert table.column("text") == TEXTS * 20
    named = [note for note in table.notes if encoding.split("-")[0] in note]
    assert bool(named) == (not encoding.startswith("utf-8"))


@pytest.mark.parametrize(("encoding", "text"), [
    ("cp1251", "Очень хороший фильм, мне понравилось смотреть его"),
    ("koi8_r", "Очень хороший фильм, мне понравилось смотреть его"),
    ("cp932", "これはとても良い映画です。もう一度見たいと思います"),
    ("gb18030", "这部电影非常好看，我很喜欢。演员的表演也很出色"),
    ("cp949", "이 영화는 정말 재미있어요. 다시 보고 싶은 영화입니다"),
])
def test_other_scripts_are_recognised_among_ascii_rows(tmp_path, encoding, text):
    rows = ["plain ascii about a film\t0"] * 200 + [f"{text}\t1"] * 5
    table = read(write(tmp_path, "text\tlabel\n" + "\n".join(rows), "data.tsv", encoding))
    assert table.column("text")[-1] == text


@pytest.mark.parametrize(("encoding", "texts"), [
    ("cp1250", ["Bardzo dobry film, gorąco polecam", "Przesyłka dotarła z opóźnieniem, żałuję"]),
    ("cp1250", ["Velmi dobrý film, vřele doporučuji", "Zásilka přišla příliš pozdě"]),
    ("iso8859_2", ["Kiváló minőség, őszintén szólva", "A szállítás késett, űrhajó"]),
    ("cp1252", ["Livraison rapide, très satisfait", "l'été à la façade, où ça"]),
    ("cp1252", ["Größe passt, Qualität süß", "viel zu spät – ärgerlich"]),
    ("cp1252", ["Rigtig god film, jeg kan varmt anbefale den på søndag", "ærgerligt, prisen er for høj"]),
    ("cp1252", ["Win £1000 cash now", "I’ll be there"]),
    ("cp1254", ["Çok güzel bir film, tavsiye ederim", "Kargo çok geç geldi, şikayetçiyim, ığdır"]),
])
def test_latin_encodings_are_told_apart_by_their_alphabets(tmp_path, encoding, texts):
    rows = [f"{text}\t{row % 2}" for row in range(20) for text in texts]
    table = read(write(tmp_path, "text\tlabel\n" + "\n".join(rows), "data.tsv", encoding))
    assert table.column("text") == texts * 20


@pytest.mark.parametrize("text", ["free entry £50 prize", "très bien", "I’ll be there"])
def test_a_single_accent_is_not_half_a_chinese_character(tmp_path, text):
    path = write(tmp_path, "text,label\n" + "plain words,0\n" * 50 + f"{text},1\n", encoding="cp1252")
    assert read(path).column("text")[-1] == text


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "iso2022_jp"])
def test_japanese_is_known_by_its_kana(tmp_path, encoding):
    lines = "".join(f"この映画はとても{['良い', '悪い'][row % 2]}と思います番号{row},{row % 2}\n" for row in range(30))
    table = read(write(tmp_path, "テキスト,ラベル\n" + lines, encoding=encoding))
    assert table.columns == ["テキスト", "ラベル"]
    assert find_columns(table).text == ("テキスト",)


def test_a_line_that_is_not_utf8_costs_that_line_and_no_other(tmp_path):
    lines = [f"café number {row},{row % 2}\n".encode("latin-1" if row == 7 else "utf-8") for row in range(20)]
    table = read(write(tmp_path, b"text,label\n" + b"".join(lines)))
    assert table.column("text")[3] == "café number 3"
    rows = Rows.read(table, "train", find_columns(table))
    assert [(row.line, row.reason) for row in rows.rejected] == [
        (9, "'text' holds bytes that are not UTF-8, which the rest of the file is")]
    assert len(rows.texts) == 19


def test_the_line_above_the_header_in_excels_files_names_the_delimiter(tmp_path):
    table = read(write(tmp_path, "sep=;\ntext;label\na, b and c;0\nd;1\n"))
    assert (table.columns, table.rows, table.lines) == (["text", "label"], [["a, b and c", "0"], ["d", "1"]], [3, 4])


def test_quotes_behind_a_backslash_are_quotes(tmp_path):
    table = read(write(tmp_path, 'text,label\n' + '"he said \\"no, never\\", twice",1\n"plain, too",0\n' * 5))
    assert table.rows[:2] == [['he said "no, never", twice', "1"], ["plain, too", "0"]]
    assert not table.rejected


def test_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(DataError, match="data.csv: not text"):
        read(write(tmp_path, b"\x89PNG\r\n\x00\x81\xff" + bytes(range(256)) * 4))


@pytest.mark.parametrize("content", [b"", b"  \n\n", b"\xef\xbb\xbf", "text,label\n", "text\tlabel\r\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_empty_and_header_only_files_are_refused(tmp_path, name, content):
    with pytest.raises(DataError, match="a\\."):
        read(write(tmp_path, content, name))


def test_quoted_newlines_quotes_and_delimiters_round_trip(tmp_path):
    rows = [['one "quoted" word, and a comma', "a"], ["first line\nsecond, line\nthird, line", "b"], ["", "a"],
            ['"', "b"], ["NA", "null"], ["null", "a"], ["  spaced ", "b"]]
    path = tmp_path / "data.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    table = read(path)
    assert table.rows == rows
    assert table.lines == [2, 3, 6, 7, 8, 9, 10]
    assert not table.rejected


def test_a_tsv_with_stray_quotes_loses_no_row(tmp_path):
    """GLUE's files: quotes are characters, and most of them are never closed."""
    rows = [("1", '" The plan does not fit .', 'He said : " it fits "'), ("0", "plain", '"quoted" at first'),
            ("1", 'ends with "', '"'), *[("0", f"text {i}", 'so "so" it is') for i in range(50)]]
    content = "label\tsentence1\tsentence2\n" + "".join("\t".join(row) + "\n" for row in rows)
    table = read(write(tmp_path, content, "train.tsv"))
    assert [tuple(row) for row in table.rows] == rows
    assert any("not balanced" in note for note in table.notes)


def test_a_properly_quoted_tsv_is_unquoted(tmp_path):
    table = read(write(tmp_path, 'text\tlabel\n"a\ttab and\na newline"\t1\nplain\t0\n"x ""y"" z"\t1\n', "data.tsv"))
    assert table.column("text") == ["a\ttab and\na newline", "plain", 'x "y" z']


def test_a_quote_that_is_never_closed_costs_at_most_its_own_row(tmp_path):
    rows = [f"text number {i},{i % 2}" for i in range(40)]
    rows[10] = '"an open quote,1'
    rows[20] = '"an open quote, and a comma,1'
    table = read(write(tmp_path, "text,label\n" + "\n".join(rows)))
    assert len(table.rows) == 39
    assert '"an open quote' in table.column("text")
    assert [(row.line, row.reason) for row in table.rejected] == [(22, "a quote is opened and never closed")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path, delimiter):
    rows = [["a, b; and so on", "pos"], ["no more; than, that", "neg"], ["third | one", "pos"]]
    path = tmp_path / "data.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["text", "label"], *rows])
    assert read(path).rows == rows


@pytest.mark.parametrize("content", [
    "ham\tOk lar, joking\nspam\tFree entry\nham\tU dun say so\n",
    "3,Wall St. Bears Claw Back\n4,Oil and Economy Cloud Outlook\n",
    "gj04\t1\t\tOur friends won't buy this analysis .\ngj04\t0\t*\tOne more .\n",
])
def test_a_file_without_a_header_keeps_its_first_row(tmp_path, content):
    table = read(write(tmp_path, content))
    assert len(table.rows) == content.count("\n")
    assert table.columns == [f"column_{i + 1}" for i in range(len(table.columns))]
    assert table.lines[0] == 1


@pytest.mark.parametrize("header", ["text,label", "v1,v2", "Satz,Urteil", "Review Text,Stars"])
def test_a_header_is_a_header(tmp_path, header):
    table = read(write(tmp_path, header + "\na b c d,0\ne f g h,1\n"))
    assert table.columns == header.split(",")
    assert table.lines == [2, 3]


def test_values_beyond_the_header_are_kept_aside_and_short_rows_rejected(tmp_path):
    table = read(write(tmp_path, "v1,v2,,,\nham,one,,,\nspam,two, three,,\nham\nham,four,,,\n"))
    assert table.columns == ["v1", "v2"]
    assert table.rows == [["ham", "one"], ["spam", "two"], ["ham", "four"]]
    assert table.spilled == {1: [" three"]}
    assert [(row.line, row.reason) for row in table.rejected] == [(4, "1 fields, the header has 2")]


def test_json_lines_report_what_is_not_an_object(tmp_path):
    lines = ['{"text": "a", "label": 1}', "{broken", "[1, 2]", "", '{"text": "b", "label": 0, "more": {"x": 1}}',
             "[" * 9999]
    table = read(write(tmp_path, "\n".join(lines), "a.jsonl"))
    assert table.rows == [["a", 1, None], ["b", 0, 1]]
    assert table.columns == ["text", "label", "more.x"]
    assert table.lines == [1, 5]
    assert [row.line for row in table.rejected] == [2, 3, 6]


ROWS = [{"text": "NA", "label": "a"}, {"text": "null", "label": "b"}]


@pytest.mark.parametrize("content", [
    ROWS, {"data": ROWS}, {"version": "1.0", "data": ROWS}, {"text": ["NA", "null"], "label": ["a", "b"]},
    {"text": {"0": "NA", "1": "null"}, "label": {"0": "a", "1": "b"}}, {"data": {"train": ROWS}},
    {"columns": ["text", "label"], "index": [0, 1], "data": [["NA", "a"], ["null", "b"]]},
    [["NA", "a"], ["null", "b"]],
])
def test_shapes_of_json(tmp_path, content):
    assert read(write(tmp_path, json.dumps(content), "a.json")).rows == [["NA", "a"], ["null", "b"]]


def test_json_lines_under_the_name_json(tmp_path):
    assert read(write(tmp_path, "\n".join(map(json.dumps, ROWS)), "a.json")).rows == [["NA", "a"], ["null", "b"]]


def test_json_with_splits_inside(tmp_path):
    path = write(tmp_path, json.dumps({"train": ROWS, "test": ROWS[:1]}), "a.json")
    assert {name: len(table.rows) for name, table in read_file(path, "a.json").items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize("train", [[["NA", "a"], ["null", "b"]], {"column_1": ["NA", "null"], "column_2": ["a", "b"]}])
@pytest.mark.parametrize("around", [lambda splits: splits, lambda splits: {"version": 1, "data": splits}])
def test_json_with_rows_as_lists_or_columns_by_split(tmp_path, train, around):
    path = write(tmp_path, json.dumps(around({"train": train, "oos": train, "val": train})), "a.json")
    tables = read_file(path, "a.json")
    assert list(tables) == ["train", "oos", "val"]
    assert tables["val"].columns == ["column_1", "column_2"]
    assert tables["train"].rows == [["NA", "a"], ["null", "b"]]


def test_a_split_without_rows_inside_a_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="a.json .'test'.: the split has no rows"):
        read_file(write(tmp_path, json.dumps({"train": ROWS, "test": []}), "a.json"), "a.json")


def test_one_array_under_the_name_jsonl(tmp_path):
    path = write(tmp_path, json.dumps(ROWS, indent=1), "a.jsonl")
    assert read(path).rows == [["NA", "a"], ["null", "b"]]


def test_columns_inside_columns_have_dotted_names(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"data": {"body": {"text": "a b"}}, "label": 1}]
    lines = read(write(tmp_path, json.dumps(rows[0]), "a.jsonl"))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for table in (lines, read(tmp_path / "a.parquet")):
        assert (table.columns, table.rows) == (["data.body.text", "label"], [["a b", 1]])


def test_parquet_bytes_are_text_and_decimals_numbers(tmp_path):
    from decimal import Decimal

    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["é".encode()], "raw": [b"\xff"], "score": [Decimal("1.50")]}),
                        tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").rows == [["é", b"\xff", 1.5]]


@pytest.mark.parametrize("content", ["3", '"text"', "[1, 2]", "{}", "[]", '{"a": 1}', "{bad", "[" * 99999])
def test_json_of_another_shape_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="a.json"):
        read(write(tmp_path, content, "a.json"))


def test_parquet_keeps_the_names_of_its_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    path = tmp_path / "train.parquet"
    datasets.Dataset.from_dict({"text": ["a", None], "label": [1, 0]}, features=features).to_parquet(path)
    table = read(path)
    assert table.rows == [["a", 1], [None, 0]]
    assert table.label_names == {"label": ["no", "yes"]}


def test_broken_parquet_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a readable parquet file"):
        read(write(tmp_path, b"PAR1" + os.urandom(50), "a.parquet"))


def test_another_format_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"\.docx.*allowed: \.csv"):
        read(write(tmp_path, b"PK", "a.docx"))


def columns_of(tmp_path, content, name="a.jsonl", **given):
    return find_columns(read(write(tmp_path, content, name)), **given)


@pytest.mark.parametrize(("row", "text", "label"), [
    ({"sentence1": "a b", "sentence2": "c d", "label": 1, "idx": 3}, ("sentence1", "sentence2"), ("label",)),
    ({"premise": "a b", "hypothesis": "c d", "gold_label": "x"}, ("premise", "hypothesis"), ("gold_label",)),
    ({"Quality": "1", "#1 ID": "12", "#2 ID": "13", "#1 String": "a b", "#2 String": "c d"},
     ("#1 String", "#2 String"), ("Quality",)),
    ({"id": 1, "Review Text": "a b c", "Rating": 3}, ("Review Text",), ("Rating",)),
    ({"id": "x1", "comment_text": "a b c", "toxic": 0, "insult": 1}, ("comment_text",), ("toxic", "insult")),
    ({"utterance": "a b c d", "intent": "greet"}, ("utterance",), ("intent",)),
    ({"title": "a b", "text": "c d e f g", "label": 0}, ("text",), ("label",)),
])
def test_columns_are_found_by_their_names(tmp_path, row, text, label):
    columns = columns_of(tmp_path, "\n".join([json.dumps(row)] * 5))
    assert (columns.text, columns.label) == (text, label)
    assert set(columns.reasons) >= {*text, *label}


def test_columns_are_found_by_their_content(tmp_path):
    lines = [f"g{i % 5}\t{i % 2}\t*\tsome words number {i} here" for i in range(50)]
    columns = columns_of(tmp_path, "\n".join(lines), "train.tsv")
    assert (columns.text, columns.label) == (("column_4",), ("column_2",))
    assert "words" in columns.reasons["column_4"]


def test_a_guess_that_could_be_another_column_is_noted(tmp_path):
    lines = "".join(f"{row};{['Hilfe', 'Frage'][row % 2]};das Paket {row} ist da;{'ABC'[row % 3]};zwei Worte hier\n"
                    for row in range(40))
    table = read(write(tmp_path, "Nr;Betreff;Inhalt;Art;Mehr\n" + lines))
    found = find_columns(table)
    assert (found.text, found.label) == (("Inhalt",), ("Betreff",))
    assert found.notes == ["the label column is guessed to be 'Betreff'; it could be 'Art': decide with label_column"]
    assert not find_columns(table, label_column="Art").notes


@pytest.mark.parametrize(("given", "message"), [
    ({"text_column": "txt"}, "no column 'txt'.*did you mean text"),
    ({"label_column": "lable"}, "no column 'lable'.*did you mean label"),
    ({"text_column": ["text", "b"]}, "no column 'b'"),
    ({"text_column": "label", "label_column": "label"}, "both text and label"),
])
def test_a_column_that_is_not_there_gets_the_nearest(tmp_path, given, message):
    with pytest.raises(DataError, match=message):
        columns_of(tmp_path, '{"text": "a b c", "label": 1}', **given)


def test_a_table_without_text_or_label_says_what_it_has(tmp_path):
    with pytest.raises(DataError, match="no column looks like text.*'id', 'n'"):
        columns_of(tmp_path, "id,n\n1,2\n3,4\n", "a.csv")
    with pytest.raises(DataError, match="no column looks like a label.*'text'"):
        columns_of(tmp_path, '{"text": "a b c"}\n{"text": "d e f"}')
