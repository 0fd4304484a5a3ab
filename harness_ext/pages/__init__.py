"""Static pages that open from a file: one base template, one table, charts as SVG, no network.

A page is `render("name.html", ...)` of a template in `pages/templates/` that extends `base.html`.
Style and scripts are in the page itself, and its content policy forbids every request. plotly.js
is 4.5 MB and the three scripts of altair 0.9 MB, in every page of hundreds; what is needed
here is 20 kB.
"""

from harness_ext.pages import charts as charts
from harness_ext.pages.render import render as render
from harness_ext.pages.render import write_assets as write_assets
from harness_ext.pages.tables import Column as Column
from harness_ext.pages.tables import table as table
