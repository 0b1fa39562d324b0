"""The text of files that a person attaches to a question. Everything happens in this process; nothing is fetched.

Not covered: text in pictures (scans), the layout of tables, other formats than plain text and PDF.
"""

import io
import logging
import re
import struct
import time
import zlib
from collections.abc import Sequence

from pypdf import PdfReader
from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError

TEXT_TYPES = (
    *("txt", "md", "rst", "tex", "csv", "tsv", "json", "jsonl", "yaml", "yml", "toml", "ini", "xml", "html", "css"),
    *("py", "js", "ts", "java", "c", "h", "cpp", "rs", "go", "rb", "sh", "sql", "log", "diff"),
)
FILE_TYPES = (*TEXT_TYPES, "pdf")
LARGEST_FILE_MB = 20
MOST_FILES = 10
MOST_PAGES = 300
MOST_CHARACTERS = 400_000  # of all files of a question: about 100,000 tokens
READ_SECONDS = 20.0  # for all pages of a PDF; checked after each page
LONGEST_NAME = 100  # characters
CONTROLS = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0e-\x1f\x7f]")
# pypdf has limits of its own for size and work; for a damaged file it may raise any of these.
PARSER_ERRORS = (PyPdfError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError)
MORE_PARSER_ERRORS = (RecursionError, NotImplementedError, EOFError, OSError, MemoryError, zlib.error, struct.error)

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings quote the file


class FileRefused(Exception):
    """A file cannot be attached; the message names it and says what to do."""


def with_files(question: str, files: Sequence[tuple[str, bytes]]) -> str:
    """The question with the text of all files (name and bytes) below it. Raises FileRefused."""
    if len(files) > MOST_FILES:
        raise FileRefused(f"There are {len(files)} files: attach {MOST_FILES} at most.")
    parts = [question.strip()] if question.strip() else []
    for name, content in files:
        name = " ".join(CONTROLS.sub(" ", name).split())[:LONGEST_NAME] or "file"
        parts.append(f"--- File: {name} ---\n{_text_of(name, content)}\n--- End of {name} ---")
        n_characters = sum(map(len, parts))
        if n_characters > MOST_CHARACTERS:
            raise FileRefused(
                f"'{name}': the text is too long by {n_characters - MOST_CHARACTERS:,} characters: attach a part of it."
            )
    return "\n\n".join(parts)


def _text_of(name: str, content: bytes) -> str:
    if len(content) > LARGEST_FILE_MB * 1_000_000:
        raise FileRefused(f"'{name}' is larger than {LARGEST_FILE_MB} MB: attach a part of it.")
    is_pdf = content[:1024].lstrip().startswith(b"%PDF-") or name.lower().endswith(".pdf")
    text = _pdf_text(name, content) if is_pdf else _plain_text(name, content)
    text = CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = text.encode("utf-8", "replace").decode().strip()  # a PDF may have halves of surrogate pairs
    if not text:
        about = "it may be a scan, whose pictures this chat cannot read" if is_pdf else "it is empty"
        raise FileRefused(f"'{name}' has no text: {about}.")
    return text


def _plain_text(name: str, content: bytes) -> str:
    """UTF-8, UTF-16 if the file says so, or else Windows' code page for Western Europe."""
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
    if "\x00" in text:
        raise FileRefused(f"'{name}' is not a text file: attach plain text or a PDF.")
    return text


def _pdf_text(name: str, content: bytes) -> str:
    encrypted = f"'{name}' is encrypted: save it without a password, and attach that file."
    deadline = time.monotonic() + READ_SECONDS
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):  # many need no password to be read
            raise FileRefused(encrypted)
        n_pages = len(reader.pages)
        if n_pages > MOST_PAGES:
            raise FileRefused(f"'{name}' has {n_pages:,} pages; {MOST_PAGES} are possible: attach a part of it.")
        pages = []
        for number, page in enumerate(reader.pages, start=1):
            pages.append(page.extract_text())
            if time.monotonic() > deadline:
                raise FileRefused(
                    f"'{name}' takes too long to read: {number} of {n_pages} pages in {READ_SECONDS:.0f} s. "
                    "Attach a part of it."
                )
    except (DependencyError, FileNotDecryptedError) as error:  # AES needs a library that is not installed here
        raise FileRefused(encrypted) from error
    except (*PARSER_ERRORS, *MORE_PARSER_ERRORS) as error:
        raise FileRefused(f"'{name}' is damaged or not a PDF: open it in a viewer and save it anew.") from error
    return "\n\n".join(pages)
