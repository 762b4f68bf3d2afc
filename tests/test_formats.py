"""What each format becomes: known files with known texts, the awkward ones as their README says."""

import datetime
import json
from pathlib import Path

import pytest

from engine.corpus.formats import shapes, table
from engine.corpus.formats.rows import Options, Refused, Row, Warned
from tests.conftest import PROJECT, shared

PLAIN = Options()


def found(path: Path, options: Options = PLAIN) -> tuple[list[Row], list[Refused], list[Warned]]:
    items = [item for source in table.sources([path]) for item in table.read(source, options)]
    return tuple([item for item in items if isinstance(item, kind)] for kind in (Row, Refused, Warned))


def text(path: Path, options: Options = PLAIN) -> str:
    (row,), refused, _ = found(path, options)
    assert not refused
    return row.content["source"]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


SRT = "1\n00:00:01,000 --> 00:00:02,000\nHello <i>there</i>\n\n2\n00:00:02,000 --> 00:00:03,000\nfriend &amp; co\n"


def test_subrip_line_ends_tags_and_entities(tmp_path):
    assert text(written(tmp_path / "a.srt", SRT)) == "Hello there friend & co"
    assert text(written(tmp_path / "b.srt", SRT.replace("\n", "\r\n"))) == "Hello there friend & co"


def test_times_and_speakers_are_kept_or_dropped_by_option(tmp_path):
    path = written(
        tmp_path / "a.vtt",
        "WEBVTT\n\nNOTE not text\n\n00:01.000 --> 00:02.000\n<v Ann>Hi.</v>\n\n1:02:03.000 --> 1:02:04.000\n<v Ann>Me again.\n\n"
        "1:02:05.000 --> 1:02:06.000 align:start\n<v Bob>Yes?\n",
    )
    assert text(path) == "Ann: Hi. Me again.\nBob: Yes?"
    assert text(path, Options(speakers=False)) == "Hi. Me again. Yes?"
    assert text(path, Options(times=True)) == "[0:00:01] Ann: Hi.\n[1:02:03] Ann: Me again.\n[1:02:05] Bob: Yes?"


def test_rolling_captions_say_everything_once(tmp_path):
    cue = "00:00:0{}.000 --> 00:00:0{}.000\n{}\n\n"
    rows = ["so today\n<00:00:00.500><c>we</c> talk", "we talk\nabout knees", "about knees", "about knees\nand ankles"]
    path = written(tmp_path / "a.vtt", "WEBVTT\n\n" + "".join(cue.format(n, n + 1, row) for n, row in enumerate(rows)))
    assert text(path) == "so today we talk about knees and ankles"


def test_people_who_repeat_themselves_are_left_alone(tmp_path):
    words = ["No.", "No.", "I said stop.", "Why?", "Because.", "It hurts."]
    cues = "".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{word}\n\n" for n, word in enumerate(words, 1))
    assert text(written(tmp_path / "a.srt", cues)) == "No. No. I said stop. Why? Because. It hurts."


def test_substation_by_pysubs2(tmp_path):
    head = "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name\nStyle: Default\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    line = "Dialogue: 0,0:00:0{}.00,0:00:09.00,Default,{},0,0,0,,{}\n"
    path = written(tmp_path / "a.ass", head + line.format(1, "Ann", r"{\i1}Hello\Nthere") + line.format(2, "Bob", "Hi"))
    assert text(path) == "Ann: Hello there\nBob: Hi"


def test_youtube_json3_whisper_and_transcript_lists(tmp_path):
    json3 = {"events": [{"tStartMs": 0, "id": 1}, {"tStartMs": 1000, "segs": [{"utf8": "one"}, {"utf8": " two"}]}, {"tStartMs": 1500, "aAppend": 1, "segs": [{"utf8": "\n"}]}, {"tStartMs": 2000, "segs": [{"utf8": "three"}]}]}  # fmt: skip
    assert text(written(tmp_path / "a.json", json.dumps(json3))) == "one two three"
    cues = [{"text": "later", "start": 5, "duration": 1}, {"text": "first", "start": 1.5, "duration": 1}]
    assert text(written(tmp_path / "b.json", json.dumps(cues))) == "first later"
    whisper = {
        "text": "one two",
        "segments": [{"start": 0, "text": " one"}, {"start": 1, "text": " two"}],
        "language": "en",
    }
    assert text(written(tmp_path / "c.json", json.dumps(whisper))) == "one two"


def test_textgrids_of_one_recording_are_merged_by_time(tmp_path):
    def grid(speaker, *cues):
        rows = "".join(
            f'intervals [{n}]:\n xmin = {a}\n xmax = {b}\n text = "{t}"\n' for n, (a, b, t) in enumerate(cues, 1)
        )
        return f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 9\ntiers? <exists>\nsize = 1\nitem []:\n item [1]:\n class = "IntervalTier"\n name = "{speaker}"\n xmin = 0\n xmax = 9\n intervals: size = {len(cues)}\n{rows}'

    written(tmp_path / "v_doctor.TextGrid", grid("Doctor", (0, 1, 'He said ""hi"".'), (2, 3, "Bye.")))
    written(tmp_path / "v_patient.TextGrid", grid("Patient", (1, 2, "Yes.")))
    assert text(tmp_path) == 'Doctor: He said "hi".\nPatient: Yes.\nDoctor: Bye.'
    short = '"ooTextFile"\n"TextGrid"\n0\n9\n<exists>\n1\n"IntervalTier"\n"A"\n0\n9\n1\n0\n9\n"short form"\n'
    (tmp_path / "alone").mkdir()
    assert text(written(tmp_path / "alone" / "s.TextGrid", short)) == "A: short form"


def test_jats_body_and_abstract_without_tables_and_references(tmp_path):
    path = written(
        tmp_path / "a.xml",
        '<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta><article-id pub-id-type="doi">10.1/x</article-id>'
        "<title-group><article-title>A <italic>b</italic></article-title></title-group><permissions><license xlink:href='https://l'/></permissions>"
        "<abstract><p>Short.</p></abstract></article-meta></front><body><sec><title>Intro</title><p>One<xref>1</xref> two.</p>"
        "<table-wrap><p>no</p></table-wrap></sec></body><back><ref-list><ref>no</ref></ref-list></back></article>",
    )
    (row,), _, _ = found(path)
    assert row.content == {
        "id": "10.1/x",
        "title": "A b",
        "source": "Intro\nOne two.",
        "summary": "Short.",
        "licence": "https://l",
    }


def test_entities_of_xml_are_never_expanded(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><article><body><p>&y;</p></body></article>'
    assert found(written(tmp_path / "a.xml", bomb))[1][0].reason == "not readable XML"


@pytest.mark.parametrize(
    ("row", "source", "summary"),
    [
        ({"instruction": "Sum up.", "input": "long", "output": "short"}, "long", "short"),
        ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi.", "hi"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q", "a"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "r"}]}, {"role": "assistant", "content": "b"}]}, "User: q\nAssistant: a\nUser: r", "b"),
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [0]}}, "c", "a"),
        ({"article": ["One.", "Two."], "abstract": ["<S> Short. </S>"]}, "One. Two.", "Short."),
        ({"source": ["One.", "Two."], "target": ["A.", "B."], "paper_id": "x"}, "One. Two.", "A."),
        ({"QUESTION": "t", "CONTEXTS": ["x", "y"], "LABELS": ["AIM", "END"], "LONG_ANSWER": "a"}, "AIM: x\nEND: y", "a"),
        ({"transcript": "t", "Note ": "n"}, "t", "n"),
    ],
)  # fmt: skip
def test_shapes(row, source, summary):
    (shape,) = shapes.shaped(row, {}, join=False)
    assert (shape.content["source"], shape.content["summary"]) == (source, summary)
    assert shape.guess


def test_qmsum_gives_a_record_per_query_in_one_group():
    meeting = {"meeting_transcripts": [{"speaker": "A", "content": "Hi {disfmarker} you ."}], "general_query_list": [{"query": "q", "answer": "a"}], "specific_query_list": [{"query": "r", "answer": "b"}]}  # fmt: skip
    first, second = shapes.shaped(meeting, {}, join=False)
    assert first.content["source"] == "A: Hi you ." == second.content["source"]
    assert [s.content["instruction"] for s in (first, second)] == ["q", "r"]


def test_our_own_keys_and_mapped_keys_are_no_guess():
    assert shapes.shaped({"id": "1", "source": "s", "summary": "t"}, {}, False)[0].guess == ""
    (mapped,) = shapes.shaped({"a": "s", "b": "t", "source": "other"}, {"source": "a", "summary": "b"}, False)
    assert (mapped.content["source"], mapped.content["summary"], mapped.guess) == ("s", "t", "")
    assert shapes.shaped({"a": "s"}, {"source": "x"}, False) == "no key x, which --map names"


def test_tables_name_the_line_of_a_bad_row(tmp_path):
    path = written(tmp_path / "a.csv", b'id,text,note\n1,"two\r\nlines",x\n2,y\n3,\xff,z\n4,"a""b",w\n')
    rows, refused, _ = found(path)
    assert [row.content["text"] for row in rows] == ["two\r\nlines", 'a"b']
    assert [(r.where, r.reason) for r in refused] == [("line 4", "row of another length"), ("line 5", "not UTF-8")]
    assert "byte" in refused[1].detail
    (row,), _, warned = found(written(tmp_path / "b.csv", "id;text\n1;a,b\n"))
    assert row.content == {"id": "1", "text": "a,b"} and "separated by ;" in warned[0].reason


def test_json_in_every_arrangement_gives_the_same_rows(tmp_path):
    rows = [{"id": str(n), "source": "s\u2028", "summary": "t"} for n in range(5)]
    arrangements = {
        "lines.json": "\n".join(map(json.dumps, rows)),
        "array.jsonl": json.dumps(rows, indent=2),
        "pretty.jsonl": "\n".join(json.dumps(row, indent=2) for row in rows),
        "keyed.json": json.dumps({row["id"]: row for row in rows}),
        "bom.jsonl": "\ufeff" + "\r\n\r\n".join(map(json.dumps, rows)),
    }
    for name, content in arrangements.items():
        got, refused, _ = found(written(tmp_path / name, content))
        assert [row.content for row in got] == rows and not refused, name


def test_a_broken_array_keeps_what_stands_before_the_break(tmp_path):
    rows, refused, _ = found(written(tmp_path / "a.json", '[{"id": "1"}, {"id": "2"}, {"id": '))
    assert len(rows) == 2 and refused[0].where == "after entry 2"


def test_parquet_is_read_or_refused_with_the_remedy(tmp_path):
    import pyarrow
    from pyarrow import parquet

    day, number = pyarrow.array([datetime.date(2020, 1, 2)]), pyarrow.array([float("nan")])
    parquet.write_table(pyarrow.table({"id": ["1"], "text": ["a"], "day": day, "n": number}), tmp_path / "a.parquet")
    assert found(tmp_path / "a.parquet")[0][0].content == {"id": "1", "text": "a", "day": "2020-01-02", "n": None}
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    assert found(tmp_path / "b.parquet")[1][0].reason == "not a readable Parquet file"


def test_every_format_is_in_the_table_of_the_readme():
    assert table.markdown() in (PROJECT / "README.md").read_text(encoding="utf-8")


# (rows, reasons of refusals, reasons of warnings) of every awkward file, as their README asks.
AWKWARD = {
    "handmade/01_truncated_last_line.jsonl": (2, ["line 3: not valid JSON"], []),
    "handmade/07_non_utf8.jsonl": (2, [f"line {n}: not UTF-8" for n in (2, 3, 4)], []),
    "handmade/08_utf8_bom.jsonl": (3, [], []),
    "handmade/11_control_ansi_raw_bytes.jsonl": (2, ["line 2: not valid JSON"], []),
    "handmade/14_crlf_blank_comment_lines.jsonl": (3, ["line 1: a comment, not a record", "line 7: a comment, not a record"], []),
    "handmade/15_json_array_not_jsonl.jsonl": (3, [], []),
    "handmade/16_pretty_printed.jsonl": (3, [], []),
    "handmade/19_duplicate_keys.jsonl": (2, ["line 2: key twice in one object"], []),
    "handmade/22_empty_file.jsonl": (0, ["file: no records in it"], []),
    "handmade/23_only_newlines.jsonl": (0, ["file: no records in it"], []),
    "handmade/25_no_final_newline_valid.jsonl": (3, [], []),
    "handmade/35_mixed_good_and_bad_90_10.jsonl": (24, [f"line {n}: not valid JSON" for n in (2, 11, 20)], []),
    "handmade/40_cp1252.srt": (1, [], ["line 11: read as Windows-1252"]),
    "handmade/41_overlapping_and_backward_times.srt": (1, [], ["line 2: cue that ends before it starts", "line 6: cue that starts before the one above it", "line 14: cue with a time that cannot be read"]),
    "handmade/42_html_and_ass_tags.srt": (1, [], []),
    "handmade/46_srt_named_txt.txt": (1, [], ["file: subtitles by content"]),
    "handmade/47_vtt_without_header.vtt": (1, [], ["line 1: no WEBVTT header"]),
    "h5/01_tvsum_layout_ok.h5": (0, [f"group video_{n}: features, not text" for n in (1, 2, 3)], []),
    "h5/02_missing_user_summary.h5": (0, [f"group video_{n}: features, not text" for n in (1, 2)], []),
    "h5/04_lengths_disagree.h5": (0, ["group video_1: features, not text"], []),
    "h5/05_zero_frames.h5": (0, ["group video_1: features, not text"], []),
    "h5/07_truncated.h5": (0, ["file: not a readable HDF5 file"], []),
    "h5/08_text_named_h5.h5": (0, ["file: not a readable HDF5 file"], []),
    "h5/09_empty.h5": (0, ["file: not a readable HDF5 file"], []),
    "real/aci_bench_virtscribe_asr_original.csv": (4, [], []),
    "real/mts_dialog_validation_original.csv": (100, [], []),
    "real/pubmedqa_first50_original_shape.json": (50, [], []),
    "real/scitldr_dev_first50_original_shape.jsonl": (50, [], []),
    "real/qmsum_Bed014_original.json": (1, [], []),
    "real/plos_journal.pmed.1001518.xml": (1, [], []),
    "real/webvttpy_empty.vtt": (0, ["file: no text in it"], []),
    "real/webvttpy_no_captions.vtt": (0, ["file: no text in it"], []),
    "real/webvttpy_invalid.vtt": (1, [], ["line 1: no WEBVTT header"]),
    "real/webvttpy_invalid_format.sbv": (0, ["file: no text in it"], ["line 1: text without a time"]),
    "real/webvttpy_invalid_format1.srt": (0, ["file: no text in it"], []),
    "real/webvttpy_invalid_format2.srt": (0, ["file: no text in it"], ["line 1: text without a time"]),
    "real/webvttpy_invalid_format3.srt": (0, ["file: no text in it"], ["line 2: text without a time"]),
    "real/webvttpy_invalid_format4.srt": (0, ["file: no text in it"], ["line 2: cue without text"]),
    "real/webvttpy_invalid_timeframe.sbv": (1, [], ["line 7: cue with a time that cannot be read", "line 13: cue that ends before it starts"]),
    "real/webvttpy_invalid_timeframe.srt": (1, [], []),
    "real/webvttpy_invalid_timeframe.vtt": (1, [], ["line 6: cue with a time that cannot be read"]),
    "real/webvttpy_invalid_timeframe_in_cue_text.vtt": (1, [], ["line 6: cue without text"]),
    "real/webvttpy_missing_caption_text.sbv": (1, [], ["line 4: cue without text", "line 12: cue that ends before it starts"]),
    "real/webvttpy_missing_caption_text.srt": (1, [], ["line 6: cue without text"]),
    "real/webvttpy_missing_caption_text.vtt": (1, [], ["line 6: cue without text"]),
    "real/webvttpy_missing_timeframe.sbv": (1, [], ["line 4: text without a time", "line 12: cue that ends before it starts"]),
    "real/webvttpy_missing_timeframe.srt": (1, [], ["line 6: text without a time"]),
    "real/webvttpy_missing_timeframe.vtt": (1, [], ["line 6: text without a time"]),
    "real/webvttpy_sample.sbv": (1, [], ["line 14: cue that ends before it starts"]),
}  # fmt: skip
TEXTS = {  # what must come out, letter by letter
    "real/webvttpy_youtube_dl.vtt": "yeah what this will happen is I'm telling",
    "real/webvttpy_styles.vtt": "- Hello world.",
    "real/webvttpy_cue_tags.vtt": "When the moon hits your eye Like a big-a pizza pie That's amore",
    "real/webvttpy_metadata_headers_multiline.vtt": "Caption text #1 Caption text #2",
    "real/webvttpy_two_captions.sbv": "Caption text #1 Caption text #2 (line 1) Caption text #2 (line 2)",
    "real/webvttpy_using_identifiers.vtt": " ".join(f"Caption text #{n}" for n in range(1, 7)),
    "real/webvttpy_captions_with_bom.vtt": " ".join(f"Caption text #{n}" for n in range(1, 5)),
    "real/webvttpy_comments.vtt": "- Ta en kopp varmt te.\n- Det är inte varmt.\n- Har en kopp te.\n- Det smakar som te.\n- Ta en kopp",
    "real/webvttpy_metadata_headers.vtt": "Caption text #1 Caption text #2",
    "real/webvttpy_one_caption.srt": "Caption text #1",
    "real/webvttpy_one_caption.vtt": "Caption text #1",
    "real/webvttpy_sample.srt": " ".join(f"Caption text #{n}" for n in range(1, 6)),
    "real/webvttpy_sample.vtt": " ".join(f"Caption text #{n}" for n in range(1, 17)),
    "handmade/41_overlapping_and_backward_times.srt": "overlaps and goes back same number twice ends before it starts",
    "handmade/42_html_and_ass_tags.srt": "Hello doctor\n- Two speakers\n- in one cue ♪ music ♪ [APPLAUSE] (inaudible) >> NARRATOR: &",
}  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_files(name):
    rows, refused, warned = found(shared("awkward", name))
    count, reasons, warnings = AWKWARD[name]
    assert len(rows) == count
    assert [f"{item.where}: {item.reason}" for item in refused] == reasons
    assert [f"{item.where}: {item.reason}" for item in warned] == warnings


@pytest.mark.parametrize("name", TEXTS)
def test_awkward_texts(name):
    assert text(shared("awkward", name)) == TEXTS[name]


CONSULTATION = "real/primock57_day1_consultation01"  # one visit in seven files


def test_every_awkward_file_has_a_test():
    from tests.test_prepare import BROKEN_PAIRS, HANDMADE

    folder = shared("awkward", "README.md").parent
    files = {str(path.relative_to(folder)) for path in folder.glob("*/*") if not path.name.startswith(".")}
    known = {*AWKWARD, *TEXTS, *(f"handmade/{name}.jsonl" for name in (*HANDMADE, BROKEN_PAIRS))}
    assert {name for name in files - known if not name.startswith(CONSULTATION)} == set()


def test_one_consultation_in_six_formats_says_the_same_words():
    folder = shared("awkward", "real")
    names = ("srt", "vtt", "whisper.json", "youtube_json3.json", "youtube_transcript_api.json")
    plain = Options(speakers=False)
    paths = [folder / f"primock57_day1_consultation01.{name}" for name in names]
    texts = [text(path, plain).replace("DOCTOR: ", "").replace("PATIENT: ", "").split() for path in paths]
    assert all(words == texts[0] for words in texts) and len(texts[0]) > 1000
    grids = sorted(folder.glob("*.TextGrid"))
    (source,) = table.sources(grids)
    (row,) = table.read(source, plain)
    assert row.content["source"].split() == texts[0] and row.content["id"] == "primock57_day1_consultation01"
    assert not {"<UNSURE>", "NOTE", "WEBVTT", "-->"} & set(texts[0])
