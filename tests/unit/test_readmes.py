"""Both READMEs say the same: examples, commands, names, numbers."""

import re

from tests.unit.transformed import REPOSITORY

ENGLISH, CHINESE = ((REPOSITORY / name).read_text() for name in ("README.md", "README.zh-CN.md"))
# The pages that hold what the Chinese README has on one page.
PAGES = "".join(
    (REPOSITORY / "docs" / f"{name}.md").read_text() for name in ("integrate", "queue", "deploying", "events")
)


def blocks(text: str, kind: str) -> set[str]:
    """The lines of all code blocks of that kind, without comments."""
    found = re.findall(rf"^ *```{kind}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return {line.partition("#")[0].strip() for block in found for line in block.splitlines()}


def prose(text: str) -> str:
    """The text without code blocks and addresses of links."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE))


def names(text: str) -> set[str]:
    """Names in inline code: of parameters, errors, fields, commands."""
    return {name for code in re.findall(r"`([^`]+)`", prose(text)) for name in re.findall(r"[A-Za-z_]{3,}", code)}


def numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in re.findall(r"\d[\d,.]*(?<=\d)", re.sub("`[^`]*`", "", prose(text)))}


def test_the_readmes_are_short() -> None:
    assert len(ENGLISH.splitlines()) <= 160
    assert len(CHINESE.splitlines()) <= 120


def test_both_readmes_have_the_same_commands() -> None:
    assert blocks(ENGLISH, "sh") == blocks(CHINESE, "sh") != set()


def test_the_examples_of_the_chinese_readme_are_those_of_the_english_one() -> None:
    assert set() != blocks(CHINESE, "json") <= blocks(ENGLISH, "json")


def test_both_readmes_name_the_same() -> None:
    assert names(ENGLISH) <= names(CHINESE)
    assert names(CHINESE) <= set(re.findall(r"[A-Za-z_]{3,}", ENGLISH + PAGES))


def test_both_readmes_have_the_same_numbers() -> None:
    assert numbers(ENGLISH) <= numbers(CHINESE)
    assert numbers(CHINESE) <= numbers(ENGLISH) | numbers(PAGES)
