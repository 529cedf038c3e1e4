"use strict";

const docs = document.getElementById("docs");

const ui = SwaggerUIBundle({
  domNode: docs,
  url: docs.dataset.openapi,
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // the validator's badge would be asked of another host
  onComplete: () => {
    document.title = ui.specSelectors.info().get("title");
  },
});
