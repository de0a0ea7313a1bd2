"""The parser's messages in the words of the command line."""

from evostep.cli.wording import plain, reword


def test_signs_that_a_terminal_obeys_are_shown() -> None:
    assert plain("a\x1b[2J b\x07\nc \udcff é −") == "a?[2J b? c ? é −"


def test_an_unknown_message_of_the_parser_is_passed_on() -> None:
    assert reword("something new", {}) == "something new"
    assert reword('Parser key "new": went wrong', {}) == "--new: went wrong"
    assert reword('Parser key "new": Expected. Got value: 3', {}).startswith("--new '3': ")


def test_a_value_is_told_with_what_is_expected() -> None:
    message = 'Parser key "openai_es.sigma": Expected. Got value: much'
    told = "--openai-es.sigma 'much': expected a number"
    assert reword(message, {"--openai-es.sigma": float}) == told
