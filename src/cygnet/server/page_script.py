"""A script of ours that the page loads first, so that it asks no machine but this server.

The page has addresses of other sites built in. By itself it asks the vendor's registry of packs (about installed packs
at each start, about missing nodes also while the Manager is off), a search service for packs, and the hosts of models
that a workflow names, for their sizes. The script turns the first two to this server, which passes them on while the
Manager is on, and refuses the last. What a user asks for, such as the download of a model, is a navigation and goes its
way.
"""

from __future__ import annotations

import json

from starlette.responses import Response

from cygnet.server.installer import REGISTRY

SCRIPT = "/extensions/cygnet/stay.js"
"""Where the page finds the script. Among the extensions it would come too late: the page asks before it loads them."""
ROUTE = "/registry"
"""Of this server, in place of the registry; without its ``/api`` prefix."""

_TEXT = """\
// The page asks no machine but this server, unless its user does. Why: see the server's documentation.
(() => {
  const registry = %s;
  const route = new URL("../../api%s", document.currentScript.src).href;
  const foreign = (url) => url.origin !== location.origin && url.protocol.startsWith("http");

  // The registry of packs, and a search service whose paths begin with /1/indexes/; the page falls back to the former.
  const open = XMLHttpRequest.prototype.open;
  XMLHttpRequest.prototype.open = function (method, url, ...more) {
    const asked = new URL(url, document.baseURI);
    let target = url;
    if (asked.origin === registry) target = route + asked.pathname + asked.search;
    else if (foreign(asked) && asked.pathname.startsWith("/1/indexes/")) target = route + "/search";
    return open.call(this, method, target, ...more);
  };

  // Sizes of model files that a workflow names.
  const fetch = window.fetch;
  window.fetch = function (what, options) {
    const method = options?.method ?? what?.method ?? "GET";
    const asked = new URL(what?.url ?? what, document.baseURI);
    if (method.toUpperCase() === "HEAD" && foreign(asked))
      return Promise.reject(new TypeError("other sites are not asked"));
    return fetch.call(this, what, options);
  };
})();
"""


def page_script() -> Response:
    """The script for the page."""
    text = _TEXT % (json.dumps(REGISTRY), ROUTE)
    return Response(text, media_type="application/javascript", headers={"Cache-Control": "no-cache"})


def with_script(page: str) -> str:
    """The page's document, with the script before all others; one without scripts asks nobody."""
    before, first, after = page.partition("<script")
    return f'{before}<script src=".{SCRIPT}"></script>{first}{after}' if first else page
