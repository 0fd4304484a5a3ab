"""A page escapes what it is given, and a shared style lies beside it where asked for."""

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from harness_ext.pages import render, write_assets
from harness_ext.pages.render import environment


def test_text_is_escaped_and_markup_is_not():
    found = render("base.html", title="<b>", assets="")
    assert "<title>&lt;b&gt;</title>" in found
    assert "<title><b></title>" in render("base.html", title=Markup("<b>"), assets="")


def test_name_that_is_missing_is_an_error_not_a_gap():
    with pytest.raises(UndefinedError, match="nothing_here"):
        environment().from_string("{{ nothing_here }}").render()


def test_page_holds_its_style_or_names_the_file(tmp_path):
    inside, beside = render("base.html", title="t"), render("base.html", title="t", assets="../a")
    assert "--accent" in inside
    assert "--accent" not in beside
    assert 'href="../a/page.css"' in beside
    assert 'src="../a/table.js"' in beside
    paths = write_assets(tmp_path / "a")
    assert {"page.css", "table.js"} <= {path.name for path in paths}
    for path in paths:
        assert path.read_text(encoding="utf-8").strip() in inside or path.name.startswith("tokens")


def test_every_page_forbids_requests():
    assert "default-src 'none'" in render("base.html", title="t")
