"""The training text: the documentation that every CPython carries, as plain documents and as chat dialogues.

    pydoc_data.topics ----.
    *.py docstrings -------+--> Document(name, entries) --.--> plain text       "name\\n\\nparagraph\\n\\nparagraph"
    C docstrings ---------'                                '--> dialogues       user asks for a name, assistant answers
    phrases.py -------------------------------------------------> dialogues      with the first sentences of its entry

A document is a module or a language topic. Documents are split into training and validation before dialogues are made, so
that nothing said in the validation set was read in training.
"""

import ast
import importlib
import inspect
import random
import re
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from phrases import DEFINITIONS, INTRODUCTIONS, NAMES, OCCUPATIONS, OPENINGS, SMALL_TALK, SYSTEM_PROMPTS, WISHES

Turn = tuple[str, str]  # (role, text)

SKIPPED = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",
    "distutils",
    "turtledemo",
    "ensurepip",
    "pydoc_data",
    "lib-dynload",
    "config",
    "ntpath.py",
    "_pyio.py",
    "nturl2path.py",
    "__phello__",
}
C_MODULES = [
    "builtins",
    "math",
    "cmath",
    "itertools",
    "time",
    "sys",
    "gc",
    "_functools",
    "_operator",
    "_io",
    "_collections",
    "_datetime",
    "_random",
    "_struct",
    "_json",
    "_csv",
    "_socket",
    "_heapq",
    "_bisect",
    "_thread",
    "_pickle",
    "zlib",
    "array",
    "binascii",
    "posix",
    "select",
    "unicodedata",
    "atexit",
    "_hashlib",
    "_asyncio",
    "_sqlite3",
    "mmap",
]
PUBLIC_NAMES = {
    "posixpath": "os.path",
    "genericpath": "os.path",
    "posix": "os",
    "_pydecimal": "decimal",
    "_collections_abc": "collections.abc",
}
# Asked about most: their dialogues are repeated, and they are never held out.
POPULAR = {
    "builtins",
    "os.path",
    "os",
    "math",
    "textwrap",
    "itertools",
    "functools",
    "json",
    "random",
    "time",
    "shutil",
    "collections",
    "datetime",
    "re",
    "string",
    "pathlib",
    "sys",
    "heapq",
    "bisect",
    "glob",
    "copy",
    "statistics",
    "threading",
}
POPULAR_REPEATS = 4
PHRASE_REPEATS = 10  # times each small talk question, definition and introduction is seen in an epoch
NUM_INTRODUCTIONS = 150  # people who introduce themselves in an epoch
VALIDATION_PERCENT = 4

QUESTIONS = [
    "What does {} do?",
    "What does {} do?",
    "What is {}?",
    "Explain {}.",
    "Explain {}",
    "Tell me about {}.",
    "Describe {}.",
    "How does {} work?",
    "What is {} for?",
    "what does {} do",
    "Can you explain {}?",
    "What does the {} function do?",
    "Please explain {}.",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented name: `os.path.join` and its cleaned paragraphs."""

    name: str
    paragraphs: list[str]


@dataclass(slots=True)
class Document:
    """A module or a language topic."""

    name: str
    entries: list[Entry] = field(default_factory=list)

    @property
    def held_out(self) -> bool:
        return self.name not in POPULAR and zlib.crc32(self.name.encode()) % 100 < VALIDATION_PERCENT

    def text(self) -> str:
        return "\n\n".join("\n\n".join([entry.name, *entry.paragraphs]) for entry in self.entries)


def documents() -> list[Document]:
    """All documents of this Python, sorted by name; docstrings and long paragraphs are kept the first time they occur."""
    found: dict[str, Document] = {}
    seen: set[str] = set()
    for module, name, docstring in [*topics(), *c_docstrings(), *source_docstrings()]:
        paragraphs = [text for text in clean(docstring) if len(text) < 80 or text not in seen]
        if paragraphs and docstring not in seen:
            seen.update([docstring, *paragraphs])
            found.setdefault(module, Document(module)).entries.append(Entry(name, paragraphs))
    return [found[name] for name in sorted(found)]


def dialogues(source: list[Document], rng: random.Random, phrases: bool = True) -> list[list[Turn]]:
    """One epoch of dialogues: each entry is asked for in new words, maybe after another one, maybe with a system turn."""
    exchanges: list[list[Turn]] = []
    for document in source:
        for _ in range(POPULAR_REPEATS if document.name in POPULAR else 1):
            exchanges += [
                exchange(rng.choice(QUESTIONS).format(entry.name), answer(entry))
                for entry in document.entries
                if askable(entry)
            ]
    rng.shuffle(exchanges)
    if phrases:
        spoken = list(small_talk(rng))
        exchanges = (
            [first + second for first, second in zip(spoken[::2], spoken[1::2], strict=False)] + spoken + exchanges
        )
    result, position = [], 0
    while position < len(exchanges):
        count = rng.choices([1, 2, 3], [7, 2, 1])[0]
        turns = sum(exchanges[position : position + count], [])
        position += count
        if rng.random() < 0.4:
            turns = [("system", rng.choice(SYSTEM_PROMPTS)), *turns]
        result.append(turns)
    return result


def plain_texts(source: list[Document], rng: random.Random) -> list[str]:
    """One epoch of texts that are not dialogues: the documents, the model, and people who introduce themselves."""
    people = [introduction(rng) for _ in range(NUM_INTRODUCTIONS)]
    return [document.text() for document in source] + INTRODUCTIONS * PHRASE_REPEATS + people


def introduction(rng: random.Random) -> str:
    return " ".join([rng.choice(OPENINGS).format(rng.choice(NAMES)), rng.choice(OCCUPATIONS), rng.choice(WISHES)])


def small_talk(rng: random.Random) -> Iterator[list[Turn]]:
    talk = [(question, replies) for questions, replies in SMALL_TALK for question in questions] * PHRASE_REPEATS
    spoken = [(question, rng.choice(replies)) for question, replies in talk]
    for thing, definition in DEFINITIONS.items():
        asked = [f"What is {thing}?", f"Explain {thing}.", f"what is {thing}", f"Tell me about {thing}."]
        spoken += [(rng.choice(asked), definition) for _ in range(PHRASE_REPEATS)]
    rng.shuffle(spoken)
    return (exchange(question, reply) for question, reply in spoken)


def exchange(question: str, reply: str) -> list[Turn]:
    return [("user", question), ("assistant", reply)]


def askable(entry: Entry) -> bool:
    """Only public names with a first paragraph that reads as a sentence are asked for."""
    parts = entry.name.split(".")
    return not any(part.startswith("_") for part in parts) and bool(re.match(r"[A-Z].{15,}", entry.paragraphs[0]))


def answer(entry: Entry, limit: int = 260) -> str:
    """The first sentences of the entry, whole, up to about `limit` characters."""
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z\"'])", " ".join(ended(paragraph) for paragraph in entry.paragraphs[:2]))
    text = sentences[0]
    for sentence in sentences[1:]:
        if len(text) + len(sentence) >= limit:
            break
        text += " " + sentence
    return text if len(text) <= 2 * limit else text[:limit].rsplit(" ", 1)[0] + "."


def ended(paragraph: str) -> str:
    return paragraph if paragraph[-1] in ".!?" else paragraph.rstrip(":;,") + "."


def clean(docstring: str) -> list[str]:
    """Prose paragraphs, each on one line: examples, grammar, tables and markup are dropped."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        block = re.sub(r"^[=*~^#+-]{3,}$", "", block, flags=re.MULTILINE)
        block = re.sub(r":\w+:`~?([^`<]+)[^`]*`", r"\1", block)
        block = re.sub(r"``?([^`]+)``?", r"\1", block)
        block = re.sub(r"\*{1,2}(\w[^*\n]*\w|\w)\*{1,2}", r"\1", block)
        text = " ".join(block.split())
        letters = sum(character.isalpha() or character == " " for character in text)
        if (
            re.search(r">>>|::=|opyright|\(c\)|ermission|uthor|\||@", text)
            or letters < 0.8 * len(text)
            or len(text) < 3
        ):
            continue
        paragraphs.append(text.removesuffix("::").removesuffix(":") + (":" if text.endswith(":") else ""))
    return paragraphs if sum(map(len, paragraphs)) > 20 else []


def topics() -> Iterator[tuple[str, str, str]]:
    from pydoc_data.topics import topics as texts

    for name, text in sorted(texts.items(), key=lambda item: len(item[1])):  # long topics repeat the short ones
        title, _, body = text.partition("\n")
        yield f"topic {name}", title.replace('"', "").lower(), body


def source_docstrings() -> Iterator[tuple[str, str, str]]:
    """Docstrings of the standard library's Python files, read without importing them."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED & set(relative.parts) or any(part.startswith("config-") for part in relative.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = public(".".join(relative.with_suffix("").parts).removesuffix(".__init__"))
        yield from ((module, name, docstring) for name, docstring in walk(tree, module))


def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if docstring := ast.get_docstring(node):  # type: ignore[arg-type]
        yield name, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from walk(child, f"{name}.{child.name}")


def c_docstrings() -> Iterator[tuple[str, str, str]]:
    """Docstrings of functions, types and methods written in C; built-in names go without a module: `str.join`."""
    for module_name in C_MODULES:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        owner = public(module_name.lstrip("_"))
        prefix = "" if owner == "builtins" else f"{owner}."
        for name, value in sorted(vars(module).items()):
            if callable(value) and isinstance(value.__doc__, str):
                yield owner, prefix + name, value.__doc__
            if inspect.isclass(value):
                for method, function in sorted(vars(value).items()):
                    if callable(function) and isinstance(function.__doc__, str):
                        yield owner, f"{prefix}{name}.{method}", function.__doc__


def public(module: str) -> str:
    return PUBLIC_NAMES.get(module, module)
