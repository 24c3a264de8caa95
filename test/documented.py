"""The commands in README.md, docs and cards, for the tests that check them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")])
#: What a code span in the text starts with if it is a command.
_PROGRAMS = ("tracker_ros", "ros2", "make", "python", "python3", "pip", "colcon")


@dataclass(frozen=True)
class Command:
    """One call.

    Attributes:
        page: file that it is in.
        words: program and arguments.
        whole: from a block, to be run as it is; otherwise from the text, where arguments may be left out.
    """

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands(program: str = "", *, text: str | None = None) -> list[Command]:
    """The commands of all pages, or of `text`; with `program` those that start with it."""
    pages = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES} if text is None else {"text": text}
    found = [command for page, content in pages.items() for command in _of(page, content)]
    return [command for command in found if not program or command.words[0] == program]


def _of(page: str, content: str) -> Iterator[Command]:
    variables: dict[str, str] = {}
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", content, re.MULTILINE | re.DOTALL):
        if language in ("", "sh", "bash"):
            yield from (Command(page, words, True) for words in split(block, variables))
    prose = re.sub(r"^```.*?^```$", "", content, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        words = span.split()
        if len(words) > 1 and words[0] in _PROGRAMS:
            yield Command(page, tuple(shlex.split(span)), False)


def split(block: str, variables: dict[str, str] | None = None) -> Iterator[tuple[str, ...]]:
    """The calls in lines of shell; `variables` are those set so far. Settings in front of a call are left out."""
    variables = {} if variables is None else variables
    block = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block, flags=re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        call: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                while call and (setting := re.fullmatch(r"(\w+)=(.*)", call[0])):
                    variables[setting[1]] = setting[2]
                    call.pop(0)
                if call:
                    yield tuple(call)
                call = []
            elif word[0] == "$" and word[1:] in variables:
                call += variables[word[1:]].split()
            else:
                call.append(word)
