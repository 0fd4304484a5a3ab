import pytest

from harness_ext.pages import coloured, is_special, visible


def test_what_cannot_be_seen_gets_a_sign() -> None:
    assert visible(" wait") == "·wait"
    assert visible(" wait", spaces=False) == " wait"
    assert visible("  ", spaces=False) == "··"
    assert visible("\n\t\r") == "↵⇥␍"
    assert visible("\u200b\x00\u202e") == "[U+200B][U+0000][U+202E]"
    assert visible("\ud800") == "[U+D800]"
    assert visible("é中\U0001f600") == "é中\U0001f600"


@pytest.mark.parametrize(
    ("token", "special"),
    [
        ("<|im_end|>", True),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>", True),
        ("</s>", True),
        ("<bos>", True),
        ("<end_of_turn>", True),
        ("<div>", False),
        (" <|im_end|>", False),
        ("<|", False),
    ],
)
def test_special_tokens_are_told_by_their_shape(token: str, special: bool) -> None:
    assert is_special(token) is special


def test_colour_is_the_share_of_the_top_and_silence_has_none() -> None:
    row = coloured(["a", "b", "c", "d"], [0.0, 5.0, 10.0, 0.001], top=20.0, name="n")
    assert row == (
        '<div class="tokens" tabindex="0" role="group" aria-label="n"><i>a</i>'
        '<b style="--a:25" title="5.00">b</b><b class="p" style="--a:50" title="10.00">c</b>'
        '<b style="--a:10" title="0.00">d</b></div>'
    )


def test_the_peak_can_be_another_token_than_the_largest() -> None:
    row = coloured(["a", "<|x|>"], [2.0, 1.0], top=2.0, name="n", peak=1)
    assert '<b style="--a:100" title="2.00">a</b>' in row
    assert '<b class="p special" style="--a:50" title="1.00">&lt;|x|&gt;</b>' in row


def test_a_row_in_which_nothing_fires_has_no_peak() -> None:
    assert ' class="p"' not in coloured(["a"], [0.0], top=0.0, name="n")


def test_tokens_and_names_are_text() -> None:
    row = coloured(["<b>", '"'], [0, 1], top=1, name='"><script>')
    assert "<script>" not in row
    assert "&lt;b&gt;" in row
    assert 'aria-label="&#34;&gt;' in row


def test_a_number_for_each_token_is_needed() -> None:
    with pytest.raises(ValueError, match="2 tokens and 1 numbers"):
        coloured(["a", "b"], [1.0], top=1.0, name="n")
