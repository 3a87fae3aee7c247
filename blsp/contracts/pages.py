"""How the Data Docs look: renderers and a view for Great Expectations' site builder.

Its own pages load scripts and styles from seven hosts and stay empty without a network; they also carry the
time and random ids, so that the same data gives other files each time. These are whole in one file each.
"""

import re
from typing import TYPE_CHECKING, Any

from blsp.contracts.expectations import COUNTS
from blsp.contracts.verdicts import verdicts_of

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.data_context import AbstractDataContext
    from markupsafe import Markup

_HERE = __name__

# For somebody who does not know the pipeline: what the rows of a table are.
ABOUT = {
    "preparation": "What became of the rows of each source of speech: kept, or dropped for a reason.",
    "corpus": "The packed speech: one row an utterance, with its transcript, speaker and split (train, dev or test).",
    "answers": "What became of each utterance when the LLM was asked to write from its transcript, by behaviour "
    "(instruction): answered, dropped for a reason, or not asked.",
    "continuations": "What the LLM wrote: one row an utterance and behaviour.",
}


def site(folder: str) -> dict[str, Any]:
    """The configuration of a Data Docs site in `folder`, with the renderers and the view of this module."""
    view = {"module_name": _HERE, "class_name": "View"}
    return {
        "class_name": "SiteBuilder",
        "site_name": "blsp",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": folder},
        "site_index_builder": {
            "class_name": "DefaultSiteIndexBuilder",
            "renderer": {"module_name": _HERE, "class_name": "IndexRenderer"},
            "view": view,
        },
        "site_section_builders": {
            "validations": {
                "class_name": "DefaultSiteSectionBuilder",
                "source_store_name": "validation_results_store",
                "renderer": {"module_name": _HERE, "class_name": "TableRenderer"},
                "view": view,
            },
            "expectations": "None",  # their sentences are on the tables' pages
            "profiling": "None",
        },
    }


class TableRenderer:
    """Gives the contents of the page of one table."""

    def __init__(self, data_context: "AbstractDataContext | None" = None) -> None:
        pass

    def render(self, results: "ExpectationSuiteValidationResult") -> dict[str, Any]:
        """The template's name and its values."""
        verdicts, shown = verdicts_of(results), COUNTS.get(str(results.suite_name), {})
        counts = (results.meta or {}).get("counts", [])
        return {
            "template": "table.html.j2",
            "table": results.suite_name,
            "about": ABOUT[str(results.suite_name)],
            "counts": [{label: row[name] for name, label in shown.items()} for row in counts],
            "verdicts": verdicts,
            "stops": sum(verdict.stops for verdict in verdicts),
        }


class IndexRenderer:
    """Gives the contents of the first page: each table with its verdict and what failed."""

    def __init__(self, data_context: "AbstractDataContext") -> None:
        self.data_context = data_context

    def render(self, links: dict[str, Any]) -> dict[str, Any]:
        """The template's name and its values; `links` is what the site builder knows about its pages."""
        store = self.data_context.validation_results_store
        found = {}
        for key in store.list_keys():
            results = store.get(key)
            found[results.suite_name] = verdicts_of(results)
        pages = {link["expectation_suite_name"]: link["filepath"] for link in links.get("validations_links", [])}
        tables = [
            {
                "name": name,
                "about": ABOUT[name],
                "page": pages[name],
                "verdicts": verdicts,
                "is_counts": name in COUNTS,
            }
            for name, verdicts in found.items()
        ]
        stops = sum(verdict.stops for verdicts in found.values() for verdict in verdicts)
        return {"template": "index.html.j2", "tables": tables, "stops": stops}


class View:
    """Turns a renderer's contents into HTML."""

    def __init__(self, custom_styles_directory: str | None = None, custom_views_directory: str | None = None) -> None:
        import jinja2

        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("blsp.contracts", "templates"),
            autoescape=True,  # transcripts are anybody's text
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._environment.filters["quoted"] = _quoted

    def render(self, contents: dict[str, Any], **settings: Any) -> str:
        """A whole HTML page."""
        return self._environment.get_template(contents["template"]).render(contents)


def _quoted(text: str) -> "Markup":
    """The text as HTML, what it has between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
