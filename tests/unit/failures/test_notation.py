"""The notations that error bodies come in."""

import pytest

from turnkeeper_worker.failures import notation


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param('{"a": [1, null]}', {"a": [1, None]}, id="JSON"),
        pytest.param(' "text" ', "text", id="a JSON string"),
        pytest.param('{"a": "two\nlines"}', {"a": "two\nlines"}, id="a raw newline in a string"),
        pytest.param("{'a': None, 'b': True}", {"a": None, "b": True}, id="Python's names"),
        pytest.param("""{'a': "it's"}""", {"a": "it's"}, id="an apostrophe in double quotes"),
        pytest.param(r"{'a': 'it\'s \"so\"'}", {"a": 'it\'s "so"'}, id="escaped quotes"),
        pytest.param("""{'a': 'say "no"'}""", {"a": 'say "no"'}, id="double quotes in single ones"),
        pytest.param(r"{'a': '\x41\n'}", {"a": "A\n"}, id="Python's escapes"),
        pytest.param("{'None': 'None'}", {"None": "None"}, id="names inside strings stay"),
        pytest.param("[{'a': 1}]", [{"a": 1}], id="a list"),
        pytest.param("prose", None, id="prose"),
        pytest.param("{broken", None, id="broken JSON"),
        pytest.param('{"a": 1} and more', None, id="more than one value"),
        pytest.param("", None, id="nothing"),
        pytest.param("[" * 60_000, None, id="nesting deeper than the stack"),
        pytest.param("[" + "9" * 5_000 + "]", None, id="a number of 5,000 digits"),
        pytest.param('"' + "a" * notation.MAX_TEXT + '"', None, id="too long"),
    ],
)
def test_decode(text: str, value: object) -> None:
    assert notation.decode(text) == value


@pytest.mark.parametrize(
    ("text", "values"),
    [
        pytest.param('Error: {"a": 1} (again)', [{"a": 1}], id="JSON in prose"),
        pytest.param("Error: [{'a': 1}]", [{"a": 1}], id="a list of one in prose"),
        pytest.param('one {"a": 1} two {"b": 2}', [{"a": 1}, {"b": 2}], id="two objects"),
        pytest.param(
            '{"m": "[400]: {"detail": "no"} (27s)"}', [{"detail": "no"}], id="quotes that nobody escaped"
        ),
        pytest.param("Value {x} is not allowed.", [], id="braces that are no object"),
        pytest.param("b'{\"a\": 1}'", [{"a": 1}], id="bytes as Python prints them"),
    ],
)
def test_embedded(text: str, values: list[object]) -> None:
    assert list(notation.embedded(text)) == values


def test_scrape_reads_the_first_of_each_pair() -> None:
    text = "{ status: undefined, error: { type: 'server_error', message: 'It\\'s down', code: `x` }, code: 'y' }"

    assert notation.scrape(text) == {"type": "server_error", "message": "It\\'s down", "code": "x"}


def test_frames_keep_the_last_ones() -> None:
    text = "".join(f'data: {{"n": {n}}}\r\n\r\n' for n in range(100))

    frames = notation.frames(text)

    assert frames is not None
    assert frames[-1] == '{"n": 99}'
    assert len(frames) == 64


@pytest.mark.parametrize(
    ("text", "title"),
    [
        pytest.param("<html><head><title>502 Bad Gateway</title></head></html>", "502 Bad Gateway", id="a title"),
        pytest.param("<!DOCTYPE html>\n<html><h1>Oh no</h1></html>", "Oh no", id="a heading"),
        pytest.param("<html><body><p>Gone</p> for good</body></html>", "Gone for good", id="only text"),
        pytest.param("  \n<HTML><TITLE lang='en'> x </TITLE>", "x", id="capitals and attributes"),
        pytest.param("a < b", None, id="prose"),
    ],
)
def test_html_title(text: str, title: str | None) -> None:
    assert notation.html_title(text) == title
