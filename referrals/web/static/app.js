// JavaScript only adds: without it every page works, so a failure here costs nothing but comfort.
document.body.classList.add("js-enabled", "govuk-frontend-supported");

// The page asks for app.js?v=…; the same query keeps an old govuk.js out of a new page.
const { initAll } = await import(`./govuk.js${new URL(import.meta.url).search}`);
initAll();
