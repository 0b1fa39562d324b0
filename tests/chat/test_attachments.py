"""Files that are attached to a question: their text, their limits, and files that no one can read."""

import io
import random
import time
from contextlib import suppress

import pytest
from pypdf import PdfReader, PdfWriter

from apps.chat import attachments
from apps.chat.attachments import LARGEST_FILE_MB, MOST_CHARACTERS, MOST_FILES, MOST_PAGES, FileRefused, with_files
from tests.support.pdf_file import pdf_file


def encrypted(pdf: bytes, password: str) -> bytes:
    writer = PdfWriter(clone_from=io.BytesIO(pdf))
    writer.encrypt(password, "the owner's", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def refusal_of(name: str, content: bytes) -> str:
    with pytest.raises(FileRefused) as refused:
        with_files("What is it?", [(name, content)])
    return str(refused.value)


def test_text_of_all_files_stands_below_the_question_between_their_names() -> None:
    files = [("notes.txt", "Grüße\r\n".encode()), ("star.pdf", pdf_file("Proxima", "Centauri"))]
    assert with_files("What is it?\n", files) == (
        "What is it?\n\n--- File: notes.txt ---\nGrüße\n--- End of notes.txt ---\n\n"
        "--- File: star.pdf ---\nProxima\n\nCentauri\n--- End of star.pdf ---"
    )


def test_question_without_files_stays_as_it_is() -> None:
    assert with_files("What is it?", []) == "What is it?"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_usual_encodings_are_read(encoding: str) -> None:
    assert "é = ü" in with_files("", [("a.csv", "é = ü".encode(encoding))])


def test_pdf_without_a_password_for_reading_is_read() -> None:
    assert "Proxima" in with_files("", [("a.pdf", encrypted(pdf_file("Proxima"), ""))])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        pytest.param("a.pdf", encrypted(pdf_file("x"), "secret"), "is encrypted: save it without", id="encrypted"),
        pytest.param("a.pdf", b"%PDF-1.4\nnonsense", "is damaged or not a PDF", id="damaged"),
        pytest.param("a.pdf", b"plain text", "is damaged or not a PDF", id="another kind"),
        pytest.param("a.pdf", pdf_file(""), "has no text: it may be a scan", id="no text"),
        pytest.param("a.pdf", pdf_file(*["x"] * (MOST_PAGES + 1)), "has 301 pages; 300 are possible", id="pages"),
        pytest.param("a.txt", b"a\x00b", "is not a text file", id="binary"),
        pytest.param("a.txt", b" \n", "has no text: it is empty", id="empty"),
        pytest.param("a.txt", b"a" * (LARGEST_FILE_MB * 1_000_000 + 1), "is larger than 20 MB", id="large"),
        pytest.param("a.txt", b"a" * MOST_CHARACTERS, "the text is too long by ", id="long"),
    ],
)
def test_file_that_cannot_be_attached_is_named_with_the_next_step(name: str, content: bytes, problem: str) -> None:
    sentence = refusal_of(name, content)
    assert sentence.startswith(f"'{name}'")
    assert problem in sentence


def test_too_many_files_are_refused() -> None:
    with pytest.raises(FileRefused, match=f"attach {MOST_FILES} at most"):
        with_files("", [("a.txt", b"a")] * (MOST_FILES + 1))


def test_pdf_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "READ_SECONDS", -1.0)
    assert "takes too long to read: 1 of 2 pages" in refusal_of("a.pdf", pdf_file("one", "two"))


def test_name_of_a_file_stays_on_one_line() -> None:
    assert with_files("", [("a\n---\x00.txt", b"x")]).splitlines()[0] == "--- File: a --- .txt ---"


def test_any_damage_of_a_pdf_is_refused_or_harmless() -> None:
    pdf = pdf_file("Proxima", "Centauri")
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf)))
    for page in writer.pages:
        page.compress_content_streams()
    compressed = io.BytesIO()
    writer.write(compressed)
    chance = random.Random(13)
    started = time.monotonic()
    for number in range(300):
        damaged = bytearray((pdf, compressed.getvalue())[number % 2])
        for _ in range(chance.choice((1, 3, 20))):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
        with suppress(FileRefused):
            assert with_files("", [("a.pdf", bytes(damaged))]).startswith("--- File: a.pdf ---")
    assert time.monotonic() - started < 60
