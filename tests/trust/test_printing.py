"""What a file says is shown by a message, and never obeyed by a terminal."""

import io
import re

from light_llm.printing import LONGEST, message, printable, shown


def test_control_characters_are_spelt_out():
    assert printable("a\x1b[2Jb\r\x07\x9b\u202egnp") == ("a\\x1b[2Jb\\x0d\\x07\\x9b\\u202egnp")
    assert printable("two\nlines\tand ünïcödé 漢字 🙂") == "two\nlines\tand ünïcödé 漢字 🙂"
    printable("\ud800").encode()  # half a surrogate pair can be printed too


def test_no_character_below_space_but_line_ends_and_tabs_survives():
    text = printable("".join(map(chr, range(0x110000))))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_a_message_is_never_a_flood():
    assert message("x" * LONGEST) == "x" * LONGEST
    cut = message("a" * 50_000_000 + "the end")
    assert len(cut) < 2 * LONGEST
    assert cut.endswith("the end")


def test_data_is_printed_as_it_is_but_for_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert shown("a\x1b[31m", io.StringIO()) == "a\x1b[31m"
    assert shown("a\x1b[31m", Terminal()) == "a\\x1b[31m"
