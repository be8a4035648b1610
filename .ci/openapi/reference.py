"""Write docs/api-reference.html: docs/openapi.yaml and its renderer in one file, which opens without a network."""

import json
from pathlib import Path

from samtranslator.yaml_helper import yaml_parse

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
REDOC = HERE / "node_modules" / "redoc"
# The policy is what keeps the browser off the network: the renderer would ask its maker for a logo.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; worker-src blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<!--
Written by make reference. It contains Redoc:

{licenses}
-->
</head>
<body style="margin: 0">
<div id="reference"></div>
<script type="application/json" id="document">{document}</script>
<script>{script}</script>
<script>
Redoc.init(
  JSON.parse(document.getElementById("document").textContent),
  {{expandResponses: "200", jsonSamplesExpandLevel: "all", schemasExpansionLevel: 1}},
  document.getElementById("reference"),
);
</script>
</body>
</html>
"""

document = yaml_parse((DOCS / "openapi.yaml").read_text())
bundle = REDOC / "bundles" / "redoc.standalone.js"
page = PAGE.format(
    title=document["info"]["title"],
    licenses="\n".join(
        path.read_text() for path in (REDOC / "LICENSE", bundle.with_name(f"{bundle.name}.LICENSE.txt"))
    ),
    # No text of the document can end the element that holds it.
    document=json.dumps(document).replace("<", "\\u003c"),
    script=bundle.read_text(),
)
(DOCS / "api-reference.html").write_text(page)
