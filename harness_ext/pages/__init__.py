"""Static pages that open from a file: one base template, one table, charts as SVG, no network.

A page is `render("name.html", ...)` of a template in `pages/templates/` that extends `base.html`.
Style and scripts are in the page itself, and its content policy forbids every request. plotly.js
would add 4.8 MB to each (`ls -l site-packages/plotly/package_data`, 7.1.0), and altair asks a
content network for its scripts; style and script of these pages are 20 kB together.
"""

from harness_ext.pages import charts as charts
from harness_ext.pages.render import render as render
from harness_ext.pages.render import write_assets as write_assets
from harness_ext.pages.tables import Column as Column
from harness_ext.pages.tables import table as table
from harness_ext.pages.tokens import coloured as coloured
from harness_ext.pages.tokens import is_special as is_special
from harness_ext.pages.tokens import visible as visible
